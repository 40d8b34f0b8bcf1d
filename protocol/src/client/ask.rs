//! One request from first send to answer or deadline.
//!
//! The same bytes are sent again when the connection is lost, when the site is
//! silent, and when the answer is "not here". A refusal ends the request only
//! when no copy can have been carried out: with a copy unaccounted for, a
//! refusal of another copy says nothing, and at the deadline the outcome is
//! unknown.

use super::error::ClientError;
use super::link::Link;
use super::pending::{Answer, COPIES_MAX};
use super::reply::Reply;
use super::sites::{Led, Shared};
use crate::code::Code;
use crate::id::MchId;
use crate::message::kind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Shortest and longest pause before the same bytes are sent again after a
/// refusal; a site's own `retry_after` may be longer.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What to ask.
pub(super) struct Question<'a> {
    pub(super) kind: u8,
    /// Chooses the site; `None` for requests about no merchant.
    pub(super) mch_id: Option<&'a MchId>,
    /// Chooses the stream.
    pub(super) key: u64,
    /// Gives up at this moment.
    pub(super) deadline: Instant,
}

/// Asks and waits. `encode` writes the frame for the correlation id it is given.
pub(super) async fn ask(
    shared: &Shared,
    question: Question<'_>,
    encode: impl FnOnce(u64, &mut Vec<u8>),
) -> Result<Reply, ClientError> {
    let _permit = shared.permit()?;
    let (registered, mut answers) = shared.pending.register(question.kind);
    let mut frame = Vec::with_capacity(512);
    encode(registered.correlation, &mut frame);
    let mut changes = shared.changes.subscribe();
    let mut asking = Asking::new(shared, question);
    loop {
        changes.borrow_and_update();
        asking.notice_lost();
        asking.notice_leader();
        let wake = asking.send_if_due(registered.correlation, &frame)?;
        tokio::select! {
            // An answer that is here counts more than that it is late.
            biased;
            Some(answer) = answers.recv() => {
                if let Some(end) = asking.judge(answer) {
                    return end;
                }
            }
            // The sender lives as long as `shared`.
            _ = changes.changed() => {}
            () = sleep_until(wake) => {
                if Instant::now() >= asking.question.deadline {
                    return asking.unanswered(ClientError::NotSent);
                }
            }
        }
        if shared.stopped() {
            return asking.unanswered(ClientError::ShutDown);
        }
    }
}

struct Asking<'a> {
    shared: &'a Shared,
    question: Question<'a>,
    /// Connections with a copy that may still be answered; one copy each, for
    /// streams do not lose frames.
    waiting: Vec<Arc<Link>>,
    /// Copies sent so far.
    sent: u64,
    /// A copy that will not be answered any more may have been carried out.
    doubt: bool,
    /// When the last one was.
    sent_at: Instant,
    /// Who led when it was, and the term of the last notice of that.
    led: Led,
    /// When the next copy is due.
    next_send: Instant,
    /// Pause after the next refusal.
    pause: Duration,
    /// Last refusal.
    refusal: Option<Reply>,
    /// The connection it came on, to be asked last.
    refuser: Option<u64>,
}

impl<'a> Asking<'a> {
    fn new(shared: &'a Shared, question: Question<'a>) -> Self {
        Self {
            shared,
            question,
            waiting: Vec::new(),
            sent: 0,
            doubt: false,
            sent_at: Instant::now(),
            led: Led::default(),
            next_send: Instant::now(),
            pause: Duration::ZERO,
            refusal: None,
            refuser: None,
        }
    }

