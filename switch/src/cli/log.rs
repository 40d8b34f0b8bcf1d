//! `payswitch log`: checking and printing a log without owning it, beside a
//! running site or after its end.

mod start;

use self::start::Start;
use super::{Exit, Failure, print};
use crate::config::hex;
use crate::engine::record::Records;
use crate::replica::HardState;
use clap::Subcommand;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use storage::{Frame, FrameAt, FrameKind, VerifyError, VerifyReport};

/// How often a log is read whose checkpoints a running site replaces meanwhile.
const ROUNDS_MAX: u32 = 5;

#[derive(Subcommand, Debug)]
pub(super) enum LogCommand {
    /// Check every checksum, position and hash chain, the checkpoints, and whether the
    /// log leads to them. Exit code 2: damaged; the message names file and offset.
    Verify {
        /// A site's data directory, or one worker's log in it.
        dir: PathBuf,
    },
    /// Print the log as JSON lines, one per record.
    Dump {
        /// A site's data directory, or one worker's log in it.
        dir: PathBuf,
        /// Only this shard.
        #[arg(long)]
        shard: Option<u16>,
        /// Only blocks from this index on.
        #[arg(long, default_value_t = 0, value_name = "INDEX")]
        from: u64,
        /// One line per frame (with chain values and hard states) instead.
        #[arg(long)]
        frames: bool,
    },
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        let exit = match error {
            VerifyError::Damage(_) | VerifyError::NoLog(_) => Exit::Usage,
            VerifyError::Disk(_) => Exit::Environment,
        };
        Self::new(exit, error)
    }
}

/// Runs one log command.
pub(super) fn run(out: &mut impl Write, command: LogCommand) -> Result<(), Failure> {
    match command {
        LogCommand::Verify { dir } => logs(&dir)?.iter().try_for_each(|log| verify(out, log)),
        LogCommand::Dump { dir, shard, from, frames } => {
            let filter = Filter { shard, from, frames };
            logs(&dir)?.iter().try_for_each(|log| dump(out, log, &filter))
        }
    }
}

/// The logs in `dir`: itself, or its workers'. None at all is an error: an empty
/// answer must not look like a sound log.
fn logs(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unreadable =
        |error| Failure::new(Exit::Usage, format_args!("cannot read {}: {error}", dir.display()));
    let mut workers = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "wal") {
            return Ok(vec![dir.to_owned()]);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("worker-") && path.is_dir() {
            workers.push(path);
        }
    }
    if workers.is_empty() {
        let dir = dir.display();
        let text = format_args!("no log in {dir}; give a site's data directory or a worker's log");
        return Err(Failure::new(Exit::Usage, text));
    }
    workers.sort();
    Ok(workers)
}

/// What was found in one log.
struct Checked {
    report: VerifyReport,
    records: u64,
    start: Start,
    /// Why a start would be refused.
    refused: Option<String>,
}

/// Checks the log and what a start would make of it. A running site writes
/// checkpoints and gives up log meanwhile: no verdict is out of two times.
fn check(dir: &Path) -> Result<Checked, Failure> {
    for _ in 0..ROUNDS_MAX {
        let mut start = Start::load(dir)?;
        let (report, records) = read(dir, &mut start)?;
        let refused = start.refused(&report.shards);
        let is_sound = refused.is_none() && start.unsound.is_empty();
        if is_sound || start.is_current(dir)? {
            return Ok(Checked { report, records, start, refused });
        }
    }
    let text = format_args!("the checkpoints in {} change too fast", dir.display());
    Err(Failure::new(Exit::Environment, text))
}

/// Reads every record too: a log that storage finds sound may still have been
/// written by another version of the engine.
fn read(dir: &Path, start: &mut Start) -> Result<(VerifyReport, u64), Failure> {
    let mut records = 0;
    let mut unreadable = None;
    let report = storage::read(dir, &mut |at| {
        start.frame(&at.frame);
        if at.frame.kind == FrameKind::Block && unreadable.is_none() {
            match count_block(&at) {
                Ok(count) => records += count,
                Err(failure) => unreadable = Some(failure),
            }
        }
    })?;
    match unreadable {
        Some(failure) => Err(failure),
        None => Ok((report, records)),
    }
}

