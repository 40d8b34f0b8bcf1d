//! The readable twin of a frame: its fields as `name: value` lines in wire
//! order, and back to bytes.

use protocol::channel::{self, ChannelReply, ChannelRequest, ChannelStatus};
use protocol::code::{CloseCode, Code, Method, OrderState, Reason, RefundState, Scene};
use protocol::frame::{HEADER_LEN, Header};
use protocol::id::{ChannelNo, MchId, OutRefundNo, OutTradeNo, ShortText, TransactionId};
use protocol::message::{
    Ack, Auth, ErrorFrame, Event, GoAway, Hello, Leader, Leaders, OrderRef, OrderReply,
    OrderRequest, Pay, Ping, Pong, QueryRefund, Refund, RefundReply, Subscribe, Tags, kind,
};
use protocol::money::{Amount, Currency};

/// Lines of one vector, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Twin(pub Vec<(String, String)>);

impl Twin {
    pub fn put(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        self.put(name, std::str::from_utf8(value).unwrap());
    }

    pub fn text(&self, name: &str) -> &str {
        let line = self.0.iter().find(|(have, _)| have == name);
        &line.unwrap_or_else(|| panic!("no line {name}")).1
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(have, _)| have == name)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> T {
        self.text(name).parse().ok().unwrap_or_else(|| panic!("{name} is no number"))
    }

    fn flag(&self, name: &str) -> bool {
        self.number::<u8>(name) == 1
    }

    fn short(&self, name: &str) -> ShortText {
        ShortText::new(self.text(name).as_bytes()).unwrap()
    }

    fn currency(&self) -> Option<Currency> {
        let text: [u8; 3] = self.text("currency").as_bytes().try_into().ok()?;
        Currency::new(text)
    }

    fn transaction(&self) -> Option<TransactionId> {
        TransactionId::from_u64(self.number("transaction_id"))
    }

    fn order(&self) -> OrderRef {
        match self.transaction() {
            Some(id) => OrderRef::TransactionId(id),
            None => OrderRef::OutTradeNo(self.out_trade_no()),
        }
    }

    fn mch_id(&self) -> MchId {
        MchId::parse(self.text("mch_id").as_bytes()).unwrap()
    }

    fn out_trade_no(&self) -> OutTradeNo {
        OutTradeNo::parse(self.text("out_trade_no").as_bytes()).unwrap()
    }

    fn out_refund_no(&self) -> OutRefundNo {
        OutRefundNo::parse(self.text("out_refund_no").as_bytes()).unwrap()
    }

    fn amount(&self) -> Amount {
        Amount::new(self.number("amount")).unwrap()
    }

    fn channel_no(&self, name: &str) -> Option<ChannelNo> {
        ChannelNo::parse(self.text(name).as_bytes()).ok()
    }
}

macro_rules! by_name {
    ($twin:expr, $type:ty, $name:literal) => {{
        let text = $twin.text($name);
        *<$type>::ALL.iter().find(|value| value.name() == text).expect(text)
    }};
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

fn put_order(twin: &mut Twin, order: &OrderRef) {
    match order {
        OrderRef::OutTradeNo(no) => {
            twin.put("transaction_id", 0);
            twin.put("out_trade_no", no);
        }
        OrderRef::TransactionId(id) => {
            twin.put("transaction_id", id);
            twin.put("out_trade_no", "");
        }
    }
}

fn put_auth(twin: &mut Twin, prefix: &str, auth: &Auth<'_>) {
    twin.put(&format!("{prefix}key_id"), auth.key_id);
    twin.put(&format!("{prefix}timestamp"), auth.timestamp_ms);
    twin.put(&format!("{prefix}nonce"), auth.nonce);
    twin.put(&format!("{prefix}signature"), hex(auth.signature));
}

fn auth_of<'a>(twin: &Twin, prefix: &str, signature: &'a mut Vec<u8>) -> Auth<'a> {
    *signature = unhex(twin.text(&format!("{prefix}signature")));
    Auth {
        key_id: twin.number(&format!("{prefix}key_id")),
        timestamp_ms: twin.number(&format!("{prefix}timestamp")),
        nonce: twin.number(&format!("{prefix}nonce")),
        signature,
    }
}

