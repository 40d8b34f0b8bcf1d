//! The logs of several sites made one: what most of them hold, and whether they
//! may differ where they do.
//!
//! Consensus replaces what was not committed: a block whose index comes again
//! takes the place of the first and of everything behind it. Only the blocks
//! that a majority holds are read for the books; a tail that one site holds
//! alone was never committed and proves nothing. Chain values stand for what is
//! in the blocks and before them: `payswitch log verify` holds them against the
//! bytes. Pure. Tested on doctored logs.

use super::books::{Books, SITES_DIFFER};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Rule of lost acknowledgements: what is committed is at most sites.
const LOST: u8 = 6;
/// First half of a chain value: enough to tell blocks apart.
type Chain = [u8; 16];

/// One frame of a log, as `payswitch log dump --frames` prints it.
#[derive(Deserialize)]
pub(super) struct FrameLine<'a> {
    shard: u16,
    kind: &'a str,
    #[serde(default)]
    term: u64,
    #[serde(default)]
    index: u64,
    #[serde(default)]
    chain: &'a str,
    #[serde(default)]
    commit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    term: u64,
    chain: Chain,
}

/// A shard's log at one site, after all replacements.
#[derive(Default)]
struct View {
    /// Blocks up to here came in a checkpoint, or were cut off.
    base: u64,
    blocks: Vec<Block>,
    /// Known at the site to be committed.
    commit: u64,
}

impl View {
    fn last(&self) -> u64 {
        self.base + self.blocks.len() as u64
    }

    fn block(&self, index: u64) -> Option<Block> {
        let at = index.checked_sub(self.base + 1)?;
        self.blocks.get(at as usize).copied()
    }

    /// False: blocks are missing in between.
    fn push(&mut self, index: u64, block: Block) -> bool {
        if self.blocks.is_empty() && self.base == 0 || index <= self.base {
            *self = Self { base: index.saturating_sub(1), commit: self.commit, ..Self::default() };
        }
        let at = index - self.base - 1;
        if at > self.blocks.len() as u64 {
            return false;
        }
        self.blocks.truncate(at as usize);
        self.blocks.push(block);
        true
    }
}

/// The log of one site.
#[derive(Default)]
pub(super) struct SiteLog {
    shards: BTreeMap<u16, View>,
}

impl SiteLog {
    /// Takes one line of its dump. `Err`: it cannot be read, or blocks are missing.
    pub(super) fn frame(&mut self, line: &str) -> Result<(), String> {
        let frame: FrameLine<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let view = self.shards.entry(frame.shard).or_default();
        match frame.kind {
            "block" => {
                let chain = chain(frame.chain).ok_or("no chain value")?;
                let (index, last) = (frame.index, view.last());
                if index == 0 || !view.push(index, Block { term: frame.term, chain }) {
                    let shard = frame.shard;
                    return Err(format!("shard {shard}: block {index} follows block {last}"));
                }
            }
            "hard_state" => view.commit = view.commit.max(frame.commit),
            "Base" | "base" => {
                let commit = view.commit.max(frame.index);
                *view = View { base: frame.index, blocks: Vec::new(), commit };
            }
            _ => {}
        }
        Ok(())
    }

    fn view(&self, shard: u16) -> Option<&View> {
        self.shards.get(&shard)
    }

    fn block(&self, shard: u16, index: u64) -> Option<Block> {
        self.view(shard)?.block(index)
    }

    fn last(&self, shard: u16) -> u64 {
        self.view(shard).map_or(0, View::last)
    }
}

/// Which site's records are read for a shard, and up to which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    site: usize,
    committed: u64,
}

/// The log that most sites agree on.
pub(super) struct Merged<'a> {
    sites: &'a [SiteLog],
    choices: BTreeMap<u16, Choice>,
}