fn verify(out: &mut impl Write, dir: &Path) -> Result<(), Failure> {
    let Checked { report, records, start, refused } = check(dir)?;
    let VerifyReport { cluster, worker, segments, batches, frames, blocks, .. } = &report;
    print(
        out,
        format_args!(
            "{}: cluster {cluster:016x}, worker {worker}\n\
             segments {segments}\nbatches {batches}\nframes {frames}\nblocks {blocks}\nrecords {records}\n\
             checkpoints {}\n",
            dir.display(),
            start.sound
        ),
    )?;
    for end in &report.shards {
        let (shard, index, chain) = (end.shard, end.index, hex::encode(&end.chain));
        print(
            out,
            format_args!("shard {shard} last_index {index}\nshard {shard} chain {chain}\n"),
        )?;
    }
    print_end(out, &report)?;
    for unsound in &start.unsound {
        print(out, format_args!("not sound: {unsound}; a start passes over it\n"))?;
    }
    match refused.or(start.unsound.into_iter().next()) {
        Some(text) => Err(Failure::new(Exit::Usage, format_args!("{}: {text}", dir.display()))),
        None => print(out, format_args!("sound\n")),
    }
}

/// How the log ends.
fn print_end(out: &mut impl Write, report: &VerifyReport) -> Result<(), Failure> {
    let end = match report.sealed {
        true => "sealed: a damaged last batch would be noticed",
        false => "not sealed: a damaged last batch would look torn",
    };
    print(out, format_args!("end {end}\n"))?;
    let Some(torn) = &report.torn else { return Ok(()) };
    let (file, offset, bytes) = (torn.file.display(), torn.offset, torn.bytes);
    let text = format_args!(
        "torn tail: {bytes} bytes in {file} at offset {offset}, never acknowledged; cut at the next start\n"
    );
    print(out, text)
}

fn count_block(at: &FrameAt<'_>) -> Result<u64, Failure> {
    let mut count = 0;
    for record in Records::new(at.frame.payload).map_err(|error| at_block(at, error))? {
        record.map_err(|error| at_block(at, error))?;
        count += 1;
    }
    Ok(count)
}

fn at_block(at: &FrameAt<'_>, error: impl std::fmt::Display) -> Failure {
    let (shard, index) = (at.frame.shard, at.frame.index);
    let (segment, offset) = (at.at.segment, at.at.offset);
    Failure::new(
        Exit::Usage,
        format_args!(
            "{segment:016x}.wal at offset {offset}: block {index} of shard {shard}: {error}"
        ),
    )
}

/// What `log dump` shows.
struct Filter {
    shard: Option<u16>,
    from: u64,
    frames: bool,
}

impl Filter {
    fn shows(&self, frame: &Frame<'_>) -> bool {
        let block = frame.kind == FrameKind::Block;
        self.shard.is_none_or(|shard| shard == frame.shard)
            && (!block || frame.index >= self.from)
            && (block || self.frames)
    }
}

fn dump(out: &mut impl Write, dir: &Path, filter: &Filter) -> Result<(), Failure> {
    let mut ended: Option<Result<(), Failure>> = None;
    let report = storage::read(dir, &mut |at| {
        if ended.is_none() && filter.shows(&at.frame) {
            ended = dump_frame(out, &at, filter).err();
        }
    })?;
    if report.missed > 0 && ended.is_none() {
        let (missed, dir) = (report.missed, dir.display());
        eprintln!("{dir}: the running site gave up {missed} frames before they were read");
    }
    ended.unwrap_or(Ok(()))
}

