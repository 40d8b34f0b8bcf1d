//! The hash chain of each shard, as recovery verifies it.
//!
//! Keeps a bounded history per shard, because consensus may replace an
//! unconfirmed suffix: the chain then continues from the predecessor of the
//! replaced index. Never sees a payload outside `check`.

use std::collections::VecDeque;

use crate::format::Anchor;
use crate::frame::{CHAIN_START, Frame, FrameKind, chain_next};

/// Blocks per shard by which an index may go back. Consensus bounds its
/// unconfirmed suffix far below.
pub const CHAIN_HISTORY: u64 = 4096;

/// Why a block does not continue its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainFault {
    Gap,
    Value,
}

/// What is known of the chain value before a block.
#[derive(Debug, Clone, Copy)]
enum Before {
    Known([u8; 32]),
    /// The last released block's, unless what stands here was replaced later:
    /// then the predecessor was another one, which is gone.
    Anchored([u8; 32]),
    /// Gone: the block's own value is taken, and proven by the anchor that a
    /// later block must meet.
    Gone,
}

/// The last chain values of one shard. `values[i]` belongs to index `first + i`.
#[derive(Debug, Default)]
struct ShardChain {
    first: u64,
    values: VecDeque<[u8; 32]>,
    seen: bool,
    /// `values[0]` stands for a value that is gone.
    loose: bool,
    /// The value that must stand at this index.
    anchor: Option<(u64, [u8; 32])>,
}

impl ShardChain {
    /// The chain value before `index`; `None` when the block cannot stand here.
    fn before(&self, index: u64) -> Option<Before> {
        let previous = index.checked_sub(1)?;
        let begins = if self.seen { self.loose && previous <= self.first } else { true };
        match self.anchor {
            None if !self.seen => Some(Before::Known(CHAIN_START)),
            Some((at, chain)) if begins && previous == at => Some(Before::Anchored(chain)),
            Some((at, _)) if begins => (previous < at).then_some(Before::Gone),
            _ => {
                let at = usize::try_from(previous.checked_sub(self.first)?).ok()?;
                self.values.get(at).copied().map(Before::Known)
            }
        }
    }

    /// Verifies and takes a block; `false` when its value is wrong, or when one
    /// that can no longer be replaced is not the anchor's.
    fn take(&mut self, frame: &Frame<'_>, before: Before) -> bool {
        let (index, follows) =
            (frame.index, |chain: &[u8; 32]| chain_next(chain, frame.payload) == frame.chain);
        match before {
            Before::Known(chain) if !follows(&chain) => return false,
            Before::Known(chain) if !self.seen => self.start(index - 1, chain),
            Before::Known(_) => {}
            Before::Anchored(chain) if follows(&chain) => self.start(index - 1, chain),
            Before::Anchored(_) | Before::Gone => {
                self.start(index - 1, CHAIN_START);
                self.loose = true;
            }
        }
        self.values.truncate((index - self.first) as usize);
        self.values.push_back(frame.chain);
        if self.values.len() as u64 <= CHAIN_HISTORY {
            return true;
        }
        let sound = self.meets_anchor(self.first);
        self.values.pop_front();
        self.first += 1;
        self.loose = false;
        sound
    }

    /// Whether the value at `index` is not the anchor's business, or equal to it.
    fn meets_anchor(&self, index: u64) -> bool {
        let Some((at, chain)) = self.anchor else { return true };
        let value = index.checked_sub(self.first).and_then(|nth| self.values.get(nth as usize));
        at != index || value == Some(&chain)
    }

    /// The index of the anchor, when the log says something else there.
    fn misses_anchor(&self) -> Option<u64> {
        let (at, _) = self.anchor.filter(|(at, _)| self.seen && *at >= self.first)?;
        (!self.meets_anchor(at)).then_some(at)
    }

    fn start(&mut self, index: u64, value: [u8; 32]) {
        self.seen = true;
        self.loose = false;
        self.first = index;
        self.values.clear();
        self.values.push_back(value);
    }

    /// Index and value of the last block, as far as the log tells.
    fn end(&self) -> Option<(u64, [u8; 32])> {
        match self.values.back() {
            Some(value) => Some((self.first + self.values.len() as u64 - 1, *value)),
            None => self.anchor,
        }
    }
}

