//! One shard at this site: its engine, its replica, and what waits between them.

use std::collections::VecDeque;

use protocol::code::Code;
use storage::FRAME_HEADER_BYTES;

use super::WorkerError;
use crate::engine::input::Waiter;
use crate::engine::output::{Outputs, Reply};
use crate::engine::weakness::Weakness;
use crate::engine::{Engine, Input, Now};
use crate::replica::{self, Base, Replica, Step};
use crate::runtime::inbox::Item;

/// Read barriers under way at once: one per round trip is enough, more only
/// shorten the wait of those that just missed one.
const BARRIERS_MAX: usize = 4;

/// Without a lease for this long an operator should know, microseconds.
const NO_LEASE_US: u64 = 1_000_000;

/// A shard.
pub(super) struct Shard {
    pub(super) engine: Engine,
    pub(super) replica: Replica,
    /// What the engine wants.
    pub(super) out: Outputs,
    /// What the replica wants.
    pub(super) wants: replica::Outputs,
    pub(super) due_us: Option<u64>,
    /// Consensus did not take the last block: too much is uncommitted.
    pub(super) refused: bool,
    /// Bytes of log applied since the state of the last checkpoint.
    pub(super) grown: u64,
    /// Sites that need blocks which the log no longer holds, as last said.
    beyond_log: u64,
    reads: Reads,
    /// Since when it leads without a lease, and whether that was said.
    no_lease: Option<(u64, bool)>,
    /// Blocks applied, for the checker: index, term, bytes.
    #[cfg(test)]
    pub(super) tap: Vec<(u64, u64, bytes::Bytes)>,
}

/// Queries that wait for proof that this replica still leads.
#[derive(Default)]
struct Reads {
    fresh: Vec<Item>,
    waiting: VecDeque<(u64, Vec<Item>)>,
    token: u64,
}

impl Shard {
    pub(super) fn new(engine: Engine, replica: Replica, out: Outputs) -> Self {
        Self {
            engine,
            replica,
            out,
            wants: replica::Outputs::default(),
            due_us: None,
            refused: false,
            grown: 0,
            beyond_log: 0,
            reads: Reads::default(),
            no_lease: None,
            #[cfg(test)]
            tap: Vec::new(),
        }
    }

    /// Whether consensus takes no block now: handing over, or too much of it is
    /// uncommitted.
    pub(super) fn is_held(&self) -> bool {
        self.refused || !self.replica.may_propose()
    }

    /// Whether its block has grown to `bytes_max` and cannot leave: requests are
    /// refused, so that it stays bounded and nobody else waits for it.
    pub(super) fn is_blocked(&self, bytes_max: usize) -> bool {
        self.out.block.len() >= bytes_max && self.is_held()
    }

    /// How many sites need blocks which the log no longer holds; said when it
    /// changes: the state is on its way to them.
    pub(super) fn look_beyond(&mut self) -> u64 {
        let sites = self.replica.beyond_log();
        if sites != self.beyond_log {
            let (shard, first) = (self.replica.shard(), self.replica.first_served());
            eprintln!(
                "shard {shard}: {sites} sites need blocks before {first}, the first in the log"
            );
            self.beyond_log = sites;
        }
        sites
    }

    /// Until when requests may leave for channels; the network thread keeps them
    /// back later than that (`runtime/held`).
    pub(super) fn may_send_until(&self) -> u64 {
        match self.engine.weakened(Weakness::SendWithoutLease) {
            true => u64::MAX,
            false => self.replica.may_act_until(),
        }
    }

    /// Says when the shard leads and may not send for long: round trips to a
    /// majority that take longer than a lease, or a machine without time.
    pub(super) fn look_at_lease(&mut self, now_us: u64) {
        if !self.replica.leads() || now_us < self.may_send_until() {
            self.no_lease = None;
            return;
        }
        let (since, said) = self.no_lease.get_or_insert((now_us, false));
        if !*said && now_us.saturating_sub(*since) > NO_LEASE_US {
            *said = true;
            eprintln!(
                "shard {}: leads, but no majority answers in time: nothing goes to channels",
                self.replica.shard()
            );
        }
    }

    /// Lets a query wait for the next read barrier.
    pub(super) fn read_later(&mut self, item: Item) {
        self.reads.fresh.push(item);
    }

    /// Starts a barrier for the queries that came since the last one.
    pub(super) fn start_reads(&mut self) {
        let reads = &mut self.reads;
        if reads.fresh.is_empty() || reads.waiting.len() >= BARRIERS_MAX {
            return;
        }
        reads.token += 1;
        if self.replica.read_barrier(reads.token) {
            reads.waiting.push_back((reads.token, std::mem::take(&mut reads.fresh)));
        } else {
            let fresh = std::mem::take(&mut reads.fresh);
            self.refuse_all(fresh);
        }
    }

