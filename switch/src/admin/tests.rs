use super::api::*;
use super::client::{Client, ClientError};
use super::control::{Answer, Control, ControlError};
use super::server::{AdminServer, AdminTls};
use crate::config::merchants::{KeySpec, KindSpec, LimitsSpec, MerchantSpec, StatusSpec};
use crate::config::{Config, hex};
use crate::engine::input::AdminCommand;
use crate::engine::merchant::Merchant;
use crate::init::{InitOptions, init};
use crate::secret::Kek;
use crate::tls::Credentials;
use protocol::id::{MchId, OutTradeNo, ShortText};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

/// A node that remembers its commands and knows one merchant.
#[derive(Default)]
struct MadeUp {
    commands: Mutex<Vec<(ShortText, AdminCommand)>>,
    merchant: Mutex<Option<Merchant>>,
    not_ready: Mutex<Option<String>>,
}

fn now<T>(value: Result<T, ControlError>) -> Answer<T> {
    let (sender, receiver) = oneshot::channel();
    assert!(sender.send(value).is_ok());
    receiver
}

impl Control for MadeUp {
    fn seek_member(
        &self,
        operator: ShortText,
        shard: u16,
        site: u16,
        member: bool,
    ) -> Answer<MemberProgress> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let text = format!("{operator}: {site} {member}");
        let answer = match shard {
            0 => Ok(MemberProgress { shard, done: true, text }),
            _ => Err(ControlError::NotLeader { leader: 2 }),
        };
        sender.send(answer).unwrap();
        receiver
    }

    fn led_elsewhere(&self, mch_id: MchId) -> Option<ControlError> {
        (mch_id.as_str() == "M2").then_some(ControlError::NotLeader { leader: 2 })
    }

    fn transfer(&self, shard: u16, site: u16) -> Answer<String> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let answer = match shard {
            0 => Ok(format!("shard 0 goes to site {site}")),
            _ => Err(ControlError::NotLeader { leader: 2 }),
        };
        sender.send(answer).unwrap();
        receiver
    }

    fn ready(&self) -> Result<(), String> {
        self.not_ready.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    fn status(&self) -> Status {
        Status { site: 1, shards: vec![ShardStatus::default(); 12], ..Status::default() }
    }

    fn render_metrics(&self, out: &mut String) {
        out.push_str("payswitch_up 1\n");
    }

    fn merchant(&self, mch_id: MchId) -> Option<Merchant> {
        self.merchant.lock().unwrap().clone().filter(|merchant| merchant.mch_id == mch_id)
    }

    fn command(&self, operator: ShortText, command: AdminCommand) -> Answer<String> {
        if let AdminCommand::Decide { success: false, .. } = command {
            return now(Err(ControlError::Refused("the attempt is not in doubt".to_owned())));
        }
        if let AdminCommand::PutMerchant { merchant, .. } = &command {
            *self.merchant.lock().unwrap() = Some(merchant.clone());
        }
        self.commands.lock().unwrap().push((operator, command));
        now(Ok("done so".to_owned()))
    }

    fn in_doubt(&self, limit: usize) -> Answer<Vec<InDoubt>> {
        now(Ok(vec![InDoubt::default(); limit]))
    }

    fn explain(&self, mch_id: MchId, out_trade_no: OutTradeNo) -> Answer<Explain> {
        if mch_id.as_str() == "M404" {
            return now(Err(ControlError::NotFound));
        }
        if mch_id.as_str() == "M602" {
            return now(Err(ControlError::NotLeader { leader: 2 }));
        }
        let (mch_id, out_trade_no) = (mch_id.to_string(), out_trade_no.to_string());
        now(Ok(Explain { mch_id, out_trade_no, ..Explain::default() }))
    }
}

pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    config: Config,
    control: Arc<MadeUp>,
    server: AdminServer,
}

pub(crate) fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let options = InitOptions {
        dir: dir.path().to_owned(),
        sites: 1,
        merchants: 1,
        port_base: 7400,
        force: false,
        witness: false,
    };
    init(&options).unwrap();
    let mut config = Config::load(&dir.path().join("site-1.toml")).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    (config.admin.listen, config.admin.tls_listen) = (any, Some(any));
    let control = Arc::new(MadeUp::default());
    let server = super::server::start(&config, control.clone()).unwrap();
    config.admin.tls_listen = server.tls_address();
    Site { dir, config, control, server }
}

