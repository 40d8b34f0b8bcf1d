//! What one gateway has been told about leaders, and what is news to it.
//!
//! Holds the last state that was told instead of notices that wait: a gateway
//! that does not read costs nothing, and hears the newest state once it does.

use protocol::message::{LEADERS_MAX, Leader, Leaders};

use super::mesh::Mesh;

/// What a gateway knows.
#[derive(Default)]
pub struct Told {
    /// Count of the changes that were looked at.
    changes: Option<u64>,
    /// Per shard, term and site.
    shards: Vec<(u64, u8)>,
}

impl Told {
    /// Appends a notice of every leader that was not told yet; nothing when there
    /// is none. Those are then taken for told. Shards that nobody leads are left
    /// out: the next leader is news soon enough.
    pub fn news(&mut self, mesh: &Mesh, out: &mut Vec<u8>) {
        // Counted after it is published: what is missed now changes the count.
        let changes = Some(mesh.changes());
        if self.changes == changes {
            return;
        }
        self.changes = changes;
        self.shards.resize(mesh.shards(), (0, 0));
        let mut fresh = Vec::new();
        for (shard, told) in (0..).zip(&mut self.shards) {
            let (term, site) = mesh.leader_of(shard);
            if site != 0 && *told != (term, site) {
                *told = (term, site);
                fresh.push(Leader { shard, site, term });
            }
        }
        for notice in fresh.chunks(LEADERS_MAX) {
            Leaders::encode_frame(notice, 0, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::frame::Splitter;
    use protocol::message::kind;

    fn read(frames: &[u8]) -> Vec<(u16, u8, u64)> {
        let mut found = Vec::new();
        Splitter::new()
            .push(frames, |header, body| {
                assert_eq!((header.kind, header.correlation), (kind::LEADER, 0));
                let leaders = Leaders::decode(body).unwrap();
                found.extend(leaders.iter().map(|leader| (leader.shard, leader.site, leader.term)));
            })
            .unwrap();
        found
    }

    #[test]
    fn only_news_is_told_and_only_the_newest() {
        let mesh = Mesh::new(1, 3, 4);
        let (mut told, mut frames) = (Told::default(), Vec::new());
        let mut news = |mesh: &Mesh| {
            frames.clear();
            told.news(mesh, &mut frames);
            read(&frames)
        };
        assert_eq!(news(&mesh), []);
        mesh.publish_leader(0, 4, 2);
        mesh.publish_leader(3, 5, 1);
        assert_eq!(news(&mesh), [(0, 2, 4), (3, 1, 5)]);
        assert_eq!(news(&mesh), [], "told already");
        // While the gateway did not read, one thing followed the other.
        mesh.publish_leader(0, 5, 0);
        mesh.publish_leader(0, 6, 3);
        mesh.publish_leader(3, 6, 0);
        assert_eq!(news(&mesh), [(0, 3, 6)], "without a leader there is no news");
        mesh.publish_leader(3, 6, 1);
        assert_eq!(news(&mesh), [(3, 1, 6)]);
        assert_eq!(
            read(&{
                let mut all = Vec::new();
                Told::default().news(&mesh, &mut all);
                all
            }),
            [(0, 3, 6), (3, 1, 6)],
            "a new connection is told everything"
        );
    }

    #[test]
    fn the_largest_cluster_fits_a_frame() {
        let mesh = Mesh::new(1, 3, 900);
        (0..900).for_each(|shard| assert!(mesh.publish_leader(shard, 7, 1)));
        let mut frames = Vec::new();
        Told::default().news(&mesh, &mut frames);
        assert_eq!(read(&frames).len(), 900);
    }
}
