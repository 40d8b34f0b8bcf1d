//! `payswitch recover --force-quorum`: on a survivor, after a majority of the
//! sites was lost for good. Shows what this site has and what may be missing,
//! demands a typed confirmation, and writes into the log that this site alone
//! decides. Never on a running site: the log is locked by its process.

use super::{Exit, Failure, finish, print};
use crate::config::Config;
use crate::replica::{
    Append, Base, HardState, Recovering, ReplicaConfig, Timing, preference_among, sites,
};
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use storage::{
    Checkpoints, Closed, DiskError, FRAME_HEADER_BYTES, Frame, FrameKind, Log, LogError, Notify,
    Replay, ReplayError, ShardEnd,
};

/// Longest confirmation that is read, bytes.
const PHRASE_MAX: u64 = 256;
/// Pause between two looks at a write, microseconds.
const WAIT_US: u64 = 10_000;

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let exit = match error {
            LogError::Config(_)
            | LogError::Damage(_)
            | LogError::Replay { .. }
            | LogError::Refused(_) => Exit::Usage,
            _ => Exit::Environment,
        };
        Self::new(exit, error)
    }
}

/// Runs the command; the confirmation comes from `input`.
pub(super) fn run(
    out: &mut impl Write,
    input: &mut impl BufRead,
    config: &Path,
) -> Result<(), Failure> {
    let config = Config::load(config)?;
    let log_config = config.worker_log();
    if !log_config.dir.is_dir() {
        let text = format!("no log in {}: nothing to recover", log_config.dir.display());
        return Err(Failure::new(Exit::Usage, text));
    }
    let unavailable = |error: std::io::Error| Failure::new(Exit::Environment, error);
    let notify = Notify::new().map_err(unavailable)?;
    let closed = Closed::lock(&log_config, notify.clone())?;
    let mut read = ReadBack(begin(out, &config, closed.checkpoints())?);
    let (mut log, _) = closed.open_judged(&mut read)?;
    let ReadBack(shards) = read;
    tell(out, &config, &shards)?;
    confirm(out, input, &config)?;
    let at_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let mut forced = 0;
    for (number, shard) in (0..).zip(shards) {
        let frames = shard.force_alone(at_us).map_err(|error| Failure::new(Exit::Usage, error))?;
        forced += u64::from(!frames.is_empty());
        for frame in &frames {
            put(&mut log, &notify, number, frame)?;
        }
    }
    flush(&mut log, &notify)?;
    log.close()?;
    print(
        out,
        format_args!(
            "{forced} of {} shards forced, the others were so already\n{}",
            config.shards,
            next_steps(&config)
        ),
    )
}

fn replica(config: &Config, shard: u16) -> ReplicaConfig {
    let (voters, witnesses) = (config.first_voters(), config.witnesses());
    ReplicaConfig {
        shard,
        site: u64::from(config.site),
        preference: preference_among(shard, &voters, &witnesses),
        voters,
        witnesses,
        seed: config.cluster,
        tail_bytes_max: 0,
        timing: Timing::default(),
    }
}

/// The shards as a start would begin with them: behind their newest sound
/// checkpoints, of which the states are not needed here.
fn begin(
    out: &mut impl Write,
    config: &Config,
    mut checkpoints: Option<Checkpoints>,
) -> Result<Vec<Recovering>, Failure> {
    let mut shards = Vec::new();
    for shard in 0..config.shards {
        let newest = match &mut checkpoints {
            Some(checkpoints) => newest(out, config, checkpoints, shard)?,
            None => None,
        };
        let replica = replica(config, shard);
        shards.push(match newest {
            Some(base) => Recovering::from_base(replica, base),
            None => Recovering::new(replica),
        });
    }
    Ok(shards)
}

