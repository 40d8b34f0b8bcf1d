//! Latency histograms as a log that other HDR tools read (HdrHistogram's interval
//! log, histograms compressed V2): one line per interval without a tag, and one per
//! operation and phase with one.
//!
//! Values are nanoseconds. What was refused, never answered or never sent stands at the
//! end of the range, so that no percentile is flattered. The intervals without a tag are
//! those that were measured: together they are the whole phase. Tested by reading it back.

use crate::exit::Failure;
use crate::latency::{HIGHEST_NS, LOWEST_NS, Latency};
use crate::series::Timeline;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Tag of the intervals that were not measured.
const WARM_UP: &str = "warmup";

/// The latencies of one phase.
pub(crate) struct Part {
    /// What they are: no blanks and commas.
    pub(crate) tag: String,
    /// Since the beginning of the log.
    pub(crate) from: Duration,
    /// How long the phase was.
    pub(crate) length: Duration,
    /// The values.
    pub(crate) latency: Latency,
}

/// The figures over time of a load that began with the log.
pub(crate) struct Intervals<'a> {
    /// All of them.
    pub(crate) timeline: &'a Timeline,
    /// Where the warm-up ended.
    pub(crate) from: Duration,
    /// Where the load did; later only answers came.
    pub(crate) until: Duration,
}

/// Writes the log of something that began at `started`.
pub(crate) fn write(
    path: &Path,
    started: SystemTime,
    intervals: Option<&Intervals<'_>>,
    parts: &[Part],
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    };
    let file = File::create(path).map_err(|error| failed(&error))?;
    let mut file = BufWriter::new(file);
    write_to(&mut file, started, intervals, parts).map_err(|error| failed(&error))?;
    file.flush().map_err(|error| failed(&error))
}

/// A line of the log.
struct Line<'a> {
    histogram: Histogram<u64>,
    from: Duration,
    length: Duration,
    tag: Option<&'a str>,
}

fn write_to(
    out: &mut impl Write,
    started: SystemTime,
    intervals: Option<&Intervals<'_>>,
    parts: &[Part],
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Latency in ns; refused, never answered, never sent: 200 s]")
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1e6)
        .begin_log_with(out, &mut serializer)
        .map_err(|error| text(&error))?;
    let mut put = |line: Line<'_>| {
        let tag = line.tag.and_then(Tag::new);
        let written = log.write_histogram(&line.histogram, line.from, line.length, tag);
        written.map_err(|error| text(&error))
    };
    let mut parts: Vec<&Part> = parts.iter().filter(|part| part.latency.count() > 0).collect();
    parts.sort_by_key(|part| part.from);
    let mut parts = parts.into_iter().map(Part::line).peekable();
    for interval in intervals.into_iter().flat_map(Intervals::lines) {
        while let Some(part) = parts.next_if(|part| part.from <= interval.from) {
            put(part)?;
        }
        put(interval)?;
    }
    parts.try_for_each(put)
}

impl Part {
    fn line(&self) -> Line<'_> {
        let (from, length) = (self.from, self.length);
        Line { histogram: complete(&self.latency), from, length, tag: Some(&self.tag) }
    }
}

impl Intervals<'_> {
    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        let interval_ns = self.timeline.interval_ns();
        let at = move |number: u64| Duration::from_nanos(number * interval_ns);
        let spans = (0..).map(move |number| (at(number), at(number + 1).min(self.until)));
        let latencies = self.timeline.latencies().zip(spans);
        let within = latencies.take_while(|(_, (from, _))| *from < self.until);
        within.map(|((latencies, failed), (from, until))| {
            let mut histogram = empty(3);
            for (us, count) in latencies {
                histogram.saturating_record_n(u64::from(*us) * 1_000, u64::from(*count));
            }
            if failed > 0 {
                histogram.saturating_record_n(HIGHEST_NS, failed);
            }
            // One that holds the end of the warm-up is a part of it.
            let tag = (from < self.from).then_some(WARM_UP);
            Line { histogram, from, length: until.saturating_sub(from), tag }
        })
    }
}

fn empty(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, digits).expect("constant bounds are legal")
}

