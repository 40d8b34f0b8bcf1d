//! Followers that are behind: what is on its way to them, and what they hold, is bounded.

use super::*;

/// Larger than one message holds.
const BLOCK: usize = 200_000;

impl Cluster {
    fn propose(&mut self, count: usize, bytes: usize) {
        for n in 0..count {
            let leader = self.leader().expect("somebody leads");
            self.site(leader).replica.propose(vec![n as u8; bytes]).unwrap();
            self.settle();
        }
    }

    /// Bytes of blocks that one site's log has taken.
    fn logged(&self, site: u64) -> usize {
        let bytes = |append: &Append| match append {
            Append::Block(entry, _) => entry.data.len(),
            _ => 0,
        };
        self.sites[site as usize - 1].log.iter().map(bytes).sum()
    }
}

#[test]
fn a_site_whose_disk_hangs_holds_only_so_much_and_catches_up_later() {
    let mut cluster = Cluster::led(3);
    cluster.site(3).stuck = true;
    for _ in 0..200 {
        cluster.propose(1, BLOCK);
        cluster.ticks(3);
    }
    assert!(cluster.logged(3) < 20 << 20, "{} bytes wait for the disk", cluster.logged(3));
    assert_eq!(cluster.blocks(1).len(), 200, "the others go on");
    cluster.site(3).stuck = false;
    cluster.ticks(50);
    // Below the bound again: what is left comes by itself.
    cluster.ticks(200);
    assert_eq!(cluster.blocks(3), cluster.blocks(1));
}

#[test]
fn a_site_that_does_not_answer_is_not_sent_the_same_blocks_again_and_again() {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![3];
    cluster.propose(3, BLOCK);
    // Whoever leads now knows nothing of what the third site holds.
    cluster.cut.clear();
    cluster.site(3).stuck = true;
    assert!(cluster.site(1).replica.transfer(2));
    cluster.settle();
    assert_eq!(cluster.leader(), Some(2));
    let mut sent = 0;
    for _ in 0..100 {
        for site in &mut cluster.sites {
            site.replica.tick();
            for message in site.turn() {
                if message.to == 3 {
                    sent += message.entries.iter().map(|entry| entry.data.len()).sum::<usize>();
                }
                cluster.queue.push_back(message);
            }
        }
        cluster.settle();
    }
    assert!(sent <= 4 * BLOCK, "{sent} bytes for a disk that hangs");
    cluster.site(3).stuck = false;
    cluster.ticks(100);
    assert_eq!(cluster.blocks(3), cluster.blocks(1));
}

#[test]
fn blocks_that_were_lost_come_with_the_answer_to_the_next_question() {
    let mut cluster = Cluster::led(3);
    cluster.cut = vec![3];
    cluster.propose(2, BLOCK);
    assert!(cluster.site(1).replica.transfer(2));
    cluster.settle();
    cluster.cut.clear();
    // Whatever else the leader says arrives.
    let has_blocks = |message: &Message| message.to == 3 && !message.entries.is_empty();
    for _ in 0..6 {
        cluster.site(2).replica.tick();
        cluster.settle_but(has_blocks);
    }
    assert_eq!(cluster.logged(3), 0);
    cluster.ticks(6);
    assert_eq!(cluster.site(3).replica.last(), cluster.site(2).replica.last());
}

#[test]
fn followers_whose_links_were_lost_get_what_they_missed() {
    for away in [&[3][..], &[2, 3]] {
        let mut cluster = Cluster::led(3);
        cluster.propose(1, 10);
        cluster.cut = away.to_vec();
        for site in away {
            cluster.site(1).replica.unreachable(*site);
        }
        // The first block after that is lost with the link.
        cluster.propose(2, 10);
        cluster.cut.clear();
        cluster.ticks(12);
        let last = cluster.site(1).replica.last();
        assert!(away.iter().all(|site| cluster.site(*site).replica.last() == last), "{away:?}");
        assert_eq!(cluster.blocks(1).len(), 3, "{away:?}");
    }
}

#[test]
fn a_window_that_was_lost_as_a_whole_does_not_hold_up_a_site_that_is_back() {
    let mut cluster = Cluster::led(3);
    cluster.propose(1, 10);
    cluster.cut = vec![3];
    cluster.propose(300, 10);
    cluster.ticks(1);
    cluster.cut.clear();
    // Six heartbeats.
    let heartbeat = Timing::default().heartbeat_ticks;
    cluster.ticks(6 * heartbeat);
    assert_eq!(cluster.site(3).replica.last(), cluster.site(1).replica.last());
}

#[test]
fn a_site_that_was_not_heard_of_yet_is_not_counted_as_behind_the_log() {
    let mut cluster = Cluster::led(3);
    cluster.propose(5, 10);
    cluster.cut = vec![3];
    for site in [1, 2] {
        let index = cluster.site(site).replica.applied();
        cluster.site(site).replica.released(index);
    }
    assert!(cluster.site(1).replica.transfer(2));
    cluster.settle();
    cluster.ticks(3);
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.site(2).replica.beyond_log(), 0);
}
