//! A page: verdicts, tiles, and chapters of figures and tables, in one file that
//! needs nothing else.
//!
//! What a page says is put together elsewhere; here it is only written, and every
//! text escaped. Tested on its structure.

use super::svg::escape;
use std::fmt::Write;

/// The looks, light, dark and on paper.
const STYLE: &str = include_str!("style.css");

/// How something was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grade {
    /// As it should be.
    Good,
    /// Not.
    Bad,
    /// Nothing was asked, or nothing is known.
    Open,
}

impl Grade {
    /// Of a verdict.
    pub(super) fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Open => "open",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Good => "✓",
            Self::Bad => "✗",
            Self::Open => "–",
        }
    }
}

/// A verdict in a few words.
#[derive(Clone, Debug)]
pub(super) struct Badge {
    pub(super) grade: Grade,
    /// What was judged.
    pub(super) subject: String,
    /// The verdict.
    pub(super) verdict: String,
    /// Why.
    pub(super) detail: String,
}

/// A figure to be seen first.
#[derive(Clone, Debug)]
pub(super) struct Tile {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) detail: String,
}

/// A drawing with its words.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) title: String,
    /// What the reader sees.
    pub(super) caption: String,
    /// Classes of colours with their meaning.
    pub(super) legend: Vec<(String, String)>,
    pub(super) svg: String,
}

/// A table; numbers stand to the right.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// A place in a table.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    Text(String),
    Number(String),
    Graded(Grade, String),
}

/// A piece of a chapter.
#[derive(Clone, Debug)]
pub(super) enum Block {
    Figure(Figure),
    /// Two beside each other.
    Pair(Box<[Figure; 2]>),
    Table(Table),
    Note(String),
    Code(String),
    Badges(Vec<Badge>),
    Tiles(Vec<Tile>),
}

/// A chapter.
#[derive(Clone, Debug)]
pub(super) struct Chapter {
    /// 2 stands by itself, 3 is a part of the one before.
    pub(super) level: u8,
    pub(super) title: String,
    pub(super) blocks: Vec<Block>,
}

impl Chapter {
    /// One that stands by itself.
    pub(super) fn new(title: impl Into<String>, blocks: Vec<Block>) -> Self {
        Self { level: 2, title: title.into(), blocks }
    }
}

/// The page.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) badges: Vec<Badge>,
    pub(super) tiles: Vec<Tile>,
    pub(super) chapters: Vec<Chapter>,
    /// Last line.
    pub(super) footer: String,
}

impl Document {
    /// Writes the page.
    pub(super) fn render(&self) -> String {
        let mut page = Page(String::with_capacity(1 << 18));
        let title = escape(&self.title);
        page.put(format_args!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
             style-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header><h1>{title}</h1><p class=\"subtitle\">{}</p></header>\n",
            escape(&self.subtitle)
        ));
        page.badges(&self.badges);
        page.tiles(&self.tiles);
        for chapter in &self.chapters {
            page.chapter(chapter);
        }
        page.put(format_args!(
            "<footer>{}</footer>\n</main>\n</body>\n</html>\n",
            escape(&self.footer)
        ));
        page.0
    }
}

struct Page(String);