/// With what never came at the end of the range.
fn complete(latency: &Latency) -> Histogram<u64> {
    let (finite, infinite) = latency.parts();
    let mut all = finite.clone();
    // A count of none would move the largest value all the same.
    if infinite > 0 {
        all.saturating_record_n(HIGHEST_NS, infinite);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::Series;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{
        IntervalLogHistogram, IntervalLogIterator, LogEntry,
    };
    use std::time::UNIX_EPOCH;

    const MS: u64 = 1_000_000;

    fn decode(text: &str) -> Histogram<u64> {
        let bytes = base64(text);
        Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap()
    }

    fn base64(text: &str) -> Vec<u8> {
        let value = |byte: u8| match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'=').map(value).collect();
        let group = |digits: &[u8]| {
            let bits = digits.iter().fold(0_u32, |bits, digit| bits << 6 | u32::from(*digit));
            let bits = bits << (6 * (4 - digits.len()));
            bits.to_be_bytes()[1..digits.len()].to_vec()
        };
        digits.chunks(4).flat_map(group).collect()
    }

    fn started() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_700_000_000)
    }

    fn lines(log: &[u8]) -> Vec<IntervalLogHistogram<'_>> {
        let entries = IntervalLogIterator::new(log).map(Result::unwrap);
        let interval = |entry| match entry {
            LogEntry::Interval(interval) => Some(interval),
            _ => None,
        };
        entries.filter_map(interval).collect()
    }

    #[test]
    fn what_has_no_tag_is_what_was_measured() {
        // Requests every 10 ms for 550 ms, of which 200 are warm-up; the last is answered
        // long after the load, and one that was planned in time is refused.
        let (mut series, mut measured) = (Series::new(0), Latency::new());
        for ms in (0..550).step_by(10) {
            let late = if ms == 540 { 300 } else { 3 };
            series.ok(ms * MS, (ms + late) * MS, 1);
            if ms >= 200 {
                measured.record(late * MS);
            }
        }
        series.failed(500 * MS, "OVERLOADED");
        measured.record_infinite();
        let timeline = series.finish();
        let (from, until) = (Duration::from_millis(200), Duration::from_millis(550));
        let part =
            Part { tag: "all.planned".to_owned(), from, length: until - from, latency: measured };
        let mut log = Vec::new();
        let all = Intervals { timeline: &timeline, from, until };
        write_to(&mut log, started(), Some(&all), &[part]).unwrap();
        let lines = lines(&log);
        let told: Vec<_> = lines
            .iter()
            .map(|line| {
                let (from, length) = (line.start_timestamp(), line.duration());
                (line.tag().map(|tag| tag.as_str()), from.as_millis(), length.as_millis())
            })
            .collect();
        let expected = [
            (Some("warmup"), 0, 100),
            (Some("warmup"), 100, 100),
            (Some("all.planned"), 200, 350),
            (None, 200, 100),
            (None, 300, 100),
            (None, 400, 100),
            (None, 500, 50),
        ];
        assert_eq!(told, expected);
        let mut merged = empty(3);
        let untagged = lines.iter().filter(|line| line.tag().is_none());
        untagged.for_each(|line| merged.add(decode(line.encoded_histogram())).unwrap());
        let whole = decode(lines[2].encoded_histogram());
        assert_eq!((merged.len(), merged.len()), (36, whole.len()));
        for share in [0.5, 0.9, 1.0] {
            let of = |histogram: &Histogram<u64>| histogram.value_at_quantile(share) as f64;
            let ratio = of(&merged) / of(&whole);
            assert!((ratio - 1.0).abs() < 0.02, "{share}: {ratio}");
        }
    }

    #[test]
    fn the_log_can_be_read_back() {
        let mut series = Series::new(0);
        series.ok(10 * MS, 15 * MS, 1);
        series.ok(120 * MS, 140 * MS, 1);
        series.failed(130 * MS, "UNANSWERED");
        let mut latency = Latency::new();
        latency.record(5 * MS);
        latency.record_infinite();
        let part = |tag: &str, latency: &Latency| Part {
            tag: tag.to_owned(),
            from: Duration::from_millis(50),
            length: Duration::from_secs(1),
            latency: latency.clone(),
        };
        let parts = [part("pay.planned", &latency), part("empty", &Latency::new())];
        let mut log = Vec::new();
        let timeline = series.finish();
        let (from, until) = (Duration::ZERO, Duration::from_secs(1));
        let all = Intervals { timeline: &timeline, from, until };
        write_to(&mut log, started(), Some(&all), &parts).unwrap();
        let intervals = lines(&log);
        let starts: Vec<_> =
            intervals.iter().map(|one| one.start_timestamp().as_millis()).collect();
        assert_eq!(starts, [0, 50, 100]);
        let tags: Vec<_> = intervals.iter().map(|one| one.tag().map(|tag| tag.as_str())).collect();
        assert_eq!(tags, [None, Some("pay.planned"), None]);
        let histograms: Vec<_> =
            intervals.iter().map(|one| decode(one.encoded_histogram())).collect();
        assert_eq!(histograms.iter().map(Histogram::len).collect::<Vec<_>>(), [1, 2, 2]);
        let first = histograms[0].max();
        assert!((5 * MS..6 * MS).contains(&first), "{first}");
        assert!(histograms[1].max() >= HIGHEST_NS && histograms[2].max() >= HIGHEST_NS);
        assert!(
            std::str::from_utf8(&log).unwrap().starts_with("#[Histogram log format version 1.3]")
        );
    }

    #[test]
    fn a_file_that_cannot_be_made_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let failure = write(dir.path(), started(), None, &[]).unwrap_err();
        assert!(failure.message.contains("cannot write"), "{}", failure.message);
    }
}
