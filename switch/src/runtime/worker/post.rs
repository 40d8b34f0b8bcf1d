//! Replica messages of one turn, gathered into packets per site.

use std::sync::Arc;

use raft::eraftpb::Message;

use super::shard::Shard;
use crate::replica::message;
use crate::runtime::mesh::{Mesh, Route, Urgency};

/// A packet of this size leaves before the turn ends, bytes.
const PACKET_BYTES: usize = 4 << 20;

/// Packets being filled.
pub(super) struct Post {
    mesh: Arc<Mesh>,
    open: Vec<Open>,
}

/// What goes to one site.
#[derive(Default)]
struct Open {
    /// Urgent and bulk.
    packets: [Vec<u8>; 2],
    /// Blocks of this turn found no room.
    dropped: bool,
    /// How often the link had been lost when it was last looked at.
    losses: u64,
}

impl Post {
    pub(super) fn new(mesh: Arc<Mesh>) -> Self {
        let open = (0..mesh.sites()).map(|_| Open::default()).collect();
        Self { mesh, open }
    }

    /// Adds a shard's messages.
    pub(super) fn take(&mut self, shard: u16, messages: &mut Vec<Message>) {
        for message in messages.drain(..) {
            let site = message.to as usize;
            let Some(open) = site.checked_sub(1).and_then(|at| self.open.get_mut(at)) else {
                continue;
            };
            let urgency = if message::is_bulk(&message) { Urgency::Bulk } else { Urgency::Urgent };
            let packet = &mut open.packets[urgency as usize];
            message::encode(shard, &message, packet);
            if packet.len() > PACKET_BYTES {
                let sent = offer(&self.mesh, site as u8, urgency, packet);
                open.dropped |= !sent && urgency == Urgency::Bulk;
            }
        }
    }

    /// Sends what was gathered. Blocks for a site that does not keep up are
    /// dropped, and a lost link takes what was on it along: the replicas are told
    /// to probe before they send more.
    pub(super) fn send(&mut self, shards: &mut [Shard]) {
        for site in self.send_packets() {
            for shard in &mut *shards {
                shard.replica.unreachable(u64::from(site));
            }
        }
    }

    /// Returns the sites that blocks may not have reached.
    fn send_packets(&mut self) -> impl Iterator<Item = u8> + '_ {
        let mesh = &self.mesh;
        self.open.iter_mut().enumerate().filter_map(move |(at, open)| {
            let site = at as u8 + 1;
            let mut lost = std::mem::take(&mut open.dropped);
            for urgency in [Urgency::Urgent, Urgency::Bulk] {
                let packet = &mut open.packets[urgency as usize];
                let sent = packet.is_empty() || offer(mesh, site, urgency, packet);
                lost |= !sent && urgency == Urgency::Bulk;
            }
            let losses = mesh.route(site).map_or(0, Route::losses);
            lost |= std::mem::replace(&mut open.losses, losses) != losses;
            lost.then_some(site)
        })
    }
}

fn offer(mesh: &Mesh, site: u8, urgency: Urgency, packet: &mut Vec<u8>) -> bool {
    let packet = std::mem::take(packet);
    mesh.route(site).is_some_and(|route| route.offer(urgency, packet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft::eraftpb::{Entry, MessageType};

    fn blocks(to: u64, bytes: usize) -> Vec<Message> {
        let entry = Entry { data: vec![7; bytes].into(), ..Entry::default() };
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        (message.from, message.to) = (1, to);
        message.set_entries(vec![entry].into());
        vec![message]
    }

    #[test]
    fn a_site_is_probed_when_blocks_found_no_room_and_when_its_link_was_lost() {
        let mesh = Arc::new(Mesh::new(1, 3, 1));
        let mut post = Post::new(Arc::clone(&mesh));
        let sent = |post: &mut Post| post.send_packets().collect::<Vec<u8>>();
        mesh.route(2).unwrap().set_up(true);
        mesh.route(3).unwrap().set_up(true);
        sent(&mut post);
        post.take(0, &mut blocks(2, 100));
        assert_eq!(sent(&mut post), [0; 0], "it is on its way");
        mesh.route(2).unwrap().set_up(false);
        assert_eq!(sent(&mut post), [2], "what was on it may be gone");
        assert_eq!(sent(&mut post), [0; 0], "told once");
        post.take(0, &mut blocks(2, 100));
        assert_eq!(sent(&mut post), [2], "there is no link");
        // More than leaves at the end of the turn: the first part is lost at once.
        post.take(0, &mut blocks(2, PACKET_BYTES + 1));
        mesh.route(2).unwrap().set_up(true);
        assert_eq!(sent(&mut post), [2]);
        assert_eq!(sent(&mut post), [0; 0]);
    }
}