/// The twin of a frame and, for a signed request, its canonical form.
pub fn read(frame: &[u8]) -> (Twin, Option<String>) {
    let (head, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
    let header = Header::decode(head).unwrap();
    assert_eq!(header.length as usize, body.len());
    let mut twin = Twin::default();
    twin.put("kind", format!("{:#04x}", header.kind));
    twin.put("correlation", header.correlation);
    let mut canonical = Vec::new();
    read_body(header.kind, body, &mut twin, &mut canonical);
    let canonical = (!canonical.is_empty()).then(|| String::from_utf8(canonical).unwrap());
    (twin, canonical)
}

fn read_body(kind: u8, body: &[u8], twin: &mut Twin, canonical: &mut Vec<u8>) {
    match kind {
        kind::PAY => read_pay(body, twin, canonical),
        kind::QUERY | kind::CLOSE | kind::REVERSE => {
            let m = OrderRequest::decode(body).unwrap();
            m.canonical(kind, canonical);
            twin.put("wait", m.wait_ms);
            twin.put("refresh", u8::from(m.refresh));
            put_order(twin, &m.order);
            twin.put("mch_id", m.mch_id);
            put_auth(twin, "", &m.auth);
        }
        kind::REFUND => {
            let m = Refund::decode(body).unwrap();
            m.canonical(canonical);
            twin.put("amount", m.amount.minor());
            twin.put("wait", m.wait_ms);
            twin.put("currency", m.currency);
            put_order(twin, &m.order);
            twin.put("mch_id", m.mch_id);
            twin.put("out_refund_no", m.out_refund_no);
            twin.bytes("reason", m.reason);
            put_auth(twin, "", &m.auth);
        }
        kind::QUERY_REFUND => {
            let m = QueryRefund::decode(body).unwrap();
            m.canonical(canonical);
            put_order(twin, &m.order);
            twin.put("mch_id", m.mch_id);
            twin.put("out_refund_no", m.out_refund_no);
            put_auth(twin, "", &m.auth);
        }
        kind::HELLO => {
            let m = Hello::decode(body).unwrap();
            twin.put("in_flight_max", m.in_flight_max);
            twin.put("shards", m.shards);
            twin.put("site", m.site);
            twin.put("sites", m.sites);
            twin.put("time", m.time_ms);
            twin.put("cluster", m.cluster);
        }
        kind::GOAWAY => {
            let m = GoAway::decode(body).unwrap();
            twin.put("code", m.code.name());
            twin.put("deadline", m.deadline_ms);
        }
        kind::LEADER => {
            for m in Leaders::decode(body).unwrap().iter() {
                twin.put(
                    &format!("leader.{}", m.shard),
                    format!("site {} term {}", m.site, m.term),
                );
            }
        }
        kind::PING => twin.put("token", Ping::decode(body).unwrap().token),
        kind::SUBSCRIBE => {
            Subscribe::decode(body).unwrap();
        }
        kind::ACK => twin.put("event_id", Ack::decode(body).unwrap().event_id),
        kind::EVENT => read_event(body, twin),
        kind::ERROR => {
            let m = ErrorFrame::decode(body).unwrap();
            twin.put("code", m.code.name());
            twin.put("retry_after", m.retry_after_ms);
            twin.bytes("detail", m.detail);
        }
        _ => read_reply(kind, body, twin),
    }
}

fn read_pay(body: &[u8], twin: &mut Twin, canonical: &mut Vec<u8>) {
    let m = Pay::decode(body).unwrap();
    m.canonical(canonical);
    twin.put("amount", m.amount.minor());
    twin.put("time_expire", m.time_expire_ms);
    twin.put("wait", m.wait_ms);
    twin.put("currency", m.currency);
    twin.put("method", m.method.name());
    twin.put("scene", m.scene.name());
    twin.put("client_ip", hex(&m.client_ip));
    twin.put("mch_id", m.mch_id);
    twin.put("out_trade_no", m.out_trade_no);
    twin.bytes("payer_token", m.payer_token);
    twin.bytes("device_id", m.device_id);
    twin.bytes("notify", m.notify);
    for (name, value) in m.tags.pairs() {
        twin.bytes(&format!("tag.{}", std::str::from_utf8(name).unwrap()), value);
    }
    put_auth(twin, "", &m.auth);
    put_auth(twin, "second.", &m.second);
}

fn read_event(body: &[u8], twin: &mut Twin) {
    let m = Event::decode(body).unwrap();
    twin.put("event_id", m.event_id);
    twin.put("sequence", m.sequence);
    twin.put("state", m.state.name());
    twin.put("refund_state", m.refund_state.name());
    twin.put("reason", m.reason.name());
    twin.put("transaction_id", m.transaction_id);
    twin.put("amount", m.amount);
    twin.put("at", m.at_ms);
    twin.put("currency", m.currency);
    twin.put("mch_id", m.mch_id);
    twin.put("out_trade_no", m.out_trade_no);
    twin.put("out_refund_no", m.out_refund_no);
}

fn read_reply(kind: u8, body: &[u8], twin: &mut Twin) {
    const REFUND: u8 = kind::REFUND | kind::REPLY;
    const QUERY_REFUND: u8 = kind::QUERY_REFUND | kind::REPLY;
    const PONG: u8 = kind::PING | kind::REPLY;
    const SUBSCRIBED: u8 = kind::SUBSCRIBE | kind::REPLY;
    match kind {
        PONG => {
            let m = Pong::decode(body).unwrap();
            twin.put("token", m.token);
            twin.put("time", m.time_ms);
        }
        SUBSCRIBED => {
            let code = u16::from_le_bytes(body.try_into().unwrap());
            twin.put("code", Code::from_wire(code).unwrap().name());
        }
        REFUND | QUERY_REFUND => {
            let m = RefundReply::decode(body).unwrap();
            twin.put("code", m.code.name());
            twin.put("state", m.state.name());
            twin.put("replayed", u8::from(m.replayed));
            twin.put("retry_after", m.retry_after_ms);
            twin.put("transaction_id", m.transaction_id.map_or(0, |id| id.as_u64()));
            twin.put("amount", m.amount);
            twin.put("refunded", m.refunded);
            twin.put("refunding", m.refunding);
            twin.put("finished_at", m.finished_at_ms);
            twin.put("reason", m.reason.name());
            twin.put("currency", m.currency.map_or(String::new(), |c| c.to_string()));
            twin.put("leader_hint", m.leader_hint);
            twin.put("channel_ref", m.channel_ref);
        }
        0x40..=0x44 => {
            let m = ChannelRequest::decode(kind, body).unwrap();
            twin.put("amount", m.amount.minor());
            twin.put("time_expire", m.time_expire_ms);
            twin.put("currency", m.currency);
            twin.put("charge_no", m.charge_no);
            twin.put("refund_no", m.refund_no.map_or(String::new(), |no| no.to_string()));
        }
        0xc0..=0xc4 => {
            let m = ChannelReply::decode(kind, body).unwrap();
            twin.put("amount", m.amount);
            twin.put("detail", m.detail);
            twin.put("status", m.status.name());
            twin.put("currency", m.currency);
            twin.put("charge_no", m.charge_no);
            twin.put("channel_ref", m.channel_ref);
        }
        _ => {
            let m = OrderReply::decode(body).unwrap();
            twin.put("code", m.code.name());
            twin.put("state", m.state.name());
            twin.put("replayed", u8::from(m.replayed));
            twin.put("retry_after", m.retry_after_ms);
            twin.put("transaction_id", m.transaction_id.map_or(0, |id| id.as_u64()));
            twin.put("amount", m.amount);
            twin.put("refunded", m.refunded);
            twin.put("refunding", m.refunding);
            twin.put("finished_at", m.finished_at_ms);
            twin.put("reason", m.reason.name());
            twin.put("channel", m.channel);
            twin.put("currency", m.currency.map_or(String::new(), |c| c.to_string()));
            twin.put("leader_hint", m.leader_hint);
            twin.put("out_trade_no", m.out_trade_no);
            twin.put("channel_ref", m.channel_ref);
        }
    }
}

/// The frame of a twin.
pub fn write(twin: &Twin) -> Vec<u8> {
    let kind = unhex(&twin.text("kind")[2..])[0];
    let correlation = twin.number("correlation");
    let mut out = Vec::new();
    let o = &mut out;
    let mut signature = Vec::new();
    match kind {
        kind::PAY => write_pay(twin, correlation, o),
        kind::QUERY | kind::CLOSE | kind::REVERSE => OrderRequest {
            mch_id: twin.mch_id(),
            order: twin.order(),
            refresh: twin.flag("refresh"),
            wait_ms: twin.number("wait"),
            auth: auth_of(twin, "", &mut signature),
        }
        .encode_frame(kind, correlation, o),
        kind::REFUND => Refund {
            mch_id: twin.mch_id(),
            order: twin.order(),
            out_refund_no: twin.out_refund_no(),
            amount: twin.amount(),
            currency: twin.currency().unwrap(),
            reason: twin.text("reason").as_bytes(),
            wait_ms: twin.number("wait"),
            auth: auth_of(twin, "", &mut signature),
        }
        .encode_frame(correlation, o),
        kind::QUERY_REFUND => QueryRefund {
            mch_id: twin.mch_id(),
            order: twin.order(),
            out_refund_no: twin.out_refund_no(),
            auth: auth_of(twin, "", &mut signature),
        }
        .encode_frame(correlation, o),
        kind::HELLO => Hello {
            in_flight_max: twin.number("in_flight_max"),
            shards: twin.number("shards"),
            site: twin.number("site"),
            sites: twin.number("sites"),
            time_ms: twin.number("time"),
            cluster: twin.number("cluster"),
        }
        .encode_frame(correlation, o),
        kind::GOAWAY => {
            GoAway { code: by_name!(twin, CloseCode, "code"), deadline_ms: twin.number("deadline") }
                .encode_frame(correlation, o)
        }
        kind::LEADER => {
            let lines = twin.0.iter();
            let leaders: Vec<Leader> = lines
                .filter_map(|(name, line)| Some(leader(name.strip_prefix("leader.")?, line)))
                .collect();
            Leaders::encode_frame(&leaders, correlation, o);
        }
        kind::PING => Ping { token: twin.number("token") }.encode_frame(correlation, o),
        kind::SUBSCRIBE => Subscribe.encode_frame(correlation, o),
        kind::ACK => Ack { event_id: twin.number("event_id") }.encode_frame(correlation, o),
        kind::EVENT => Event {
            event_id: twin.number("event_id"),
            sequence: twin.number("sequence"),
            mch_id: twin.mch_id(),
            out_trade_no: twin.out_trade_no(),
            transaction_id: twin.transaction().unwrap(),
            state: by_name!(twin, OrderState, "state"),
            reason: by_name!(twin, Reason, "reason"),
            out_refund_no: twin.short("out_refund_no"),
            refund_state: by_name!(twin, RefundState, "refund_state"),
            amount: twin.number("amount"),
            currency: twin.currency().unwrap(),
            at_ms: twin.number("at"),
        }
        .encode_frame(correlation, o),
        kind::ERROR => ErrorFrame {
            code: by_name!(twin, Code, "code"),
            retry_after_ms: twin.number("retry_after"),
            detail: twin.text("detail").as_bytes(),
        }
        .encode_frame(correlation, o),
        _ => write_reply(kind, twin, correlation, o),
    }
    out
}

fn write_pay(twin: &Twin, correlation: u64, out: &mut Vec<u8>) {
    let pairs: Vec<(&str, &str)> = twin
        .0
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("tag.")?, value.as_str())))
        .collect();
    let (mut first, mut second, mut tags) = (Vec::new(), Vec::new(), Vec::new());
    Pay {
        mch_id: twin.mch_id(),
        out_trade_no: twin.out_trade_no(),
        amount: twin.amount(),
        currency: twin.currency().unwrap(),
        method: by_name!(twin, Method, "method"),
        scene: by_name!(twin, Scene, "scene"),
        payer_token: twin.text("payer_token").as_bytes(),
        device_id: twin.text("device_id").as_bytes(),
        client_ip: unhex(twin.text("client_ip")).try_into().unwrap(),
        time_expire_ms: twin.number("time_expire"),
        notify: twin.text("notify").as_bytes(),
        wait_ms: twin.number("wait"),
        tags: Tags::build(&pairs, &mut tags).unwrap(),
        auth: auth_of(twin, "", &mut first),
        second: auth_of(twin, "second.", &mut second),
    }
    .encode_frame(correlation, out);
}

