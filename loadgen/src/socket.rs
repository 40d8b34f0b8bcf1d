//! UDP endpoints with buffers that take a burst of a whole batch.

use crate::exit::Failure;
use std::net::SocketAddr;
use std::sync::Arc;

/// Asked of the kernel; it may give less, and QUIC then resends a little more.
const BUFFER: usize = 4 << 20;

/// A QUIC endpoint at `address`; a server with `server`, else a client only.
pub(crate) fn endpoint(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
) -> Result<quinn::Endpoint, Failure> {
    let open = || {
        let socket = std::net::UdpSocket::bind(address)?;
        let state = quinn::udp::UdpSocketState::new((&socket).into())?;
        // Works without: see `BUFFER`.
        drop(state.set_recv_buffer_size((&socket).into(), BUFFER));
        drop(state.set_send_buffer_size((&socket).into(), BUFFER));
        let mut config = quinn::EndpointConfig::default();
        // Refused only below 1200.
        let _ = config.max_udp_payload_size(crate::tls::PAYLOAD_MAX);
        quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))
    };
    open().map_err(|error| {
        Failure::environment(format_args!("cannot open UDP {address}: {error}; is it in use?"))
    })
}
