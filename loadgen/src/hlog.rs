//! Latency histograms as a log that other HDR tools read (HdrHistogram's interval
//! log, histograms compressed V2): one line per interval without a tag, and one per
//! operation and phase with one.
//!
//! Values are nanoseconds. What was never answered stands at the end of the range, so
//! that no percentile is flattered. Tested by reading it back.

use crate::exit::Failure;
use crate::measure::{HIGHEST_NS, LOWEST_NS, Latency};
use crate::series::Timeline;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// The latencies of one phase.
pub(crate) struct Part {
    /// What they are: no blanks and commas.
    pub(crate) tag: String,
    /// Since the beginning of the load.
    pub(crate) from: Duration,
    /// How long the phase was.
    pub(crate) length: Duration,
    /// The values.
    pub(crate) latency: Latency,
}

/// Writes the log of a load that began at `started_unix`.
pub(crate) fn write(
    path: &Path,
    started_unix: u64,
    timeline: &Timeline,
    parts: &[Part],
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::environment(format_args!("cannot write {}: {error}", path.display()))
    };
    let file = File::create(path).map_err(|error| failed(&error))?;
    let mut file = BufWriter::new(file);
    write_to(&mut file, started_unix, timeline, parts).map_err(|error| failed(&error))?;
    file.flush().map_err(|error| failed(&error))
}

fn write_to(
    out: &mut impl Write,
    started_unix: u64,
    timeline: &Timeline,
    parts: &[Part],
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let started = UNIX_EPOCH + Duration::from_secs(started_unix);
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Latency in nanoseconds; never answered counts as 200 s]")
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1e6)
        .begin_log_with(out, &mut serializer)
        .map_err(|error| text(&error))?;
    let mut put =
        |histogram: &Histogram<u64>, from: Duration, length: Duration, tag: Option<&str>| {
            let tag = tag.and_then(Tag::new);
            log.write_histogram(histogram, from, length, tag).map_err(|error| text(&error))
        };
    let mut parts: Vec<&Part> = parts.iter().filter(|part| part.latency.count() > 0).collect();
    parts.sort_by_key(|part| part.from);
    let mut parts = parts.into_iter().peekable();
    let interval = Duration::from_nanos(timeline.interval_ns());
    let mut histogram = empty(3);
    let mut from = Duration::ZERO;
    for (latencies, never) in timeline.latencies() {
        while let Some(part) = parts.next_if(|part| part.from <= from) {
            put(&complete(&part.latency), part.from, part.length, Some(&part.tag))?;
        }
        histogram.reset();
        for (us, count) in latencies {
            histogram.saturating_record_n(u64::from(*us) * 1_000, u64::from(*count));
        }
        if never > 0 {
            histogram.saturating_record_n(HIGHEST_NS, never.into());
        }
        put(&histogram, from, interval, None)?;
        from += interval;
    }
    parts
        .try_for_each(|part| put(&complete(&part.latency), part.from, part.length, Some(&part.tag)))
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
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

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

    #[test]
    fn the_log_can_be_read_back() {
        let mut series = Series::new(0);
        series.ok(10 * MS, 15 * MS, 1);
        series.ok(120 * MS, 140 * MS, 1);
        series.never(130 * MS);
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
        write_to(&mut log, 1_700_000_000, &series.finish(), &parts).unwrap();
        let entries: Vec<LogEntry<'_>> =
            IntervalLogIterator::new(&log).map(Result::unwrap).collect();
        let intervals: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
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
        let failure = write(dir.path(), 0, &Timeline::default(), &[]).unwrap_err();
        assert!(failure.message.contains("cannot write"), "{}", failure.message);
    }
}