    /// Does what the replica wants of the engine: applies committed blocks,
    /// begins and ends leading, answers queries whose barrier was reached.
    /// Frames and messages stay in `wants`.
    pub(super) fn advance(&mut self, now: Now) -> Result<(), WorkerError> {
        self.replica.advance(&mut self.wants);
        self.carry_out(None, now).map(drop)
    }

    /// Whether there is something to be carried out or handed on.
    pub(super) fn has_outputs(&self) -> bool {
        let wants = &self.wants;
        let waits = !wants.appends.is_empty() || !wants.messages.is_empty();
        waits || !wants.sendings.is_empty() || self.replica.has_outputs()
    }

    /// Takes over the state of another site, whose checkpoint is durable here.
    /// Gives the old one back; none when the replica has moved on meanwhile.
    pub(super) fn install(
        &mut self,
        from: u64,
        term: u64,
        base: &Base,
        engine: Engine,
        now: Now,
    ) -> Result<Option<Engine>, WorkerError> {
        self.replica.install(from, term, base, &mut self.wants);
        self.carry_out(Some(engine), now)
    }

    /// Carries out the replica's steps. Gives back the engine whose place
    /// `arrived` took, if it did.
    fn carry_out(
        &mut self,
        arrived: Option<Engine>,
        now: Now,
    ) -> Result<Option<Engine>, WorkerError> {
        self.replica.mark(&mut self.wants.messages, now.mono_us);
        let (mut arrived, mut old) = (arrived, None);
        let mut steps = std::mem::take(&mut self.wants.steps);
        for step in steps.drain(..) {
            match step {
                Step::Apply { index, term, block } => {
                    #[cfg(test)]
                    self.tap.push((index, term, block.clone()));
                    self.grown += (FRAME_HEADER_BYTES + block.len()) as u64;
                    let input = Input::Committed { index, term, block: &block };
                    self.handle(input, now)?;
                }
                Step::Restore { index } => {
                    let engine = arrived.take().filter(|engine| engine.applied() == index);
                    let Some(mut engine) = engine else {
                        return Err(WorkerError::Apply(format!("no state of block {index}")));
                    };
                    engine.inherit(&mut self.engine);
                    // As applying their records would have done.
                    self.out.merchants.extend(engine.merchants().cloned());
                    old = Some(std::mem::replace(&mut self.engine, engine));
                    self.grown = 0;
                }
                Step::Lead { term } => self.handle(Input::Lead { term }, now)?,
                Step::StepDown => self.step_down(now)?,
            }
        }
        self.wants.steps = steps;
        self.replica.trim();
        let reached = self.wants.reads.drain(..).max();
        if let Some(token) = reached {
            self.answer_reads(token, now)?;
        }
        Ok(old)
    }

    fn handle(&mut self, input: Input<'_>, now: Now) -> Result<(), WorkerError> {
        let handled = self.engine.handle(input, now, &mut self.out);
        handled.map_err(|error| WorkerError::Apply(error.to_string()))
    }

    fn step_down(&mut self, now: Now) -> Result<(), WorkerError> {
        self.handle(Input::StepDown, now)?;
        // Proposed and never handed to consensus: nobody was promised anything.
        if !self.engine.weakened(Weakness::StepDownKeepsProposals) {
            self.out.block.clear();
            self.out.block_records = 0;
        }
        let mut reads = std::mem::take(&mut self.reads.fresh);
        reads.extend(self.reads.waiting.drain(..).flat_map(|(_, items)| items));
        self.refuse_all(reads);
        Ok(())
    }

    fn answer_reads(&mut self, token: u64, now: Now) -> Result<(), WorkerError> {
        while self.reads.waiting.front().is_some_and(|(first, _)| *first <= token) {
            let Some((_, items)) = self.reads.waiting.pop_front() else { break };
            for item in items {
                match item {
                    Item::Query(query) => self.handle(Input::Query(query), now)?,
                    Item::QueryRefund(query) => self.handle(Input::QueryRefund(query), now)?,
                    _ => debug_assert!(false, "only queries wait for a barrier"),
                }
            }
        }
        Ok(())
    }

    fn refuse_all(&mut self, items: Vec<Item>) {
        let leader = self.leader_hint();
        self.out
            .replies
            .extend(items.iter().filter_map(Item::waiter).map(|waiter| not_leader(waiter, leader)));
    }

    /// The answer to a request that came to a site which does not lead.
    pub(super) fn refuse(&mut self, waiter: Waiter) {
        let leader = self.leader_hint();
        self.out.replies.push(not_leader(waiter, leader));
    }

    /// The leading site as the wire says it; 0: not known, or this one.
    fn leader_hint(&self) -> u8 {
        if self.replica.leads() { 0 } else { self.replica.leader() as u8 }
    }
}

fn not_leader(waiter: Waiter, leader: u8) -> Reply {
    let mut reply = Reply::refusal(waiter, Code::NotLeader, 0);
    reply.body.hint(leader);
    reply
}
