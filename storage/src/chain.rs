//! The hash chain of each shard, as recovery verifies it.
//!
//! Keeps a bounded history per shard, because consensus may replace an
//! unconfirmed suffix: the chain then continues from the predecessor of the
//! replaced index. Never sees a payload outside `check`.

use std::collections::VecDeque;

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

/// The last chain values of one shard. `values[i]` belongs to index `first + i`.
#[derive(Debug, Default)]
struct ShardChain {
    first: u64,
    values: VecDeque<[u8; 32]>,
    seen: bool,
}

impl ShardChain {
    /// The chain value before `index`.
    fn before(&self, index: u64) -> Option<[u8; 32]> {
        if !self.seen {
            return (index > 0).then_some(CHAIN_START);
        }
        let at = index.checked_sub(1)?.checked_sub(self.first)?;
        self.values.get(usize::try_from(at).ok()?).copied()
    }

    fn set(&mut self, index: u64, value: [u8; 32]) {
        if !self.seen {
            self.start(index - 1, CHAIN_START);
        }
        self.values.truncate((index - self.first) as usize);
        self.values.push_back(value);
        if self.values.len() as u64 > CHAIN_HISTORY {
            self.values.pop_front();
            self.first += 1;
        }
    }

    fn start(&mut self, index: u64, value: [u8; 32]) {
        self.seen = true;
        self.first = index;
        self.values.clear();
        self.values.push_back(value);
    }
}

/// The chains of all shards in a log.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    shards: Vec<ShardChain>,
}

impl Chains {
    /// Verifies that `frame` continues its shard, and remembers it.
    pub(crate) fn check(&mut self, frame: &Frame<'_>) -> Result<(), ChainFault> {
        match frame.kind {
            FrameKind::HardState | FrameKind::Note => Ok(()),
            FrameKind::Base => {
                self.shard(frame.shard).start(frame.index, frame.chain);
                Ok(())
            }
            FrameKind::Block => {
                let shard = self.shard(frame.shard);
                let before = shard.before(frame.index).ok_or(ChainFault::Gap)?;
                if chain_next(&before, frame.payload) != frame.chain {
                    return Err(ChainFault::Value);
                }
                shard.set(frame.index, frame.chain);
                Ok(())
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
            let value = chain.values.back()?;
            Some((shard as u16, chain.first + chain.values.len() as u64 - 1, *value))
        })
    }

    /// The index bounds that appending keeps to.
    pub(crate) fn spans(&self) -> Spans {
        let span = |chain: &ShardChain| {
            chain.seen.then(|| Span {
                first: chain.first,
                last: chain.first + chain.values.len() as u64 - 1,
            })
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
                let before = chains.shards.get(3).map_or(Some(CHAIN_START), |s| s.before(index));
                let mut frame = block(index, &before.unwrap_or([1; 32]), b"z");
                if base && index % 5 == 0 {
                    frame.kind = FrameKind::Base;
                }
                prop_assert_eq!(spans.admit(&frame), chains.check(&frame).is_ok());
            }
        }
    }
}