/// The chains of all shards in a log.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    shards: Vec<ShardChain>,
}

impl Chains {
    /// The chains of a log that begins behind these.
    pub(crate) fn anchored(anchors: &[Anchor]) -> Chains {
        let mut chains = Chains::default();
        for anchor in anchors {
            chains.shard(anchor.shard).anchor = Some((anchor.index, anchor.chain));
        }
        chains
    }

    /// Shard and index of an anchor that the log does not meet.
    pub(crate) fn misses_anchor(&self) -> Option<(u16, u64)> {
        let mut shards = self.shards.iter().enumerate();
        shards.find_map(|(shard, chain)| Some((shard as u16, chain.misses_anchor()?)))
    }

    /// Verifies that `frame` continues its shard, and remembers it.
    pub(crate) fn check(&mut self, frame: &Frame<'_>) -> Result<(), ChainFault> {
        match frame.kind {
            FrameKind::HardState | FrameKind::Note => Ok(()),
            FrameKind::Base => {
                let shard = self.shard(frame.shard);
                shard.anchor = None;
                shard.start(frame.index, frame.chain);
                Ok(())
            }
            FrameKind::Block => {
                let shard = self.shard(frame.shard);
                let before = shard.before(frame.index).ok_or(ChainFault::Gap)?;
                match shard.take(frame, before) {
                    true => Ok(()),
                    false => Err(ChainFault::Value),
                }
            }
        }
    }

    fn shard(&mut self, shard: u16) -> &mut ShardChain {
        let at = usize::from(shard);
        if at >= self.shards.len() {
            self.shards.resize_with(at + 1, ShardChain::default);
        }
        &mut self.shards[at]
    }

