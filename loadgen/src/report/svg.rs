//! Drawing: a text of SVG elements, styled by the page's classes alone.
//!
//! Pure. Everything that is not a number is escaped here. Tested on its escapes.

use std::fmt::Write;

/// Makes a text safe between tags and within quoted attributes. Characters that a
/// page may not hold are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            control if control.is_control() => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

/// Where a text stands to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    /// Begins there.
    Start,
    /// Around it.
    Middle,
    /// Ends there.
    End,
}

/// A drawing of a fixed size.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    /// An empty one.
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.body.write_fmt(text);
        self.body.push('\n');
    }

    /// A line.
    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.put(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    /// A rectangle; `title` is shown when the pointer rests on it.
    pub(super) fn rect(
        &mut self,
        class: &str,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        title: Option<&str>,
    ) {
        let (width, height) = (width.max(0.0), height.max(0.0));
        let shape = format_args!(
            r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}""#
        )
        .to_string();
        match title {
            Some(title) => {
                self.put(format_args!("{shape}><title>{}</title></rect>", escape(title)));
            }
            None => self.put(format_args!("{shape}/>")),
        }
    }

    /// A text.
    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.put(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{}</text>"#,
            escape(text)
        ));
    }

    /// A curve through points; a gap where one is missing.
    pub(super) fn path(&mut self, class: &str, points: impl Iterator<Item = Option<(f64, f64)>>) {
        let mut shape = String::new();
        let (mut down, mut alone) = (false, None);
        for point in points {
            match point {
                Some((x, y)) => {
                    let letter = if down { 'L' } else { 'M' };
                    let _ = write!(shape, "{letter}{x:.1} {y:.1}");
                    alone = (!down).then_some((x, y));
                    down = true;
                }
                None => {
                    dot(&mut shape, alone.take());
                    down = false;
                }
            }
        }
        dot(&mut shape, alone);
        if !shape.is_empty() {
            self.put(format_args!(r#"<path class="{class}" d="{shape}"/>"#));
        }
    }

    /// The area between two curves over the same places, given as (x, lower, upper).
    pub(super) fn area(&mut self, class: &str, points: &[(f64, f64, f64)]) {
        let mut shape = String::new();
        for (at, (x, _, upper)) in points.iter().enumerate() {
            let letter = if at == 0 { 'M' } else { 'L' };
            let _ = write!(shape, "{letter}{x:.1} {upper:.1}");
        }
        for (x, lower, _) in points.iter().rev() {
            let _ = write!(shape, "L{x:.1} {lower:.1}");
        }
        if !shape.is_empty() {
            self.put(format_args!(r#"<path class="{class}" d="{shape}Z"/>"#));
        }
    }

    /// The element, with a description for those who do not see it.
    pub(super) fn finish(self, label: &str) -> String {
        format!(
            "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n{}</svg>",
            self.width,
            self.height,
            escape(label),
            self.body
        )
    }
}

/// A point without neighbours would be an invisible curve.
fn dot(shape: &mut String, alone: Option<(f64, f64)>) {
    if let Some((x, y)) = alone {
        let _ = write!(shape, "L{:.1} {y:.1}", x + 0.5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dangerous_character_is_escaped() {
        let hostile = "<script>alert(\"x\" & 'y')</script>\u{0}\u{1b}[31m";
        let safe = escape(hostile);
        assert_eq!(
            safe,
            "&lt;script&gt;alert(&quot;x&quot; &amp; &#39;y&#39;)&lt;/script&gt;\u{fffd}\u{fffd}[31m"
        );
        let mut svg = Svg::new(10.0, 10.0);
        svg.text("t", (1.0, 2.0), Anchor::Middle, hostile);
        svg.rect("r", (0.0, 0.0), (1.0, -1.0), Some(hostile));
        let text = svg.finish(hostile);
        assert!(!text.contains("<script") && !text.contains('\u{0}'), "{text}");
        assert!(text.contains(r#"text-anchor="middle""#) && text.contains(r#"height="0.0""#));
    }

    #[test]
    fn curves_have_gaps_and_show_lonely_points() {
        let mut svg = Svg::new(10.0, 10.0);
        let points = [Some((0.0, 1.0)), Some((1.0, 2.0)), None, Some((3.0, 4.0)), None];
        svg.path("p", points.into_iter());
        let text = svg.finish("");
        assert!(text.contains(r#"d="M0.0 1.0L1.0 2.0M3.0 4.0L3.5 4.0""#), "{text}");
    }

    #[test]
    fn nothing_is_drawn_without_points() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.path("p", [None, None].into_iter());
        svg.area("a", &[]);
        assert!(!svg.finish("").contains("<path"));
    }
}
