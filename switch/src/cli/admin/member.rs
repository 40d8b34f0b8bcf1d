//! `payswitch admin member`: one command over all shards, each at its leader,
//! until the last change has ended. A repeated command goes on where the last
//! one stopped: every step says what is already so.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use super::{Exit, Failure, Screen, print};
use crate::admin::api::{Done, MemberProgress, MemberRequest, MemberStep, Status};
use crate::admin::client::{Client, ClientError};

/// How long nothing may move before the command gives up.
const STUCK_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// Makes `site` a member of all shards, or of none.
pub(super) fn change<W: Write>(
    screen: &mut Screen<'_, W>,
    client: &Client,
    site: u16,
    member: bool,
) -> Result<(), Failure> {
    let _: Done = client.post("/v1/member", &MemberRequest { site, member })?;
    let status: Status = client.get("/status")?;
    let mut open: BTreeMap<u16, String> =
        status.shards.iter().map(|shard| (shard.shard, String::new())).collect();
    let all = open.len();
    let mut moved = Instant::now();
    while !open.is_empty() {
        for shard in open.keys().copied().collect::<Vec<_>>() {
            let progress = step(client, MemberStep { shard, site, member })?;
            if open.get(&shard).is_none_or(|said| *said == progress.text) {
                continue;
            }
            moved = Instant::now();
            say(screen, &progress)?;
            if progress.done {
                open.remove(&shard);
            } else {
                open.insert(shard, progress.text);
            }
        }
        if moved.elapsed() > STUCK_MAX {
            return Err(stuck(&open, all));
        }
        if !open.is_empty() {
            std::thread::sleep(POLL);
        }
    }
    let what = if member { "a member" } else { "no member any more" };
    screen.done(&Done { done: format!("site {site} is {what} of all {all} shards") })
}

/// One shard's next step. What passes by itself is only another state of it.
fn step(client: &Client, step: MemberStep) -> Result<MemberProgress, Failure> {
    match client.post("/v1/member/step", &step) {
        Ok(progress) => Ok(progress),
        Err(error) if passes(&error) => {
            Ok(MemberProgress { shard: step.shard, done: false, text: error.to_string() })
        }
        Err(error) => {
            let shard = step.shard;
            let mut failure = Failure::from(error);
            failure.message = format!("shard {shard}: {}", failure.message);
            Err(failure)
        }
    }
}

/// Elections, hand-overs, and sites that are just being restarted.
fn passes(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { code, leader, .. } => {
            leader.is_some() || code == "no_leader" || code == "busy"
        }
        ClientError::Unreachable { .. }
        | ClientError::Broken { .. }
        | ClientError::Timeout { .. } => true,
        ClientError::NotConfigured(_) | ClientError::Tls(_) | ClientError::Answer(_) => false,
    }
}

fn say<W: Write>(screen: &mut Screen<'_, W>, progress: &MemberProgress) -> Result<(), Failure> {
    if screen.json {
        return Ok(());
    }
    print(screen.out, format_args!("shard {}: {}\n", progress.shard, progress.text))?;
    super::super::finish(screen.out)
}

fn stuck(open: &BTreeMap<u16, String>, all: usize) -> Failure {
    let left: Vec<_> = open.iter().map(|(shard, said)| format!("shard {shard}: {said}")).collect();
    let text = format!(
        "{} of {all} shards are not done and nothing moves; repeat the command to go on\n  {}",
        open.len(),
        left.join("\n  ")
    );
    Failure::new(Exit::Missed, text)
}