impl<'a> Merged<'a> {
    /// Compares the sites; what may not be goes to the books. `at_rest`: no site was
    /// writing while it was read, so that what one knows as committed is there.
    pub(super) fn new(sites: &'a [SiteLog], at_rest: bool, books: &mut Books) -> Self {
        let shards: Vec<u16> = sites.iter().flat_map(|site| site.shards.keys().copied()).collect();
        let mut choices = BTreeMap::new();
        for shard in shards {
            if choices.contains_key(&shard) {
                continue;
            }
            let choice = choose(sites, shard);
            judge(sites, shard, choice, at_rest, books);
            choices.insert(shard, choice);
        }
        Self { sites, choices }
    }

    /// Whether the records of this site are wanted for any shard.
    pub(super) fn wants(&self, site: usize) -> bool {
        self.choices.values().any(|choice| choice.site == site)
    }

    /// Whether a record in this block of a site's log counts.
    pub(super) fn takes(&self, site: usize, shard: u16, index: u64, term: u64) -> bool {
        let choice = self.choices.get(&shard);
        choice.is_some_and(|choice| choice.site == site && index <= choice.committed)
            && self.sites[site].block(shard, index).is_some_and(|block| block.term == term)
    }

    /// Blocks that most sites hold, over all shards.
    pub(super) fn blocks(&self) -> u64 {
        self.choices.values().map(|choice| choice.committed).sum()
    }
}

/// The last block that most sites hold, and a site that holds it and most before it.
fn choose(sites: &[SiteLog], shard: u16) -> Choice {
    let majority = sites.len() / 2 + 1;
    let mut lasts: Vec<u64> = sites.iter().map(|site| site.last(shard)).collect();
    lasts.sort_unstable_by(|a, b| b.cmp(a));
    for index in (1..=lasts[majority - 1]).rev() {
        let mut holders: Vec<(usize, Block)> = Vec::new();
        let found = sites.iter().enumerate();
        holders.extend(found.filter_map(|(at, site)| Some((at, site.block(shard, index)?))));
        let covered = sites.len() - holders.len();
        let covered = covered - lasts.iter().filter(|last| **last < index).count();
        for (_, block) in &holders {
            let same = holders.iter().filter(|(_, other)| other == block);
            if same.clone().count() + covered < majority {
                continue;
            }
            let base = |at: usize| sites[at].view(shard).map_or(u64::MAX, |view| view.base);
            if let Some((site, _)) = same.min_by_key(|(at, _)| (base(*at), *at)) {
                return Choice { site: *site, committed: index };
            }
        }
    }
    Choice { site: 0, committed: 0 }
}

fn judge(sites: &[SiteLog], shard: u16, choice: Choice, at_rest: bool, books: &mut Books) {
    let mut known: BTreeMap<(u64, u64), (Chain, usize)> = BTreeMap::new();
    for (at, site) in sites.iter().enumerate() {
        let Some(view) = site.view(shard) else { continue };
        let number = at + 1;
        if at_rest && view.commit > choice.committed {
            let (commit, committed) = (view.commit, choice.committed);
            let detail = format!(
                "shard {shard}: site {number} knows block {commit} as committed, most sites hold \
                 {committed}"
            );
            books.about_log(LOST, detail);
        }
        let falls = view.blocks.windows(2).position(|pair| pair[1].term < pair[0].term);
        if let Some(fall) = falls {
            let index = view.base + fall as u64 + 2;
            let detail = format!("shard {shard}: the term falls at block {index} of site {number}");
            books.about_log(SITES_DIFFER, detail);
        }
        if let Some(index) = differs(&sites[choice.site], view, shard, choice.committed) {
            let detail = format!(
                "shard {shard}: block {index} is committed at site {number} and differs from that \
                 of site {}",
                choice.site + 1
            );
            books.about_log(SITES_DIFFER, detail);
        }
        // Committed or not: one leader of a term writes one block per index. Where the
        // chosen site has the same, nothing is kept.
        for (offset, block) in view.blocks.iter().enumerate() {
            let index = view.base + 1 + offset as u64;
            if sites[choice.site].block(shard, index) == Some(*block) {
                continue;
            }
            let of_chosen = sites[choice.site].block(shard, index);
            let before = of_chosen.filter(|other| other.term == block.term);
            let before = before.map(|other| (other.chain, choice.site));
            let before = before.or_else(|| known.get(&(index, block.term)).copied());
            match before {
                Some((chain, other)) if chain != block.chain => {
                    let detail = format!(
                        "shard {shard}: block {index} of term {} differs between sites {} and \
                         {number}",
                        block.term,
                        other + 1
                    );
                    books.about_log(SITES_DIFFER, detail);
                    break;
                }
                Some(_) => {}
                None => drop(known.insert((index, block.term), (block.chain, at))),
            }
        }
    }
}