    /// Index and chain value of each shard's last block.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (u16, u64, [u8; 32])> + '_ {
        self.shards.iter().enumerate().filter_map(|(shard, chain)| {
            let (index, value) = chain.end()?;
            Some((shard as u16, index, value))
        })
    }

    /// The index bounds that appending keeps to.
    pub(crate) fn spans(&self) -> Spans {
        let span = |chain: &ShardChain| {
            let (last, _) = chain.end()?;
            Some(Span { first: if chain.seen { chain.first } else { last }, last })
        };
        Spans { shards: self.shards.iter().map(span).collect() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Span {
    first: u64,
    last: u64,
}

/// The same rule as [`Chains`] without the hashes: what appending refuses so
/// that recovery never has to.
#[derive(Debug)]
pub(crate) struct Spans {
    shards: Vec<Option<Span>>,
}

impl Spans {
    /// Blocks up to `index` are released: they are never replaced any more.
    /// `false` when the log does not reach so far.
    pub(crate) fn release(&mut self, shard: u16, index: u64) -> bool {
        match self.shards.get_mut(usize::from(shard)) {
            Some(Some(span)) if index <= span.last => {
                span.first = span.first.max(index);
                true
            }
            _ => false,
        }
    }

    /// Whether recovery would accept this frame next, and remembers it.
    pub(crate) fn admit(&mut self, frame: &Frame<'_>) -> bool {
        let at = usize::from(frame.shard);
        if at >= self.shards.len() {
            self.shards.resize(at + 1, None);
        }
        let span = &mut self.shards[at];
        match frame.kind {
            FrameKind::HardState | FrameKind::Note => true,
            FrameKind::Base => {
                *span = Some(Span { first: frame.index, last: frame.index });
                true
            }
            FrameKind::Block => {
                let Some(before) = frame.index.checked_sub(1) else { return false };
                let known = span.unwrap_or(Span { first: before, last: before });
                if before < known.first || before > known.last {
                    return false;
                }
                let first = known.first.max((frame.index + 1).saturating_sub(CHAIN_HISTORY));
                *span = Some(Span { first, last: frame.index });
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(index: u64, before: &[u8; 32], payload: &'static [u8]) -> Frame<'static> {
        let chain = chain_next(before, payload);
        Frame { kind: FrameKind::Block, shard: 3, term: 1, index, chain, payload }
    }

    #[test]
    fn an_index_that_goes_back_continues_from_its_predecessor() {
        let mut chains = Chains::default();
        let one = block(1, &CHAIN_START, b"a");
        let two = block(2, &one.chain, b"b");
        let three = block(3, &two.chain, b"c");
        for frame in [&one, &two, &three] {
            assert_eq!(chains.check(frame), Ok(()));
        }
        let again = block(2, &one.chain, b"other");
        assert_eq!(chains.check(&again), Ok(()));
        assert_eq!(chains.check(&three), Err(ChainFault::Value), "follows the replaced block");
        assert_eq!(chains.check(&block(4, &three.chain, b"d")), Err(ChainFault::Gap));
        assert_eq!(chains.ends().collect::<Vec<_>>(), vec![(3, 2, again.chain)]);
    }

    #[test]
    fn a_base_starts_the_chain_anywhere() {
        let mut chains = Chains::default();
        let base =
            Frame { kind: FrameKind::Base, index: 500, chain: [9; 32], ..block(1, &[0; 32], b"") };
        assert_eq!(chains.check(&base), Ok(()));
        assert_eq!(chains.check(&block(501, &[9; 32], b"x")), Ok(()));
        assert_eq!(chains.check(&block(500, &[9; 32], b"x")), Err(ChainFault::Gap));
    }

    /// Up to index 5 everything is released. Of what was replaced, a stale end may
    /// still stand at the beginning.
    #[test]
    fn a_released_log_must_meet_its_anchor() {
        let five = block(5, &[1; 32], b"five");
        let six = block(6, &five.chain, b"six");
        let stale = block(6, &[2; 32], b"stale");
        let anchored = || Chains::anchored(&[Anchor { shard: 3, index: 5, chain: five.chain }]);
        let judge = |frames: &[&Frame<'_>]| {
            let mut chains = anchored();
            for frame in frames {
                chains.check(frame).ok()?;
            }
            Some(chains.misses_anchor())
        };
        assert_eq!(judge(&[]), Some(None));
        assert_eq!(judge(&[&six]), Some(None));
        assert_eq!(judge(&[&five, &six]), Some(None));
        assert_eq!(judge(&[&stale, &five, &six]), Some(None), "replaced from 5 on");
        assert_eq!(judge(&[&stale, &six]), Some(None), "replaced from 6 on");
        assert_eq!(judge(&[&stale]), Some(Some((3, 5))), "the stale end stands");
        assert_eq!(judge(&[&five, &stale]), None, "follows something else");
        let other = block(5, &[1; 32], b"other");
        assert_eq!(judge(&[&other]), Some(Some((3, 5))));
        assert_eq!(judge(&[&block(7, &six.chain, b"gap")]), None);
        assert_eq!(anchored().ends().collect::<Vec<_>>(), vec![(3, 5, five.chain)]);
        let mut chains = anchored();
        chains.check(&other).unwrap();
        let mut last = other.chain;
        let refused = (6..=CHAIN_HISTORY + 20).find(|index| {
            let frame = block(*index, &last, b"p");
            last = frame.chain;
            chains.check(&frame).is_err()
        });
        assert!(refused.is_some(), "noticed before the history forgets it");
    }

    #[test]
    fn history_is_bounded() {
        let mut chains = Chains::default();
        let mut last = CHAIN_START;
        for index in 1..=CHAIN_HISTORY + 10 {
            let frame = block(index, &last, b"p");
            last = frame.chain;
            assert_eq!(chains.check(&frame), Ok(()));
        }
        assert_eq!(chains.check(&block(11, &CHAIN_START, b"p")), Err(ChainFault::Gap));
        assert_eq!(chains.shards[3].values.len() as u64, CHAIN_HISTORY);
    }

    proptest! {
        /// Appending admits exactly what recovery accepts.
        #[test]
        fn spans_and_chains_agree(steps in prop::collection::vec((0u64..12, any::<bool>()), 1..60)) {
            let mut chains = Chains::default();
            let mut spans = chains.spans();
            for (index, base) in steps {
                let before = match chains.shards.get(3).map(|shard| shard.before(index)) {
                    None => Some(CHAIN_START),
                    Some(Some(Before::Known(chain))) => Some(chain),
                    Some(_) => None,
                };
                let mut frame = block(index, &before.unwrap_or([1; 32]), b"z");
                if base && index % 5 == 0 {
                    frame.kind = FrameKind::Base;
                }
                prop_assert_eq!(spans.admit(&frame), chains.check(&frame).is_ok());
            }
        }
    }
}
