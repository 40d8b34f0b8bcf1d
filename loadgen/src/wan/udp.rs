//! Datagrams through the relay: each dialling site's packets come in on a port of
//! their own, leave towards the site behind it, and answers go the way back.
//!
//! Whole batches pass with one call each, as the kernel hands them over; they
//! are taken apart only where their packets may have different fates. Tested on
//! real sockets in `super`.

use super::Relay;
use crate::exit::Failure;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{ErrorKind, IoSliceMut, Result};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// A batch as the kernel joins it, at most.
const BATCH: usize = 64 << 10;
const SOCKET_BUFFER: usize = 4 << 20;
/// Most addresses that one site dials from at a time; the one that was silent
/// for longest makes room.
const FLOWS_MAX: usize = 32;

/// A socket that sends and receives batches.
pub(super) struct Port {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams of one size to one address.
pub(super) struct Packet {
    to: SocketAddr,
    /// All of them, one behind the other.
    pub(super) bytes: Vec<u8>,
    stride: usize,
    ecn: Option<EcnCodepoint>,
}

impl Packet {
    /// How many datagrams it is.
    pub(super) fn count(&self) -> u64 {
        self.bytes.len().div_ceil(self.stride.max(1)) as u64
    }
}

impl Port {
    fn bind(address: SocketAddr) -> Result<Self> {
        let socket = std::net::UdpSocket::bind(address)?;
        let state = UdpSocketState::new((&socket).into())?;
        // Works without, with more loss in bursts.
        drop(state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER));
        drop(state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER));
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, state })
    }

    /// Sends a packet, or loses it when the kernel has no room; how many were lost.
    pub(super) fn send(&self, packet: &Packet) -> u64 {
        let (stride, mut lost) = (packet.stride.max(1), 0);
        for part in packet.bytes.chunks(stride * self.state.max_gso_segments()) {
            let segment_size = (part.len() > stride).then_some(stride);
            let (destination, ecn) = (packet.to, packet.ecn);
            let transmit =
                Transmit { destination, ecn, contents: part, segment_size, src_ip: None };
            if self.state.try_send((&self.socket).into(), &transmit).is_err() {
                lost += part.len().div_ceil(stride) as u64;
            }
        }
        lost
    }

    async fn receive(&self, buffer: &mut [u8]) -> Result<RecvMeta> {
        let mut meta = [RecvMeta::default()];
        self.socket
            .async_io(Interest::READABLE, || {
                let mut slices = [IoSliceMut::new(buffer)];
                self.state.recv((&self.socket).into(), &mut slices, &mut meta)
            })
            .await?;
        Ok(meta[0])
    }
}

/// Where answers to one dialling address come in.
struct Flow {
    port: Arc<Port>,
    task: tokio::task::AbortHandle,
    used: Instant,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Relays datagrams that come in at `listen` from site `pair.0` for site `pair.1`,
/// which listens at `target`.
pub(super) fn serve(
    relay: &Rc<Relay>,
    pair: (u8, u8),
    listen: SocketAddr,
    target: SocketAddr,
) -> std::result::Result<(), Failure> {
    let port = Port::bind(listen).map_err(|error| {
        Failure::environment(format_args!("cannot open UDP {listen}: {error}; is it in use?"))
    })?;
    let (relay, port) = (Rc::clone(relay), Arc::new(port));
    let flows: RefCell<HashMap<SocketAddr, Flow>> = RefCell::default();
    tokio::task::spawn_local(async move {
        let mut buffer = vec![0; BATCH];
        loop {
            let Some(meta) = received(port.receive(&mut buffer).await).await else { continue };
            let out = flow(&flows, &relay, pair, &port, meta.addr, target);
            if let Some(out) = out {
                relay.pass(pair, &out, target, &buffer[..meta.len], &meta);
            }
        }
    });
    Ok(())
}

/// An error of one packet ends no port; a pause keeps a lasting one from spinning.
async fn received(result: Result<RecvMeta>) -> Option<RecvMeta> {
    match result {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(_) => {
            tokio::time::sleep(Duration::from_millis(1)).await;
            None
        }
    }
}

/// The port towards the target for what comes from `client`.
fn flow(
    flows: &RefCell<HashMap<SocketAddr, Flow>>,
    relay: &Rc<Relay>,
    pair: (u8, u8),
    inner: &Arc<Port>,
    client: SocketAddr,
    target: SocketAddr,
) -> Option<Arc<Port>> {
    let mut flows = flows.borrow_mut();
    if let Some(flow) = flows.get_mut(&client) {
        flow.used = Instant::now();
        return Some(Arc::clone(&flow.port));
    }
    if flows.len() >= FLOWS_MAX {
        let oldest = flows.iter().min_by_key(|(_, flow)| flow.used).map(|(client, _)| *client);
        oldest.and_then(|client| flows.remove(&client));
    }
    let any = SocketAddr::new(target.ip(), 0);
    let port = Arc::new(Port::bind(any).ok()?);
    let (relay, inner, back) = (Rc::clone(relay), Arc::clone(inner), Arc::clone(&port));
    let task = tokio::task::spawn_local(async move {
        let mut buffer = vec![0; BATCH];
        loop {
            let Some(meta) = received(back.receive(&mut buffer).await).await else { continue };
            // Anybody on this machine could send here: only the target is heard.
            if meta.addr == target {
                let way_back = (pair.1, pair.0);
                relay.pass(way_back, &inner, client, &buffer[..meta.len], &meta);
            }
        }
    });
    let task = task.abort_handle();
    flows.insert(client, Flow { port: Arc::clone(&port), task, used: Instant::now() });
    Some(port)
}

impl Relay {
    /// Decides about a batch and sends or holds it.
    fn pass(
        &self,
        pair: (u8, u8),
        port: &Arc<Port>,
        to: SocketAddr,
        bytes: &[u8],
        meta: &RecvMeta,
    ) {
        let stride = meta.stride.clamp(1, bytes.len().max(1));
        let lossy = self.with_path(pair, |path| path.is_lossy());
        let size = if lossy { stride } else { bytes.len().max(1) };
        for part in bytes.chunks(size) {
            let packet = Packet { to, bytes: part.to_vec(), stride, ecn: meta.ecn };
            let now_ns = self.now_ns();
            let Some(due_ns) = self.with_path(pair, |path| path.fate(part.len(), now_ns)) else {
                continue;
            };
            if due_ns <= now_ns {
                self.line.send(port, &packet);
            } else {
                self.line.hold(self.at(due_ns), port, packet);
            }
        }
    }
}