/// Where the newest sound checkpoint of a shard stands.
fn newest(
    out: &mut impl Write,
    config: &Config,
    checkpoints: &mut Checkpoints,
    shard: u16,
) -> Result<Option<Base>, Failure> {
    let unreadable = |error: DiskError| Failure::new(Exit::Environment, error);
    for index in checkpoints.list(shard).map_err(unreadable)? {
        let why = match checkpoints.read(shard, index, &mut |_| {}) {
            Ok((of, note)) => match Base::of(of, note, &config.first_voters()) {
                Some(base) => return Ok(Some(base)),
                None => "its note cannot be read".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        print(out, format_args!("checkpoint of shard {shard} at {index} is not used: {why}\n"))?;
    }
    Ok(None)
}

/// The shards while the log is read.
struct ReadBack(Vec<Recovering>);

impl Replay for ReadBack {
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), ReplayError> {
        take(&mut self.0, &frame).map_err(ReplayError::new)
    }

    fn end(&mut self, ends: &[ShardEnd]) -> Result<(), ReplayError> {
        for (number, shard) in (0..).zip(&mut self.0) {
            let end = ends.iter().find(|end| end.shard == number);
            let checked = shard.check(end.map(|end| end.index));
            checked.map_err(|error| ReplayError::new(error.to_string()))?;
        }
        Ok(())
    }
}

fn take(shards: &mut [Recovering], frame: &Frame<'_>) -> Result<(), String> {
    let shard =
        shards.get_mut(usize::from(frame.shard)).ok_or("a shard that is not served here")?;
    let taken = match frame.kind {
        FrameKind::Block => {
            shard.block(frame.index, frame.term, frame.chain, frame.payload).map(drop)
        }
        FrameKind::HardState => shard.hard_state(frame.payload),
        FrameKind::Base => shard.rebased(frame.index, frame.term, frame.chain),
        other => return Err(format!("a frame of kind {other:?}")),
    };
    taken.map_err(|error| error.to_string())?;
    while shard.next_committed().is_some() {}
    Ok(())
}

/// What this site has, and what may be missing.
fn tell(out: &mut impl Write, config: &Config, shards: &[Recovering]) -> Result<(), Failure> {
    let site = config.site;
    print(out, format_args!("site {site} of cluster {:016x}\n", config.cluster))?;
    let mut beyond_all = 0;
    for (number, shard) in shards.iter().enumerate() {
        let ((last, term), committed) = (shard.last(), shard.committed());
        let beyond = last.saturating_sub(committed);
        beyond_all += beyond;
        let members = shard.members();
        let voters: Vec<_> =
            sites(members.voters | members.outgoing).map(|site| site.to_string()).collect();
        print(
            out,
            format_args!(
                "shard {number}: last block {last} of term {term}, {committed} known committed, \
                 {beyond} beyond; voters {}\n",
                voters.join(" ")
            ),
        )?;
    }
    print(
        out,
        format_args!(
            "\n\
             What may be missing: every block that the lost sites made durable among themselves \n\
             and that has not reached this site. Payments in it were acknowledged; this site will \n\
             not know them, and a gateway that sends one again may have it charged again. Compare \n\
             with the channels' bills before you trust the result.\n\
             The {beyond_all} blocks beyond the known commit are kept and count from now on.\n\
             The lost sites must never run again with the logs they had: together they would still \n\
             be a majority by their own account. Destroy those logs, or make sure that they \n\
             cannot start, before you go on.\n\n"
        ),
    )
}

fn confirm(out: &mut impl Write, input: &mut impl BufRead, config: &Config) -> Result<(), Failure> {
    let phrase = format!("lose acknowledged payments of {:016x}", config.cluster);
    print(out, format_args!("To go on, type: {phrase}\n"))?;
    finish(out)?;
    let mut typed = String::new();
    let read = input.take(PHRASE_MAX).read_line(&mut typed);
    read.map_err(|error| Failure::new(Exit::Usage, format!("no confirmation: {error}")))?;
    if typed.trim() == phrase {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "not confirmed: the members were not changed"))
}

fn put(log: &mut Log, notify: &Notify, shard: u16, append: &Append) -> Result<(), Failure> {
    let state;
    let frame = match append {
        Append::Block(entry, chain) => Frame {
            kind: FrameKind::Block,
            shard,
            term: entry.term,
            index: entry.index,
            chain: *chain,
            payload: &entry.data,
        },
        Append::Base(base) => Frame {
            kind: FrameKind::Base,
            shard,
            term: base.term,
            index: base.index,
            chain: base.chain,
            payload: &[],
        },
        Append::HardState(hard_state) => {
            state = HardState::encode(hard_state);
            let (kind, term) = (FrameKind::HardState, hard_state.term);
            Frame { kind, shard, term, index: 0, chain: [0; 32], payload: &state }
        }
        Append::Ticket(_) => return Ok(()),
    };
    if FRAME_HEADER_BYTES + frame.payload.len() > log.room() {
        flush(log, notify)?;
    }
    log.append(&frame)?;
    Ok(())
}

