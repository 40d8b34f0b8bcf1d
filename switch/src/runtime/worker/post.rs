//! Replica messages of one turn, gathered into packets per site.

use std::sync::Arc;

use raft::eraftpb::Message;

use super::shard::Shard;
use crate::replica::message;
use crate::runtime::mesh::{Mesh, Urgency};

/// A packet of this size leaves before the turn ends, bytes.
const PACKET_BYTES: usize = 4 << 20;

/// Packets being filled.
pub(super) struct Post {
    mesh: Arc<Mesh>,
    /// Per site: urgent and bulk.
    open: Vec<[Vec<u8>; 2]>,
}

impl Post {
    pub(super) fn new(mesh: Arc<Mesh>) -> Self {
        let open = (0..mesh.sites()).map(|_| [Vec::new(), Vec::new()]).collect();
        Self { mesh, open }
    }

    /// Adds a shard's messages.
    pub(super) fn take(&mut self, shard: u16, messages: &mut Vec<Message>) {
        for message in messages.drain(..) {
            let site = message.to as usize;
            let Some(packets) = site.checked_sub(1).and_then(|at| self.open.get_mut(at)) else {
                continue;
            };
            let urgency = if message::is_bulk(&message) { Urgency::Bulk } else { Urgency::Urgent };
            let packet = &mut packets[urgency as usize];
            message::encode(shard, &message, packet);
            if packet.len() > PACKET_BYTES {
                offer(&self.mesh, site as u8, urgency, packet);
            }
        }
    }

    /// Sends what was gathered. Blocks for a site that does not keep up are
    /// dropped: its replicas are told to probe before they send more.
    pub(super) fn send(&mut self, shards: &mut [Shard]) {
        for (at, packets) in self.open.iter_mut().enumerate() {
            let site = at as u8 + 1;
            for urgency in [Urgency::Urgent, Urgency::Bulk] {
                let packet = &mut packets[urgency as usize];
                let sent = packet.is_empty() || offer(&self.mesh, site, urgency, packet);
                if !sent && urgency == Urgency::Bulk {
                    for shard in &mut *shards {
                        shard.replica.unreachable(u64::from(site));
                    }
                }
            }
        }
    }
}

fn offer(mesh: &Mesh, site: u8, urgency: Urgency, packet: &mut Vec<u8>) -> bool {
    let packet = std::mem::take(packet);
    mesh.route(site).is_some_and(|route| route.offer(urgency, packet))
}