    /// A copy on a lost connection gets no answer: when no other copy waits,
    /// the next one is due at once.
    fn notice_lost(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|link| link.alive());
        if self.waiting.len() < before {
            self.doubt = true;
            if self.waiting.is_empty() {
                self.next_send = self.next_send.min(Instant::now());
            }
        }
    }

    fn led_now(&self) -> Led {
        let mch_id = self.question.mch_id;
        mch_id.map_or_else(Led::default, |mch_id| self.shared.leaders.of(mch_id))
    }

    /// A new leader was told: what is open at the old one goes to it at once, and
    /// so does what waits because nobody led. What is open at a third site stays
    /// there: that one passes it on.
    fn notice_leader(&mut self) {
        let now = self.led_now();
        if now.term <= self.led.term || self.sent == 0 {
            return;
        }
        let old = std::mem::replace(&mut self.led, now).site;
        let open_at = |site: u8| self.waiting.iter().any(|link| link.hello.site == site);
        let stranded = old != now.site && open_at(old) && !open_at(now.site);
        let code = self.refusal.map(|reply| reply.code());
        let waits = matches!(code, Some(Code::NotLeader | Code::NoLeader));
        if stranded || waits && self.waiting.is_empty() {
            self.refuser = None;
            self.next_send = Instant::now();
        }
    }

    /// Sends a copy when one is due and a connection is there; returns when to
    /// look again. A change of the connections wakes the asker in any case.
    fn send_if_due(&mut self, correlation: u64, frame: &[u8]) -> Result<Instant, ClientError> {
        let (now, deadline) = (Instant::now(), self.question.deadline);
        if now >= deadline || self.waiting.len() >= COPIES_MAX {
            return Ok(deadline);
        }
        if now < self.next_send {
            return Ok(self.next_send.min(deadline));
        }
        let candidates = self.candidates();
        let any = !candidates.is_empty();
        let taken =
            candidates.into_iter().find(|link| link.send(self.question.key, correlation, frame));
        match taken {
            Some(link) => {
                self.waiting.push(link);
                self.sent += 1;
                (self.sent_at, self.led) = (now, self.led_now());
            }
            None if !any => return Ok(deadline),
            None if self.sent == 0 => return Err(ClientError::Full),
            None => {}
        }
        self.next_send = now + self.shared.config.resend_after;
        Ok(self.next_send.min(deadline))
    }

    /// Connections without a waiting copy, best first: not the one that just
    /// refused, the leader's, then spread by key.
    fn candidates(&self) -> Vec<Arc<Link>> {
        let mut links = self.shared.usable_links();
        links.retain(|link| !self.waiting.iter().any(|waiting| waiting.id == link.id));
        let start = self.question.key % links.len().max(1) as u64;
        links.rotate_left(start as usize);
        let leader = self.led_now().site;
        links.sort_by_key(|link| (Some(link.id) == self.refuser, link.hello.site != leader));
        links
    }

    /// What an answer means: the end, or (`None`) go on.
    fn judge(&mut self, answer: Answer) -> Option<Result<Reply, ClientError>> {
        let at = self.waiting.iter().position(|link| link.id == answer.link);
        let link = at.map(|at| self.waiting.swap_remove(at));
        let Some(reply) = answer.reply else {
            return Some(Err(ClientError::Unreadable));
        };
        self.learn(&reply, link.as_deref());
        let code = reply.code();
        if code == Code::Ok {
            return Some(Ok(reply));
        }
        // The copy was given up as lost before: that it was refused after all
        // does not clear the doubt about others.
        link?;
        self.doubt |= code.may_have_acted();
        (self.refusal, self.refuser) = (Some(reply), Some(answer.link));
        let elsewhere = matches!(code, Code::Draining | Code::NotLeader | Code::NoLeader);
        let conclusive = self.reads_only() || (!self.doubt && self.waiting.is_empty());
        if conclusive && !elsewhere {
            return Some(Ok(reply));
        }
        if elsewhere || code.retryable() {
            self.next_send = Instant::now() + self.pause_after(&reply);
            return None;
        }
        // Refused for good, but another copy may have been carried out.
        if self.waiting.is_empty() { Some(self.unanswered(ClientError::NotSent)) } else { None }
    }

    /// The first hint is followed at once; refusals after it, which may go in a
    /// circle while leaders change, ever more slowly.
    fn pause_after(&mut self, reply: &Reply) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(PAUSE.0, PAUSE.1);
        if reply.code() == Code::NotLeader && reply.leader_hint() != 0 {
            return pause;
        }
        pause.max(PAUSE.0).max(Duration::from_millis(reply.retry_after_ms().into()))
    }

    fn learn(&self, reply: &Reply, link: Option<&Link>) {
        let (Some(mch_id), Some(link)) = (self.question.mch_id, link) else { return };
        let leaders = &self.shared.leaders;
        match (reply.leader_hint(), reply.code()) {
            (0, Code::Ok) => {
                // Others were silent meanwhile: ask this one first from now on.
                if self.sent > 1 {
                    leaders.learn(mch_id, link.hello.site, self.sent_at);
                }
            }
            (0, Code::NotLeader | Code::NoLeader) => {
                if leaders.of(mch_id).site == link.hello.site {
                    leaders.learn(mch_id, 0, self.sent_at);
                }
            }
            (0, _) => {}
            (site, _) => leaders.learn(mch_id, site, self.sent_at),
        }
    }

    /// Any answer to a question that changes nothing is the answer.
    fn reads_only(&self) -> bool {
        matches!(self.question.kind, kind::QUERY | kind::QUERY_REFUND | kind::PING)
    }

    /// The end without a conclusive answer; `nothing_sent` when no copy ever left.
    fn unanswered(&self, nothing_sent: ClientError) -> Result<Reply, ClientError> {
        let refusal = self.refusal;
        let open = !self.waiting.is_empty();
        match refusal {
            // What the sites said last is all there is to say.
            Some(reply) if !open && (!self.doubt || self.reads_only()) => Ok(reply),
            None if !open && !self.doubt => Err(nothing_sent),
            _ if self.reads_only() => Err(ClientError::NoAnswer),
            _ => Err(ClientError::OutcomeUnknown { last: refusal.map(|reply| reply.code()) }),
        }
    }
}
