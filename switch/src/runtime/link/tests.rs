use std::net::SocketAddr;

use protocol::channel::{ChannelRequest, charge_number, kind};
use protocol::money::{Amount, Currency};

use super::*;
use crate::engine::input::Operation;
use crate::runtime::testing::{self, Cluster, Node, eventually_async};
use crate::tls::{ALPN_CHANNEL, Credentials};

/// More than the played channel's streams take unread.
const MANY: u64 = 4_000;

fn charge(sequence: u64) -> Send {
    let operation = OperationId { shard: 0, sequence, operation: Operation::Charge, ordinal: 1 };
    let request = ChannelRequest {
        kind: kind::CHARGE,
        charge_no: charge_number(&[7; 16], 1),
        refund_no: None,
        amount: Amount::new(100).unwrap(),
        currency: Currency::new(*b"CNY").unwrap(),
        time_expire_ms: 0,
    };
    Send { channel: 1, operation, term: 5, since_us: clock::mono_us(), request }
}

/// A channel that takes 16 KiB per stream unread.
fn channel(cluster: &Cluster) -> quinn::Endpoint {
    let file = |name: &str| cluster.dir.path().join("certs").join(name);
    let credentials =
        Credentials::load(&file("native-1.pem"), &file("native-1.key"), &file("ca.pem")).unwrap();
    let tls = credentials.server(ALPN_CHANNEL).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window((16_u32 << 10).into());
    config.transport_config(std::sync::Arc::new(transport));
    quinn::Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

async fn accepted(channel: &quinn::Endpoint) -> quinn::Connection {
    channel.accept().await.unwrap().await.unwrap()
}

/// The sequence of the first request of a stream.
async fn first(quic: &quinn::Connection) -> u64 {
    let (_answers, mut requests) = quic.accept_bi().await.unwrap();
    let mut splitter = Splitter::new();
    let mut seen = None;
    while seen.is_none() {
        let chunk = requests.read_chunk(65_536, true).await.unwrap().unwrap();
        let look = |header: protocol::frame::Header, _: &[u8]| {
            let operation = OperationId::unpack(header.correlation).unwrap();
            seen.get_or_insert(operation.sequence);
        };
        splitter.push(&chunk.bytes, look).unwrap();
    }
    seen.unwrap()
}

#[test]
fn what_a_channel_does_not_take_in_time_never_reaches_it() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let cluster = Cluster::new(1);
        let channel = channel(&cluster);
        let config = cluster.config(1);
        let mut settings = config.channels[0].clone();
        settings.address = channel.local_addr().unwrap();
        // So long is the link's patience at most; the machine may stand still.
        settings.reply_timeout_ms = 3_000;
        let shared = Node::shared(config);
        let net = testing::net(config, &shared, 1_000, None);
        let client = tls::channel_client(&settings).unwrap();
        let link = Link::new(settings, client);
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        link.run(&net, &endpoint);
        let unread = accepted(&channel).await;
        eventually_async("it is up", || link.up()).await;
        for sequence in 1..=MANY {
            assert!(link.send(&charge(sequence)));
        }
        link.wake_streams();
        // It acknowledges, keeps the connection alive, and reads nothing.
        let ended = async {
            while unread.close_reason().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it is given up");
        let next = accepted(&channel).await;
        eventually_async("it is up again", || link.up()).await;
        for sequence in MANY + 1..=MANY + STREAMS as u64 {
            assert!(link.send(&charge(sequence)));
        }
        link.wake_streams();
        for _ in 0..STREAMS {
            assert!(first(&next).await > MANY, "a request of before reached it");
        }
        // All of before is in doubt, not lost in silence.
        tokio::task::spawn_local(Rc::clone(&net).run_flusher());
        let mut lost = 0;
        eventually_async("the engines are told", || {
            while let Some(batch) = shared.exchange.pop() {
                let told = |item: &&(u16, Item)| matches!(item.1, Item::LinkLost(1));
                lost += batch.items.iter().filter(told).count();
            }
            lost == 1
        })
        .await;
    });
}