/// The first block that a site knows as committed and the chosen one has otherwise.
fn differs(chosen: &SiteLog, view: &View, shard: u16, committed: u64) -> Option<u64> {
    let until = view.commit.min(committed).min(view.last());
    (view.base + 1..=until).find(|index| {
        let chosen = chosen.block(shard, *index);
        chosen.is_some() && chosen != view.block(*index)
    })
}

fn chain(hex: &str) -> Option<Chain> {
    let digit = |at: usize| (*hex.as_bytes().get(at)? as char).to_digit(16);
    let mut chain = [0; 16];
    for (at, byte) in chain.iter_mut().enumerate() {
        *byte = (digit(2 * at)? << 4 | digit(2 * at + 1)?) as u8;
    }
    Some(chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log from its frames: blocks as (index, term, content), and what is known
    /// as committed.
    fn log(blocks: &[(u64, u64, u8)], commit: u64) -> SiteLog {
        let mut log = SiteLog::default();
        for (index, term, content) in blocks {
            let chain = format!("{content:02x}").repeat(32);
            let line = format!(
                r#"{{"segment":1,"offset":0,"batch":1,"shard":4,"kind":"block","term":{term},"index":{index},"chain":"{chain}","bytes":0}}"#
            );
            log.frame(&line).unwrap();
        }
        let state =
            format!(r#"{{"shard":4,"kind":"hard_state","term":9,"vote":1,"commit":{commit}}}"#);
        log.frame(&state).unwrap();
        log
    }

    /// Site and committed block of shard 4, and the rules found broken.
    fn merged(sites: &[SiteLog]) -> (Choice, Vec<u8>) {
        let mut books = Books::new();
        let merged = Merged::new(sites, true, &mut books);
        let choice = merged.choices[&4];
        let (_, violations) = books.violations();
        (choice, violations.iter().map(|violation| violation.invariant).collect())
    }

    const CLEAN: Vec<u8> = Vec::new();

    #[test]
    fn what_most_sites_hold_counts_and_a_shorter_log_is_no_violation() {
        let sites = [
            log(&[(1, 1, 1), (2, 1, 2)], 1),
            log(&[(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 4)], 3),
            log(&[(1, 1, 1), (2, 1, 2), (3, 1, 3)], 3),
        ];
        assert_eq!(merged(&sites), (Choice { site: 1, committed: 3 }, CLEAN));
        let mut books = Books::new();
        let merged = Merged::new(&sites, true, &mut books);
        assert!(merged.takes(1, 4, 3, 1) && !merged.takes(1, 4, 4, 1));
        assert!(!merged.takes(1, 4, 3, 2) && !merged.takes(2, 4, 3, 1) && merged.wants(1));
        assert!(!merged.wants(0) && merged.blocks() == 3);
    }

    #[test]
    fn a_later_term_replaces_a_block_and_everything_behind_it() {
        let replaced = [(1, 1, 1), (2, 1, 2), (3, 1, 3), (2, 2, 7)];
        let sites = [log(&replaced, 2), log(&[(1, 1, 1), (2, 2, 7)], 2)];
        let (choice, broken) = merged(&sites);
        assert_eq!((choice.committed, broken), (2, CLEAN));
        assert_eq!(sites[0].last(4), 2);
        let mut books = Books::new();
        let merged = Merged::new(&sites, true, &mut books);
        assert!(merged.takes(0, 4, 2, 2) && !merged.takes(0, 4, 2, 1));
    }

    #[test]
    fn an_uncommitted_tail_of_a_dead_leader_may_differ() {
        let sites = [
            log(&[(1, 1, 1), (2, 1, 2), (3, 1, 3)], 1),
            log(&[(1, 1, 1), (2, 2, 8), (3, 2, 9)], 3),
            log(&[(1, 1, 1), (2, 2, 8), (3, 2, 9)], 2),
        ];
        assert_eq!(merged(&sites), (Choice { site: 1, committed: 3 }, CLEAN));
    }

    #[test]
    fn a_committed_block_that_differs_is_found() {
        let sites = [
            log(&[(1, 1, 1), (2, 1, 2), (3, 1, 3)], 3),
            log(&[(1, 1, 1), (2, 2, 8), (3, 2, 9)], 3),
            log(&[(1, 1, 1), (2, 2, 8), (3, 2, 9)], 2),
        ];
        assert_eq!(merged(&sites).1, [SITES_DIFFER]);
    }

    #[test]
    fn one_term_with_two_blocks_at_an_index_is_found_even_in_tails() {
        let same = [(1, 1, 1), (2, 1, 2)];
        let mut one = same.to_vec();
        one.push((3, 1, 3));
        let mut other = same.to_vec();
        other.push((3, 1, 4));
        let sites = [log(&same, 2), log(&one, 2), log(&other, 2)];
        assert_eq!(merged(&sites).1, [SITES_DIFFER]);
        let sites = [log(&one, 2), log(&same, 2), log(&other, 2)];
        assert_eq!(merged(&sites).1, [SITES_DIFFER]);
    }

    #[test]
    fn a_falling_term_is_found() {
        let sites = [log(&[(1, 2, 1), (2, 1, 2)], 0), log(&[(1, 2, 1)], 0)];
        assert_eq!(merged(&sites).1, [SITES_DIFFER]);
    }

    #[test]
    fn a_commit_that_most_sites_do_not_hold_is_a_loss() {
        let long = [(1, 1, 1), (2, 1, 2), (3, 1, 3)];
        let sites = [log(&long, 3), log(&long[..1], 1), log(&long[..2], 1)];
        assert_eq!(merged(&sites), (Choice { site: 0, committed: 2 }, vec![LOST]));
        let mut books = Books::new();
        Merged::new(&sites, false, &mut books);
        assert_eq!(books.violations().0, 0, "sites that still write may be ahead");
    }

    #[test]
    fn a_site_that_began_from_a_checkpoint_holds_what_was_in_it() {
        let mut young = SiteLog::default();
        young.frame(r#"{"shard":4,"kind":"Base","index":2}"#).unwrap();
        let long = [(1, 1, 1), (2, 1, 2), (3, 1, 3)];
        let sites = [log(&long, 3), young, log(&[], 0)];
        assert_eq!(merged(&sites).0, Choice { site: 0, committed: 2 });
        let young = log(&[(2, 1, 2), (3, 1, 3)], 3);
        let sites = [young, log(&long, 3), log(&[], 0)];
        assert_eq!(merged(&sites), (Choice { site: 1, committed: 3 }, CLEAN));
    }

    #[test]
    fn missing_blocks_and_unreadable_lines_are_errors() {
        let mut log = log(&[(1, 1, 1)], 0);
        let line = |index: u64, chain: &str| {
            format!(r#"{{"shard":4,"kind":"block","term":1,"index":{index},"chain":"{chain}"}}"#)
        };
        let sound = "ab".repeat(32);
        assert!(log.frame(&line(3, &sound)).is_err() && log.frame(&line(0, &sound)).is_err());
        assert!(log.frame(&line(2, "ab")).is_err() && log.frame("{").is_err());
        assert!(log.frame(r#"{"shard":4,"kind":"Note","index":0}"#).is_ok());
        assert!(log.frame(&line(2, &sound)).is_ok());
    }
}