fn write_reply(kind: u8, twin: &Twin, correlation: u64, out: &mut Vec<u8>) {
    const REFUND: u8 = kind::REFUND | kind::REPLY;
    const QUERY_REFUND: u8 = kind::QUERY_REFUND | kind::REPLY;
    const PONG: u8 = kind::PING | kind::REPLY;
    const SUBSCRIBED: u8 = kind::SUBSCRIBE | kind::REPLY;
    match kind {
        PONG => Pong { token: twin.number("token"), time_ms: twin.number("time") }
            .encode_frame(correlation, out),
        SUBSCRIBED => Subscribe::reply_frame(correlation, out),
        REFUND | QUERY_REFUND => RefundReply {
            code: by_name!(twin, Code, "code"),
            retry_after_ms: twin.number("retry_after"),
            replayed: twin.flag("replayed"),
            state: by_name!(twin, RefundState, "state"),
            reason: by_name!(twin, Reason, "reason"),
            transaction_id: twin.transaction(),
            amount: twin.number("amount"),
            currency: twin.currency(),
            refunded: twin.number("refunded"),
            refunding: twin.number("refunding"),
            finished_at_ms: twin.number("finished_at"),
            leader_hint: twin.number("leader_hint"),
            channel_ref: twin.short("channel_ref"),
        }
        .encode_frame(kind, correlation, out),
        0x40..=0x44 => ChannelRequest {
            kind,
            charge_no: twin.channel_no("charge_no").unwrap(),
            refund_no: twin.channel_no("refund_no"),
            amount: twin.amount(),
            currency: twin.currency().unwrap(),
            time_expire_ms: twin.number("time_expire"),
        }
        .encode_frame(correlation, out),
        0xc0..=0xc4 => ChannelReply {
            kind,
            status: by_name!(twin, ChannelStatus, "status"),
            detail: twin.number("detail"),
            charge_no: twin.channel_no("charge_no").unwrap(),
            amount: twin.number("amount"),
            currency: twin.currency().unwrap(),
            channel_ref: twin.short("channel_ref"),
        }
        .encode_frame(correlation, out),
        _ => OrderReply {
            code: by_name!(twin, Code, "code"),
            retry_after_ms: twin.number("retry_after"),
            replayed: twin.flag("replayed"),
            state: by_name!(twin, OrderState, "state"),
            reason: by_name!(twin, Reason, "reason"),
            transaction_id: twin.transaction(),
            amount: twin.number("amount"),
            currency: twin.currency(),
            refunded: twin.number("refunded"),
            refunding: twin.number("refunding"),
            channel: twin.number("channel"),
            finished_at_ms: twin.number("finished_at"),
            leader_hint: twin.number("leader_hint"),
            out_trade_no: twin.short("out_trade_no"),
            channel_ref: twin.short("channel_ref"),
        }
        .encode_frame(kind, correlation, out),
    }
}

/// Derived values of a pay: what the server computes from it.
pub fn derived(twin: &mut Twin, frame: &[u8]) {
    let pay = Pay::decode(&frame[HEADER_LEN..]).unwrap();
    let digest = channel::order_digest(&pay.mch_id, &pay.out_trade_no);
    twin.put("shard_of_12", pay.mch_id.shard(12));
    twin.put("fingerprint", hex(&pay.fingerprint()));
    twin.put("order_digest", hex(&digest));
    twin.put("charge_no_1", channel::charge_number(&digest, 1));
}

/// A line of a leader: `leader.SHARD: site N term T`.
fn leader(shard: &str, line: &str) -> Leader {
    let words: Vec<&str> = line.split(' ').collect();
    let [_, site, _, term] = words[..] else { panic!("{line}") };
    Leader {
        shard: shard.parse().unwrap(),
        site: site.parse().unwrap(),
        term: term.parse().unwrap(),
    }
}