/// Makes durable what was appended.
fn flush(log: &mut Log, notify: &Notify) -> Result<(), Failure> {
    while log.unsubmitted() || log.in_flight() {
        if !log.in_flight() {
            log.submit()?;
        }
        if log.poll()?.is_none() {
            notify.wait(WAIT_US);
        }
    }
    Ok(())
}

fn next_steps(config: &Config) -> String {
    format!(
        "next: payswitch serve --config {}\n\
         It leads alone, without a copy of its log anywhere. To have others again, give each new \n\
         site a [[sites]] entry with a new id, voter = false and an empty data_dir, in every \n\
         configuration, restart, and run `payswitch admin member add SITE`. The numbers of the \n\
         lost sites are used up: what they send is not heard any more.\n",
        config.path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{InitOptions, init};

    fn three_sites() -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let options = InitOptions {
            dir: dir.path().to_owned(),
            sites: 3,
            merchants: 1,
            port_base: 7400,
            force: false,
            witness: false,
        };
        init(&options).unwrap();
        let config = Config::load(&dir.path().join("site-1.toml")).unwrap();
        (dir, config)
    }

    /// Opens the site's log and recovers its shards.
    fn open(config: &Config) -> (Log, Notify, Vec<Recovering>) {
        let mut shards: Vec<_> =
            (0..config.shards).map(|shard| Recovering::new(replica(config, shard))).collect();
        let notify = Notify::new().unwrap();
        let mut replay = |frame: Frame<'_>| take(&mut shards, &frame).map_err(ReplayError::new);
        let (log, _) = Log::open(config.worker_log(), notify.clone(), &mut replay).unwrap();
        (log, notify, shards)
    }

    fn recover(config: &Config, typed: &str) -> (Result<(), Failure>, String) {
        let mut out = Vec::new();
        let result = run(&mut out, &mut typed.as_bytes(), &config.path);
        (result, String::from_utf8(out).unwrap())
    }

    #[test]
    fn only_the_typed_phrase_forces_and_then_the_site_is_alone() {
        let (_dir, config) = three_sites();
        let (result, _) = recover(&config, "");
        assert_eq!(result.unwrap_err().exit, Exit::Usage, "there is no log");
        let (mut log, notify, _) = open(&config);
        for (index, payload) in (1..).zip([&b""[..], b"", b""]) {
            let chain = storage::chain_next(&storage::CHAIN_START, b"");
            let chain = (1..index).fold(chain, |chain, _| storage::chain_next(&chain, b""));
            let entry = crate::replica::entry(index, 4, bytes::Bytes::from_static(payload));
            put(&mut log, &notify, 5, &Append::Block(entry, chain)).unwrap();
        }
        let state = HardState { term: 4, vote: 2, commit: 2 };
        put(&mut log, &notify, 5, &Append::HardState(state)).unwrap();
        flush(&mut log, &notify).unwrap();
        // While somebody has the log open, nothing is done.
        let (result, _) = recover(&config, "");
        assert_eq!(result.unwrap_err().exit, Exit::Environment);
        log.close().unwrap();

        let (result, text) = recover(&config, "yes\n");
        assert_eq!(result.unwrap_err().exit, Exit::Usage);
        let line = "shard 5: last block 3 of term 4, 2 known committed, 1 beyond; voters 1 2 3";
        assert!(text.contains(line), "{text}");
        let (log, _, shards) = open(&config);
        assert!(!shards[5].members().is_alone(1));
        log.close().unwrap();

        let phrase = format!("lose acknowledged payments of {:016x}\n", config.cluster);
        let (result, text) = recover(&config, &phrase);
        result.unwrap();
        assert!(text.contains("12 of 12 shards forced"), "{text}");
        let (log, _, shards) = open(&config);
        for shard in &shards {
            assert!(shard.members().is_alone(1));
            assert_eq!(shard.committed(), shard.last().0, "what it has counts");
        }
        assert_eq!((shards[5].last(), shards[5].term()), ((5, 5), 5));
        log.close().unwrap();
        let (result, text) = recover(&config, &phrase);
        result.unwrap();
        assert!(text.contains("0 of 12 shards forced"), "{text}");
    }
}
