//! Streams through the relay, on the ports of the datagrams: the plain connections
//! by which sites notice each other's end.
//!
//! A cut direction freezes: its bytes wait, its end waits, nothing is closed.
//! The end of either side passes on as the kernel tells it. Tested on real
//! sockets in `super`.

use super::Relay;
use crate::exit::Failure;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const CHUNK: usize = 16 << 10;
/// Most connections of one pair; more are closed at once.
const CONNECTIONS_MAX: usize = 64;
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Relays connections that site `pair.0` makes at `listen` to `target`.
pub(super) async fn serve(
    relay: &Rc<Relay>,
    pair: (u8, u8),
    listen: SocketAddr,
    target: SocketAddr,
) -> Result<(), Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::environment(format_args!("cannot open TCP {listen}: {error}; is it in use?"))
    })?;
    let (relay, open) = (Rc::clone(relay), Rc::new(()));
    tokio::task::spawn_local(async move {
        loop {
            let Ok((inner, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if Rc::strong_count(&open) > CONNECTIONS_MAX {
                continue;
            }
            let (relay, open) = (Rc::clone(&relay), Rc::clone(&open));
            tokio::task::spawn_local(async move {
                connection(&relay, pair, inner, target).await;
                drop(open);
            });
        }
    });
    Ok(())
}

async fn connection(relay: &Relay, pair: (u8, u8), inner: TcpStream, target: SocketAddr) {
    let back = (pair.1, pair.0);
    relay.open(pair).await;
    relay.open(back).await;
    let Ok(outer) = TcpStream::connect(target).await else { return };
    // Works without, later.
    drop((inner.set_nodelay(true), outer.set_nodelay(true)));
    let ((inner_read, inner_write), (outer_read, outer_write)) =
        (inner.into_split(), outer.into_split());
    tokio::join!(
        pump(relay, pair, inner_read, outer_write),
        pump(relay, back, outer_read, inner_write),
    );
}

/// Carries one direction's bytes and its end.
async fn pump(relay: &Relay, pair: (u8, u8), mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = read.read(&mut buffer).await.unwrap_or(0);
        relay.open(pair).await;
        let delay_ns = relay.with_path(pair, |path| path.delay_ns());
        if delay_ns > 0 {
            tokio::time::sleep(Duration::from_nanos(delay_ns)).await;
        }
        if count == 0 || write.write_all(&buffer[..count]).await.is_err() {
            // Dropping the half ends the direction.
            return;
        }
    }
}