/// Prints one frame. `Err` ends the walk: with a failure, or without one when
/// the reader of our output has gone away.
fn dump_frame(
    out: &mut impl Write,
    at: &FrameAt<'_>,
    filter: &Filter,
) -> Result<(), Result<(), Failure>> {
    let lines = match filter.frames {
        true => format!("{}\n", frame(at)),
        false => records(at).map_err(Err)?,
    };
    out.write_all(lines.as_bytes()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(Failure::new(Exit::Environment, format_args!("cannot write the output: {error}"))),
    })
}

/// The block's records, each as one object that begins with its place.
fn records(at: &FrameAt<'_>) -> Result<String, Failure> {
    let Frame { shard, term, index, payload, .. } = at.frame;
    let mut lines = String::new();
    let mut record_json = String::new();
    let records = Records::new(payload).map_err(|error| at_block(at, error))?;
    for (number, record) in records.enumerate() {
        record_json.clear();
        record.map_err(|error| at_block(at, error))?.to_json(&mut record_json);
        let fields = record_json.strip_prefix('{').unwrap_or(&record_json);
        // Writing to a String cannot fail.
        let _ = writeln!(
            lines,
            "{{\"shard\":{shard},\"index\":{index},\"term\":{term},\"record\":{number},{fields}"
        );
    }
    Ok(lines)
}