impl Page {
    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = self.0.write_fmt(text);
    }

    fn badges(&mut self, badges: &[Badge]) {
        if badges.is_empty() {
            return;
        }
        self.put(format_args!("<ul class=\"badges\">\n"));
        for badge in badges {
            self.put(format_args!(
                "<li class=\"badge {}\"><span class=\"sign\" aria-hidden=\"true\">{}</span>\
                 <div><span class=\"subject\">{}</span><strong>{}</strong>\
                 <span class=\"detail\">{}</span></div></li>\n",
                badge.grade.class(),
                badge.grade.sign(),
                escape(&badge.subject),
                escape(&badge.verdict),
                escape(&badge.detail)
            ));
        }
        self.put(format_args!("</ul>\n"));
    }

    fn tiles(&mut self, tiles: &[Tile]) {
        if tiles.is_empty() {
            return;
        }
        self.put(format_args!("<dl class=\"tiles\">\n"));
        for tile in tiles {
            self.put(format_args!(
                "<div class=\"tile\"><dt>{}</dt><dd>{}</dd><dd class=\"detail\">{}</dd></div>\n",
                escape(&tile.name),
                escape(&tile.value),
                escape(&tile.detail)
            ));
        }
        self.put(format_args!("</dl>\n"));
    }

    fn chapter(&mut self, chapter: &Chapter) {
        let level = chapter.level.clamp(2, 4);
        let title = escape(&chapter.title);
        self.put(format_args!("<section class=\"level-{level}\">\n<h{level}>{title}</h{level}>\n"));
        for block in &chapter.blocks {
            self.block(block);
        }
        self.put(format_args!("</section>\n"));
    }

    fn block(&mut self, block: &Block) {
        match block {
            Block::Figure(figure) => self.figure(figure),
            Block::Pair(figures) => {
                self.put(format_args!("<div class=\"pair\">\n"));
                figures.iter().for_each(|figure| self.figure(figure));
                self.put(format_args!("</div>\n"));
            }
            Block::Table(table) => self.table(table),
            Block::Note(text) => self.put(format_args!("<p>{}</p>\n", escape(text))),
            Block::Code(text) => {
                self.put(format_args!("<pre><code>{}</code></pre>\n", escape(text)));
            }
            Block::Badges(badges) => self.badges(badges),
            Block::Tiles(tiles) => self.tiles(tiles),
        }
    }

    fn figure(&mut self, figure: &Figure) {
        self.put(format_args!("<figure>\n"));
        if !figure.title.is_empty() {
            self.put(format_args!("<h4>{}</h4>\n", escape(&figure.title)));
        }
        if !figure.legend.is_empty() {
            self.put(format_args!("<ul class=\"legend\">"));
            for (class, label) in &figure.legend {
                let (class, label) = (escape(class), escape(label));
                self.put(format_args!("<li><span class=\"key {class}\"></span>{label}</li>"));
            }
            self.put(format_args!("</ul>\n"));
        }
        // The drawing escaped its own texts.
        self.put(format_args!("<div class=\"plot\">{}</div>\n", figure.svg));
        self.put(format_args!("<figcaption>{}</figcaption>\n</figure>\n", escape(&figure.caption)));
    }

    fn head(&mut self, table: &Table) {
        self.put(format_args!("<thead><tr>"));
        for (at, name) in table.head.iter().enumerate() {
            let number =
                matches!(table.rows.first().and_then(|row| row.get(at)), Some(Cell::Number(_)));
            let class = if number { " class=\"number\"" } else { "" };
            self.put(format_args!("<th scope=\"col\"{class}>{}</th>", escape(name)));
        }
        self.put(format_args!("</tr></thead>\n"));
    }

    fn table(&mut self, table: &Table) {
        let narrow = if table.head.len() <= 3 { " narrow" } else { "" };
        self.put(format_args!("<div class=\"table{narrow}\"><table>\n"));
        if !table.caption.is_empty() {
            self.put(format_args!("<caption>{}</caption>\n", escape(&table.caption)));
        }
        if table.head.iter().any(|name| !name.is_empty()) {
            self.head(table);
        }
        self.put(format_args!("<tbody>\n"));
        for row in &table.rows {
            self.put(format_args!("<tr>"));
            for cell in row {
                match cell {
                    Cell::Text(text) => self.put(format_args!("<td>{}</td>", escape(text))),
                    Cell::Number(text) => {
                        self.put(format_args!("<td class=\"number\">{}</td>", escape(text)));
                    }
                    Cell::Graded(grade, text) => self.put(format_args!(
                        "<td class=\"graded {}\"><span aria-hidden=\"true\">{}</span> {}</td>",
                        grade.class(),
                        grade.sign(),
                        escape(text)
                    )),
                }
            }
            self.put(format_args!("</tr>\n"));
        }
        self.put(format_args!("</tbody>\n</table></div>\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        let text = text.to_owned();
        let figure = Figure {
            title: text.clone(),
            caption: text.clone(),
            legend: vec![("s1".to_owned(), text.clone())],
            svg: "<svg></svg>".to_owned(),
        };
        let cells = vec![
            Cell::Text(text.clone()),
            Cell::Number(text.clone()),
            Cell::Graded(Grade::Bad, text.clone()),
        ];
        let table = Table { caption: text.clone(), head: vec![text.clone(); 3], rows: vec![cells] };
        let badge = Badge {
            grade: Grade::Good,
            subject: text.clone(),
            verdict: text.clone(),
            detail: text.clone(),
        };
        let tile = Tile { name: text.clone(), value: text.clone(), detail: text.clone() };
        let blocks = vec![
            Block::Figure(figure.clone()),
            Block::Pair(Box::new([figure.clone(), figure])),
            Block::Table(table),
            Block::Note(text.clone()),
            Block::Code(text.clone()),
            Block::Badges(vec![badge.clone()]),
            Block::Tiles(vec![tile.clone()]),
        ];
        Document {
            title: text.clone(),
            subtitle: text.clone(),
            badges: vec![badge],
            tiles: vec![tile],
            chapters: vec![Chapter::new(text.clone(), blocks)],
            footer: text,
        }
    }

    #[test]
    fn every_text_is_escaped_wherever_it_stands() {
        let page = document("<img src=x onerror=alert(1)>\"'&").render();
        assert!(!page.contains("<img"), "{page}");
        assert_eq!(page.matches("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;").count(), 35);
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = document("x").render();
        for load in
            ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<script", "<link"]
        {
            assert!(!page.contains(load), "{load}");
        }
    }

    #[test]
    fn elements_are_closed() {
        let page = document("x").render();
        for name in
            ["main", "section", "figure", "table", "tr", "td", "ul", "li", "dl", "div", "pre"]
        {
            let open = page.matches(&format!("<{name}>")).count()
                + page.matches(&format!("<{name} ")).count();
            assert_eq!(open, page.matches(&format!("</{name}>")).count(), "{name}");
        }
    }
}
