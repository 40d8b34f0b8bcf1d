//! Elections that must not get into their own way, and leaders that go.

use super::*;

#[test]
fn votes_under_way_are_not_made_void_by_asking_again() {
    let mut cluster = Cluster::led(3);
    let term = cluster.site(1).replica.term();
    cluster.cut = vec![1];
    cluster.site(3).replica.peer_gone(1);
    // Its own vote takes longer to write than the pause between two attempts.
    cluster.site(2).stuck = true;
    cluster.site(2).replica.peer_gone(1);
    cluster.ticks(12);
    cluster.site(2).stuck = false;
    cluster.settle();
    assert_eq!(cluster.site(2).leads, Some(term + 1), "in the first term that was asked for");
}

#[test]
fn a_site_that_is_about_to_stop_is_not_given_its_shards_back() {
    let mut cluster = Cluster::led(3);
    // The others have not been told: it leaves by itself.
    cluster.site(1).replica.set_away(1 << 1);
    cluster.ticks(700);
    assert_eq!(cluster.leader(), Some(2));
    assert_eq!(cluster.site(1).replica.counters().elections, 1, "it led once");
    cluster.site(1).replica.set_away(0);
    cluster.ticks(400);
    assert_eq!(cluster.leader(), Some(1), "it stayed after all");
}