fn frame(at: &FrameAt<'_>) -> serde_json::Value {
    let frame = &at.frame;
    let mut line = json!({
        "segment": at.at.segment,
        "offset": at.at.offset,
        "batch": at.batch,
        "shard": frame.shard,
    });
    let content = match frame.kind {
        FrameKind::Block => json!({
            "kind": "block",
            "term": frame.term,
            "index": frame.index,
            "chain": hex::encode(&frame.chain),
            "bytes": frame.payload.len(),
        }),
        FrameKind::HardState => match HardState::decode(frame.payload) {
            Some(HardState { term, vote, commit }) => {
                json!({ "kind": "hard_state", "term": term, "vote": vote, "commit": commit })
            }
            None => json!({ "kind": "hard_state", "unreadable": hex::encode(frame.payload) }),
        },
        _ => json!({ "kind": format!("{:?}", frame.kind), "index": frame.index }),
    };
    if let (Some(line), serde_json::Value::Object(content)) = (line.as_object_mut(), content) {
        line.extend(content);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::record::Record;
    use crate::replica::{Base, Members};
    use storage::{Backend, Log, LogConfig, Notify, chain_next};

    const CLUSTER: u64 = 0xabc;

    const AT_US: u64 = 1_700_000_000_000_000;

    /// `index` records.
    fn block(index: u64) -> Vec<u8> {
        let mut block = Vec::new();
        for event_id in 1..=index {
            Record::Delivered { event_id, taken: true }.append(AT_US + event_id, &mut block);
        }
        block
    }

    /// Writes `blocks` blocks of two shards, each batch durable by itself.
    fn write_log(dir: &Path, blocks: u64) {
        write_payloads(dir, blocks, block);
    }

    fn config(dir: &Path) -> LogConfig {
        LogConfig {
            dir: dir.to_owned(),
            backend: Backend::Blocking,
            cluster: CLUSTER,
            worker: 0,
            segment_bytes: 1 << 20,
            batch_max_bytes: 64 << 10,
            reserve_bytes: 0,
            idle_seal_us: 1_000,
        }
    }

    fn append_hard_state(log: &mut Log, shard: u16) {
        let hard_state = HardState { term: 1, vote: 1, commit: 0 }.encode();
        let (kind, term, index, chain) = (FrameKind::HardState, 1, 0, [0; 32]);
        log.append(&Frame { kind, shard, term, index, chain, payload: &hard_state }).unwrap();
    }

    fn flush(log: &mut Log, notify: &Notify) {
        while log.unsubmitted() || log.in_flight() {
            if !log.in_flight() {
                log.submit().unwrap();
            }
            if log.poll().unwrap().is_none() {
                notify.wait(10_000);
            }
        }
    }

    fn write_payloads(dir: &Path, blocks: u64, payload: fn(u64) -> Vec<u8>) {
        let notify = Notify::new().unwrap();
        let (mut log, _) = Log::open(config(dir), notify.clone(), &mut |_| Ok(())).unwrap();
        for shard in [3, 5] {
            append_hard_state(&mut log, shard);
        }
        let mut chains = [[0; 32]; 2];
        for index in 1..=blocks {
            for (chain, shard) in chains.iter_mut().zip([3, 5]) {
                let payload = payload(index);
                *chain = chain_next(chain, &payload);
                let (kind, chain) = (FrameKind::Block, *chain);
                let frame = Frame { kind, shard, term: 1, index, chain, payload: &payload };
                log.append(&frame).unwrap();
            }
            flush(&mut log, &notify);
        }
        log.close().unwrap();
    }

    fn run_log(command: LogCommand) -> Result<String, Failure> {
        let mut out = Vec::new();
        run(&mut out, command)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn a_sound_log_is_counted() {
        let data = tempfile::tempdir().unwrap();
        write_log(&data.path().join("worker-0"), 4);
        for dir in [data.path().to_owned(), data.path().join("worker-0")] {
            let text = run_log(LogCommand::Verify { dir }).unwrap();
            for part in [
                "0000000000000abc",
                "blocks 8\n",
                "records 20\n",
                "shard 3 last_index 4\n",
                "checkpoints 0\n",
                "end sealed",
                "sound\n",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
            let chain = (1..=4).fold([0; 32], |chain, index| chain_next(&chain, &block(index)));
            let chain = format!("shard 5 chain {}\n", hex::encode(&chain));
            assert!(text.contains(&chain), "{chain}: {text}");
        }
    }

    /// Checkpoints of both shards at their last blocks, and nothing in the log that
    /// they hold, as a site leaves it that gives log up.
    fn released(data: &Path) -> PathBuf {
        let dir = data.join("worker-0");
        write_log(&dir, 300);
        let ends = storage::verify(&dir).unwrap().shards;
        let ends: Vec<_> = ends.into_iter().filter(|end| end.index > 0).collect();
        let notify = Notify::new().unwrap();
        let (mut log, _) = Log::open(config(&dir), notify.clone(), &mut |_| Ok(())).unwrap();
        let members = Members::new(&[1]);
        let mut checkpoints = Vec::new();
        for end in ends {
            let (shard, index, chain) = (end.shard, end.index, end.chain);
            let base = Base { index, term: 1, chain, members, received: false };
            let mut writer =
                log.checkpoints().create(base.checkpoint(shard), &base.note()).unwrap();
            writer.chunk(b"a state").unwrap();
            checkpoints.push(writer.commit().unwrap());
            append_hard_state(&mut log, shard);
        }
        flush(&mut log, &notify);
        log.plan_release(&checkpoints).unwrap().expect("something to release").run().unwrap();
        log.close().unwrap();
        dir
    }

    fn checkpoint_file(dir: &Path, shard: u16) -> PathBuf {
        dir.join(format!("{shard:04x}-{:016x}.checkpoint", 300))
    }

    #[test]
    fn a_log_without_the_checkpoints_that_it_rests_on_is_not_sound() {
        let data = tempfile::tempdir().unwrap();
        let dir = released(data.path());
        let verify = || run_log(LogCommand::Verify { dir: dir.clone() });
        let text = verify().unwrap();
        assert!(text.contains("checkpoints 2\n") && text.ends_with("sound\n"), "{text}");

        let file = checkpoint_file(&dir, 5);
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[140] ^= 1;
        std::fs::write(&file, flipped).unwrap();
        let failure = verify().unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("shard 5 begins with block"), "{}", failure.message);

        std::fs::remove_file(&file).unwrap();
        let failure = verify().unwrap_err();
        assert!(failure.message.contains("shard 5 begins with block"), "{}", failure.message);

        std::fs::write(&file, whole).unwrap();
        verify().unwrap();
    }

    /// A start would do without it; whoever asks is told all the same.
    #[test]
    fn a_damaged_checkpoint_is_named_with_file_and_offset() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("worker-0");
        write_log(&dir, 300);
        let chain = [0; 32];
        let (mut log, _) =
            Log::open(config(&dir), Notify::new().unwrap(), &mut |_| Ok(())).unwrap();
        let base =
            Base { index: 300, term: 1, chain, members: Members::new(&[1]), received: false };
        log.checkpoints().create(base.checkpoint(5), &base.note()).unwrap().commit().unwrap();
        append_hard_state(&mut log, 3);
        log.close().unwrap();
        let failure = run_log(LogCommand::Verify { dir: dir.clone() }).unwrap_err();
        let text = "shard 5 does not lead to its checkpoint of block 300";
        assert!(failure.message.contains(text), "{}", failure.message);

        let file = checkpoint_file(&dir, 5);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[130] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let failure = run_log(LogCommand::Verify { dir }).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let name = file.file_name().unwrap().to_str().unwrap();
        let is_named = failure.message.contains(name) && failure.message.contains("offset 128");
        assert!(is_named, "{}", failure.message);
    }

    #[test]
    fn a_flipped_bit_is_named_with_file_and_offset() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().join("worker-0");
        write_log(&dir, 4);
        let entries = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let segment = entries.filter(|path| path.extension().is_some()).min().unwrap();
        let mut bytes = std::fs::read(&segment).unwrap();
        let second = block(2);
        let at = bytes.windows(second.len()).position(|window| window == second).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        for command in [
            LogCommand::Verify { dir: dir.clone() },
            LogCommand::Dump { dir: dir.clone(), shard: None, from: 0, frames: false },
        ] {
            let failure = run_log(command).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            let file = segment.file_name().unwrap().to_str().unwrap();
            let named = failure.message.contains(file) && failure.message.contains("offset");
            assert!(named, "{}", failure.message);
        }
    }

    #[test]
    fn dumps_are_json_lines_and_can_be_narrowed() {
        let data = tempfile::tempdir().unwrap();
        write_log(&data.path().join("worker-0"), 4);
        let dump = |shard, from, frames| {
            let dir = data.path().to_owned();
            let text = run_log(LogCommand::Dump { dir, shard, from, frames }).unwrap();
            let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
            text.lines().map(parse).collect::<Vec<_>>()
        };
        assert_eq!(dump(None, 0, false).len(), 20);
        let narrow = dump(Some(5), 3, false);
        assert_eq!(narrow.len(), 3 + 4);
        assert!(narrow.iter().all(|line| line["shard"] == 5 && line["kind"] == "delivered"));
        let place = |line: &serde_json::Value| {
            ["index", "record", "at_us"].map(|key| line[key].as_u64().unwrap())
        };
        assert_eq!(place(&narrow[2]), [3, 2, AT_US + 3]);

        let frames = dump(None, 0, true);
        assert_eq!(frames.len(), 2 + 8);
        assert_eq!((&frames[0]["kind"], &frames[0]["vote"]), (&json!("hard_state"), &json!(1)));
        assert_eq!((&frames[2]["kind"], &frames[2]["index"]), (&json!("block"), &json!(1)));
        assert_eq!(frames[2]["bytes"], block(1).len());
    }

    #[test]
    fn records_of_another_version_are_named_by_their_place() {
        let data = tempfile::tempdir().unwrap();
        let dir = data.path().to_owned();
        write_payloads(&data.path().join("worker-0"), 2, |_| vec![0xff; 100]);
        let failure = run_log(LogCommand::Verify { dir }).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let place = ".wal at offset ";
        assert!(failure.message.contains(place), "{}", failure.message);
        assert!(failure.message.contains("block 1 of shard 3"), "{}", failure.message);
    }

    #[test]
    fn nothing_to_check_is_no_success() {
        let empty = tempfile::tempdir().unwrap();
        for dir in [empty.path().to_owned(), empty.path().join("missing")] {
            let failure = run_log(LogCommand::Verify { dir }).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
        }
    }
}