impl Site {
    /// A configuration file that leads the command line to this server.
    pub(crate) fn config_file(&self) -> String {
        let path = self.dir.path().join("site-1.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let address = self.server.tls_address().unwrap();
        let line = format!("tls_listen = \"{address}\"");
        std::fs::write(&path, text.replace("tls_listen = \"127.0.0.1:7403\"", &line)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn operator(&self) -> Client {
        Client::new(&self.config).unwrap()
    }

    fn with_certificate(&self, name: &str) -> Client {
        let file = |name: String| self.dir.path().join("certs").join(name);
        let (cert, key) = (file(format!("{name}.pem")), file(format!("{name}.key")));
        let credentials = Credentials::load(&cert, &key, &self.config.admin.ca).unwrap();
        let address = self.server.tls_address().unwrap();
        Client::with_credentials(address, "site-1.site.payswitch", &credentials).unwrap()
    }

    /// Sends bytes to the plain port and reads the answer to its end.
    fn plain(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.server.plain_address()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn plain_get(&self, path: &str) -> String {
        self.plain(
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
    }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (u16, String, String) {
    match answer {
        Err(ClientError::Refused { status, code, message, .. }) => (status, code, message),
        other => panic!("{other:?}"),
    }
}

fn merchant(id: &str, secret: String) -> MerchantSpec {
    MerchantSpec {
        id: id.to_owned(),
        status: StatusSpec::Active,
        keys: vec![KeySpec {
            key_id: 1,
            kind: KindSpec::HmacSha256,
            secret: Some(secret),
            public_key: None,
        }],
        gateways: vec!["gw-1".to_owned()],
        addresses: vec!["10.0.0.0/8".to_owned()],
        limits: LimitsSpec::default(),
    }
}

#[test]
fn plain_http_reads_and_nothing_else() {
    let site = site();
    assert!(site.plain_get("/ready").starts_with("HTTP/1.1 200 OK"));
    assert!(site.plain_get("/metrics").ends_with("payswitch_up 1\n"));
    let status = site.plain_get("/status");
    let body = status.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(serde_json::from_str::<Status>(body).unwrap().shards.len(), 12);
    for path in ["/v1/merchant?mch=M1", "/v1/in-doubt", "/v1/explain?mch=M1&out_trade_no=1"] {
        let answer = site.plain_get(path);
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        assert!(answer.contains("client_certificate_required"), "{path}: {answer}");
    }
    for path in ["/v1/merchant", "/v1/limit", "/v1/decide"] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let answer = site.plain(request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
    }
    assert!(site.plain_get("/v1/other").starts_with("HTTP/1.1 404"));
    let answer = site.plain(b"DELETE /status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(site.control.commands.lock().unwrap().is_empty());
}

#[test]
fn a_site_that_does_not_serve_says_why() {
    let site = site();
    *site.control.not_ready.lock().unwrap() = Some("replaying the log".to_owned());
    let answer = site.plain_get("/ready");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with("not ready: replaying the log\n"), "{answer}");
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let site = site();
    assert!(site.plain(b"\x16\x03\x01 this is not http\r\n\r\n").starts_with("HTTP/1.1 400"));
    let mut long = b"GET /status HTTP/1.1\r\nx: ".to_vec();
    long.resize(64 << 10, b'a');
    long.extend_from_slice(b"\r\n\r\n");
    let mut stream = TcpStream::connect(site.server.plain_address()).unwrap();
    // The server may close before all is written: both are fine.
    let _ = stream.write_all(&long);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
    assert!(site.plain_get("/ready").starts_with("HTTP/1.1 200"));
}

#[test]
fn operators_change_merchants_and_limits() {
    let site = site();
    let operator = site.operator();
    let secret = "5ec7e7".repeat(10) + "abcd";
    let done: Done = operator.post("/v1/merchant", &merchant("M7", secret.clone())).unwrap();
    assert_eq!(done.done, "done so");
    let view: MerchantView = operator.get("/v1/merchant?mch=M7").unwrap();
    assert_eq!((view.keys[0].key_id, view.addresses[0].as_str()), (1, "10.0.0.0/8"));
    let request =
        LimitRequest { mch: "M7".to_owned(), pay_per_minute: Some(9), ..Default::default() };
    let _: Done = operator.post("/v1/limit", &request).unwrap();

    let commands = site.control.commands.lock().unwrap();
    let (name, AdminCommand::PutMerchant { merchant, only_if_absent: false }) = &commands[0] else {
        panic!("{:?}", commands[0])
    };
    assert_eq!(name.as_str(), "admin");
    let material = &merchant.keys[0].material;
    let clear = hex::decode(&secret).unwrap();
    assert!(!material.windows(clear.len()).any(|window| window == clear));
    let kek = Kek::load(&site.config.keys.kek).unwrap();
    assert_eq!(kek.unwrap(&merchant.mch_id, &merchant.keys[0]).unwrap().expose(), clear);
    let AdminCommand::PutLimits { limits, until_ms: 0, .. } = &commands[1].1 else { panic!() };
    assert_eq!((limits.pay_per_minute, limits.query_per_minute), (9, 300));
}

#[test]
fn operators_move_leadership() {
    let site = site();
    let operator = site.operator();
    let request = DrainRequest { site: 2, drained: true };
    let _: Done = operator.post("/v1/drain", &request).unwrap();
    let commands = site.control.commands.lock().unwrap();
    assert_eq!(commands[0].1, AdminCommand::SetDrained { site: 2, drained: true });
    let request = TransferRequest { shard: 0, site: 3 };
    let done: Done = operator.post("/v1/transfer", &request).unwrap();
    assert_eq!(done.done, "shard 0 goes to site 3");
    let request = TransferRequest { shard: 1, site: 3 };
    match operator.post::<Done>("/v1/transfer", &request) {
        Err(ClientError::Refused { leader: Some(2), code, .. }) => assert_eq!(code, "not_leader"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn operators_change_members() {
    let site = site();
    let operator = site.operator();
    let request = MemberRequest { site: 4, member: true };
    let _: Done = operator.post("/v1/member", &request).unwrap();
    let commands = site.control.commands.lock().unwrap();
    assert_eq!(commands[0].1, AdminCommand::SetMember { site: 4, member: true });
    let step = |shard| {
        let step = MemberStep { shard, site: 4, member: true };
        operator.post::<MemberProgress>("/v1/member/step", &step)
    };
    let progress = step(0).unwrap();
    assert!(progress.done && progress.text.ends_with(": 4 true"), "{progress:?}");
    match step(1) {
        Err(ClientError::Refused { leader: Some(2), code, .. }) => assert_eq!(code, "not_leader"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn operators_ask_and_decide() {
    let site = site();
    let operator = site.operator();
    let list: Vec<InDoubt> = operator.get("/v1/in-doubt?limit=3").unwrap();
    assert_eq!(list.len(), 3);
    let explain: Explain = operator.get("/v1/explain?mch=M1&out_trade_no=A%7C1").unwrap();
    assert_eq!((explain.mch_id.as_str(), explain.out_trade_no.as_str()), ("M1", "A|1"));
}

#[test]
fn decisions_about_money_need_two_operators() {
    let site = site();
    let (ann, lee) = (site.operator(), site.with_certificate("admin-2"));
    let mut request = DecideRequest {
        mch: "M1".to_owned(),
        out_trade_no: "1".to_owned(),
        out_refund_no: None,
        success: true,
        note: "ticket 5".to_owned(),
    };
    for _ in 0..2 {
        let proposed: Done = ann.post("/v1/decide", &request).unwrap();
        assert!(proposed.done.contains("another operator"), "{}", proposed.done);
    }
    assert!(site.control.commands.lock().unwrap().is_empty());
    request.success = false;
    let (status, code, _) = refusal(lee.post::<Done>("/v1/decide", &request));
    assert_eq!((status, code.as_str()), (409, "contradicted"));
    request.success = true;
    request.note = "I looked".to_owned();
    let done: Done = lee.post("/v1/decide", &request).unwrap();
    assert_eq!(done.done, "done so");
    let commands = site.control.commands.lock().unwrap();
    let (first, AdminCommand::Decide { second, note, success: true, .. }) = &commands[0] else {
        panic!("{commands:?}")
    };
    assert_eq!((first.as_str(), second.as_str(), note.as_str()), ("admin", "admin-2", "ticket 5"));
    drop(commands);

    // The node has the last word.
    request.success = false;
    let _: Done = ann.post("/v1/decide", &request).unwrap();
    let refused = refusal(lee.post::<Done>("/v1/decide", &request));
    assert_eq!(refused, (409, "refused".to_owned(), "the attempt is not in doubt".to_owned()));
}

#[test]
fn a_word_about_money_led_elsewhere_is_sent_there_and_not_kept() {
    let site = site();
    let mut request = DecideRequest {
        mch: "M2".to_owned(),
        out_trade_no: "1".to_owned(),
        out_refund_no: None,
        success: true,
        note: "ticket 5".to_owned(),
    };
    for operator in [site.operator(), site.with_certificate("admin-2")] {
        match operator.post::<Done>("/v1/decide", &request) {
            Err(ClientError::Refused { status: 421, leader: Some(2), .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(site.control.commands.lock().unwrap().is_empty());
    request.mch = "M1".to_owned();
    let proposed: Done = site.operator().post("/v1/decide", &request).unwrap();
    assert!(proposed.done.contains("another operator"), "{}", proposed.done);
}

#[test]
fn bad_requests_get_clear_errors() {
    let site = site();
    let operator = site.operator();
    let get = |path: &str| refusal(operator.get::<serde_json::Value>(path));
    assert_eq!(get("/v1/merchant").0, 400);
    assert_eq!(get("/v1/merchant?mch=a%2Fb").0, 400);
    assert_eq!(get("/v1/merchant?mch=%zz").2, "mch: bad percent encoding");
    assert_eq!(get("/v1/merchant?mch=M9").1, "not_found");
    assert_eq!(get("/v1/in-doubt?limit=0").0, 400);
    assert_eq!(get("/v1/explain?mch=M404&out_trade_no=1").0, 404);
    let (status, code, message) = get("/v1/explain?mch=M602&out_trade_no=1");
    assert_eq!((status, code.as_str()), (421, "not_leader"));
    assert!(message.contains("site 2"), "{message}");

    let post = |body: serde_json::Value| refusal(operator.post::<Done>("/v1/merchant", &body));
    let (status, _, message) = post(serde_json::json!({ "id": "M1", "colour": 1 }));
    assert!(status == 400 && message.contains("colour"), "{message}");
    let misplaced =
        serde_json::json!({ "id": "M1", "keys": [{ "key_id": "5ecre7", "kind": "hmac-sha256" }] });
    let (status, _, message) = post(misplaced);
    assert!(status == 400 && !message.contains("5ecre7"), "{message}");
    let short = serde_json::to_value(merchant("M1", "abcd".to_owned())).unwrap();
    let (status, _, message) = post(short);
    assert!(status == 400 && message.contains("keys[0].secret: (not shown)"), "{message}");
    assert!(site.control.commands.lock().unwrap().is_empty());
}

#[test]
fn oversize_bodies_are_refused() {
    let site = site();
    let operator = site.operator();
    let body = "x".repeat(super::routes::BODY_MAX + 1);
    let (status, code, _) = refusal(operator.post::<Done>("/v1/limit", &body));
    assert_eq!((status, code.as_str()), (413, "body_too_large"));
    assert!(operator.get::<Status>("/status").is_ok());
}

#[test]
fn other_roles_and_other_authorities_are_refused() {
    let site = site();
    for name in ["gw-1", "site-1"] {
        let client = site.with_certificate(name);
        let (status, code, message) = refusal(client.get::<serde_json::Value>("/v1/in-doubt"));
        assert_eq!((status, code.as_str()), (403, "wrong_role"), "{message}");
        let request = LimitRequest { mch: "M1".to_owned(), ..Default::default() };
        assert_eq!(refusal(client.post::<Done>("/v1/limit", &request)).0, 403);
    }
    // An operator of another deployment: same names, another authority.
    let other = tempfile::tempdir().unwrap();
    let options = InitOptions {
        dir: other.path().to_owned(),
        sites: 1,
        merchants: 1,
        port_base: 7400,
        force: false,
        witness: false,
    };
    init(&options).unwrap();
    let file = |name: &str| other.path().join("certs").join(name);
    let credentials =
        Credentials::load(&file("admin.pem"), &file("admin.key"), &site.config.admin.ca).unwrap();
    let address = site.server.tls_address().unwrap();
    let foreign = Client::with_credentials(address, "site-1.site.payswitch", &credentials).unwrap();
    let answer = foreign.get::<Status>("/status");
    assert!(matches!(answer, Err(ClientError::Broken { .. })), "{answer:?}");
    assert!(site.operator().get::<Status>("/status").is_ok());
}

#[test]
fn a_taken_port_is_named_and_a_stopped_server_frees_it() {
    let site = site();
    let mut config = site.config.admin.clone();
    config.listen = site.server.plain_address();
    config.tls_listen = None;
    let start = |config| {
        let kek = Arc::new(Kek::load(&site.config.keys.kek).unwrap());
        AdminServer::start(config, AdminTls::load(config)?, Arc::new(MadeUp::default()), kek)
    };
    let error = start(&config).err().unwrap().to_string();
    assert!(error.contains("admin.listen") && error.contains("127.0.0.1"), "{error}");
    drop(site.server);
    assert!(start(&config).is_ok());
}
