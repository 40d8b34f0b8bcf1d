//! The relay on real sockets.

use super::*;
use std::net::UdpSocket as StdUdp;
use tokio::net::UdpSocket;

const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough that what is not cut would have come.
const MOMENT: Duration = Duration::from_millis(200);

/// A relay between two sites of which site 1 dials.
struct Bench {
    relay: Rc<Relay>,
    dial: SocketAddr,
    /// Site 2.
    server: UdpSocket,
    listener: TcpListener,
}

impl Bench {
    async fn new() -> Self {
        // The same number for both kinds, as a site has it.
        let (server, listener) = loop {
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr().unwrap();
            if let Ok(listener) = TcpListener::bind(address).await {
                break (server, listener);
            }
        };
        let target = server.local_addr().unwrap();
        let dial = free();
        let links = [Link { from: 1, to: 2, listen: dial, target }];
        let relay = Relay::new(1, &links).unwrap();
        relay.serve(&links).await.unwrap();
        Self { relay, dial, server, listener }
    }

    fn command(&self, line: &str) {
        assert_eq!(self.relay.command(line), "ok", "{line}");
    }
}

fn free() -> SocketAddr {
    loop {
        let socket = StdUdp::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

async fn receive(socket: &UdpSocket) -> Option<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 2_048];
    let received = tokio::time::timeout(MOMENT, socket.recv_from(&mut buffer)).await;
    let (count, from) = received.ok()?.unwrap();
    Some((buffer[..count].to_vec(), from))
}

fn run(test: impl AsyncFnOnce()) {
    crate::cli::on_runtime(async {
        tokio::time::timeout(PATIENCE, test()).await.expect("the test hangs");
        Ok(())
    })
    .unwrap();
}

#[test]
fn datagrams_pass_and_answers_come_back() {
    run(async || {
        let bench = Bench::new().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"ask", bench.dial).await.unwrap();
        let (bytes, from) = receive(&bench.server).await.unwrap();
        assert_eq!(bytes, b"ask");
        bench.server.send_to(b"answer", from).await.unwrap();
        assert_eq!(receive(&client).await.unwrap(), (b"answer".to_vec(), bench.dial));
        // Only the target is heard.
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        stranger.send_to(b"lie", from).await.unwrap();
        assert!(receive(&client).await.is_none());
    });
}

#[test]
fn a_one_way_cut_stops_one_way() {
    run(async || {
        let bench = Bench::new().await;
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"1", bench.dial).await.unwrap();
        let (_, from) = receive(&bench.server).await.unwrap();
        bench.command("cut 2>1");
        client.send_to(b"2", bench.dial).await.unwrap();
        assert_eq!(receive(&bench.server).await.unwrap().0, b"2");
        bench.server.send_to(b"3", from).await.unwrap();
        assert!(receive(&client).await.is_none());
        bench.command("heal");
        bench.command("cut 1>2");
        client.send_to(b"4", bench.dial).await.unwrap();
        assert!(receive(&bench.server).await.is_none());
        bench.server.send_to(b"5", from).await.unwrap();
        assert_eq!(receive(&client).await.unwrap().0, b"5");
    });
}

#[test]
fn delayed_datagrams_come_in_order_and_late() {
    run(async || {
        let bench = Bench::new().await;
        bench.command("set 1-2 delay=50ms");
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let sent = Instant::now();
        for number in 0..20_u8 {
            client.send_to(&[number], bench.dial).await.unwrap();
        }
        for number in 0..20_u8 {
            let mut buffer = [0; 8];
            bench.server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[0], number);
        }
        assert!(sent.elapsed() >= Duration::from_millis(50));
    });
}

#[test]
fn a_share_of_datagrams_is_lost() {
    run(async || {
        let bench = Bench::new().await;
        bench.command("set 1>2 loss=50%");
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for number in 0..200_u8 {
            client.send_to(&[number], bench.dial).await.unwrap();
        }
        let mut came = 0;
        while receive(&bench.server).await.is_some() {
            came += 1;
        }
        assert!((50..150).contains(&came), "{came} of 200");
    });
}

#[test]
fn streams_pass_freeze_and_end() {
    run(async || {
        let bench = Bench::new().await;
        let mut client = TcpStream::connect(bench.dial).await.unwrap();
        let (mut site, _) = bench.listener.accept().await.unwrap();
        let mut byte = [0; 1];
        client.write_all(b"a").await.unwrap();
        site.read_exact(&mut byte).await.unwrap();
        bench.command("cut 2>1");
        // Bytes and the end of the stream wait, in this direction only.
        site.write_all(b"b").await.unwrap();
        client.write_all(b"c").await.unwrap();
        site.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"c");
        drop(site);
        assert!(tokio::time::timeout(MOMENT, client.read_exact(&mut byte)).await.is_err());
        bench.command("heal");
        client.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"b");
        assert_eq!(client.read(&mut byte).await.unwrap(), 0);
    });
}

#[test]
fn a_site_that_does_not_listen_closes_the_stream() {
    run(async || {
        let Bench { relay, dial, server, listener } = Bench::new().await;
        drop((server, listener));
        let mut client = TcpStream::connect(dial).await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
        drop(relay);
    });
}

#[test]
fn control_lines_are_answered_one_by_one() {
    run(async || {
        let bench = Bench::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Rc::clone(&bench.relay);
        tokio::task::spawn_local(async move {
            let (stream, _) = listener.accept().await.unwrap();
            control(&relay, stream).await;
        });
        let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
        stream.write_all(b"cut 1>2\nnonsense\nstats\n").await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..3 {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            answers.push(line);
        }
        assert_eq!(answers[0], "ok\n");
        assert!(answers[1].starts_with("error: ") && answers[2].contains("1>2 passed=0"));
        assert!(bench.relay.with_path((1, 2), |path| path.is_cut()));
    });
}

#[test]
fn links_are_parsed_and_bad_ones_refused() {
    let text = "1>2=127.0.0.1:7001=127.0.0.1:7411";
    assert_eq!(Link::parse(text).unwrap().to_string(), text);
    for bad in ["", "1>2", "1>1=127.0.0.1:1=127.0.0.1:2", "1>2=x=127.0.0.1:2", "0>2=a=b"] {
        assert!(Link::parse(bad).is_err(), "{bad}");
    }
}
