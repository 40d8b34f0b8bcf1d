//! From a request to an answer: who may ask what, within which bounds.

use super::api::{
    DecideRequest, Done, DrainRequest, ErrorBody, ErrorDetail, LimitRequest, MemberRequest,
    MemberStep, MerchantView, TransferRequest,
};
use super::control::{Answer, Control, ControlError};
use super::decisions::{Decision, PROPOSAL_LIFE, Proposals, Verdict};
use crate::config::merchants::MerchantSpec;
use crate::config::{Problem, quotes_a_value};
use crate::engine::input::AdminCommand;
use crate::engine::merchant::Merchant;
use crate::secret::{Kek, Secret};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use protocol::id::{MchId, OutRefundNo, OutTradeNo, ShortText};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Largest request body, bytes.
pub(super) const BODY_MAX: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const IN_DOUBT_DEFAULT: usize = 100;
const IN_DOUBT_MAX: usize = 10_000;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(super) enum Peer {
    /// Anyone on this machine.
    Plain,
    /// An operator, by the name in the certificate.
    Operator(ShortText),
    /// A certificate of our authority that is not an operator's.
    Stranger(String),
}

/// What requests need.
pub(super) struct Context {
    pub(super) control: Arc<dyn Control>,
    pub(super) kek: Arc<Kek>,
    pub(super) proposals: Mutex<Proposals>,
}

impl Context {
    pub(super) fn new(control: Arc<dyn Control>, kek: Arc<Kek>) -> Self {
        Self { control, kek, proposals: Mutex::default() }
    }
}

/// A refusal on its way to JSON.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    leader: Option<u16>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), leader: None }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let (status, code) = match &error {
            ControlError::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ControlError::NotLeader { .. } => (StatusCode::MISDIRECTED_REQUEST, "not_leader"),
            ControlError::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "no_leader"),
            ControlError::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            ControlError::Refused(_) => (StatusCode::CONFLICT, "refused"),
        };
        let leader = match &error {
            ControlError::NotLeader { leader } => Some(*leader),
            _ => None,
        };
        Self { leader, ..Self::new(status, code, error.to_string()) }
    }
}

type Page = Response<Full<Bytes>>;
type Routed = Result<Page, Refusal>;

const PATHS: [(&str, Method, bool); 13] = [
    ("/ready", Method::GET, false),
    ("/status", Method::GET, false),
    ("/metrics", Method::GET, false),
    ("/v1/merchant", Method::GET, true),
    ("/v1/merchant", Method::POST, true),
    ("/v1/limit", Method::POST, true),
    ("/v1/decide", Method::POST, true),
    ("/v1/drain", Method::POST, true),
    ("/v1/transfer", Method::POST, true),
    ("/v1/member", Method::POST, true),
    ("/v1/member/step", Method::POST, true),
    ("/v1/in-doubt", Method::GET, true),
    ("/v1/explain", Method::GET, true),
];

/// Answers a request; never fails, whatever is asked.
pub(super) async fn answer<B>(context: &Context, peer: &Peer, request: Request<B>) -> Page
where
    B: hyper::body::Body,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    route(context, peer, request).await.unwrap_or_else(refusal_page)
}

async fn route<B>(context: &Context, peer: &Peer, request: Request<B>) -> Routed
where
    B: hyper::body::Body,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let privileged = lookup(request.method(), request.uri().path())?;
    let operator = if privileged { Some(operator(peer)?) } else { None };
    let (head, body) = request.into_parts();
    let query = Query(head.uri.query().unwrap_or(""));
    let control = &*context.control;
    match (head.uri.path(), head.method, operator) {
        ("/ready", ..) => Ok(ready(control)),
        ("/status", ..) => json(StatusCode::OK, &control.status()),
        ("/metrics", ..) => Ok(metrics(control)),
        ("/v1/merchant", Method::GET, _) => merchant(control, &query),
        ("/v1/in-doubt", ..) => in_doubt(control, &query).await,
        ("/v1/explain", ..) => explain(control, &query).await,
        (path, _, Some(operator)) => {
            let body = read_body(body).await?;
            let (operator, command) = match path {
                "/v1/merchant" => (operator, put_merchant(context, &query, &body)?),
                "/v1/limit" => (operator, put_limits(control, &body)?),
                "/v1/drain" => (operator, set_drained(&body)?),
                "/v1/member" => (operator, set_member(&body)?),
                "/v1/member/step" => {
                    let MemberStep { shard, site, member } = parse(&body)?;
                    let step = control.seek_member(operator, shard, site, member);
                    return json(StatusCode::OK, &wait(step).await?);
                }
                "/v1/transfer" => {
                    let TransferRequest { shard, site } = parse(&body)?;
                    let done = wait(control.transfer(shard, site)).await?;
                    return json(StatusCode::OK, &Done { done });
                }
                _ => match decide(context, operator, &body)? {
                    Decided::Proposed(page) => return Ok(page),
                    Decided::Agreed(first, command) => (first, command),
                },
            };
            let done = wait(control.command(operator, command)).await?;
            json(StatusCode::OK, &Done { done })
        }
        (_, _, None) => Err(no_such_path()),
    }
}

/// Whether the path is for operators only.
fn lookup(method: &Method, path: &str) -> Result<bool, Refusal> {
    let mut known = PATHS.iter().filter(|(known, ..)| *known == path).peekable();
    if known.peek().is_none() {
        return Err(no_such_path());
    }
    // HEAD is GET without a body; hyper leaves the body out by itself.
    let asked = if method == Method::HEAD { &Method::GET } else { method };
    match known.find(|(_, allowed, _)| allowed == asked) {
        Some((_, _, privileged)) => Ok(*privileged),
        None => Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{path} does not take {method}"),
        )),
    }
}

fn no_such_path() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no_such_path", "no such path")
}

fn operator(peer: &Peer) -> Result<ShortText, Refusal> {
    let (code, message) = match peer {
        Peer::Operator(name) => return Ok(*name),
        Peer::Plain => (
            "client_certificate_required",
            "only over TLS with a client certificate of the role admin (admin.tls_listen)".into(),
        ),
        Peer::Stranger(why) => {
            ("wrong_role", format!("{why}; a certificate of the role admin is needed"))
        }
    };
    Err(Refusal::new(StatusCode::FORBIDDEN, code, message))
}

fn ready(control: &dyn Control) -> Page {
    match control.ready() {
        Ok(()) => page(StatusCode::OK, TEXT, "ready\n".to_owned()),
        Err(reason) => {
            page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {reason}\n"))
        }
    }
}

fn metrics(control: &dyn Control) -> Page {
    let mut text = String::with_capacity(64 << 10);
    control.render_metrics(&mut text);
    page(StatusCode::OK, METRICS, text)
}

fn merchant(control: &dyn Control, query: &Query<'_>) -> Routed {
    let merchant = known_merchant(control, &query.required("mch")?)?;
    json(StatusCode::OK, &MerchantView::from(&merchant))
}

async fn in_doubt(control: &dyn Control, query: &Query<'_>) -> Routed {
    let limit = match query.optional("limit")? {
        None => IN_DOUBT_DEFAULT,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=IN_DOUBT_MAX).contains(limit))
            .ok_or_else(|| Refusal::bad_request(format!("limit: 1 to {IN_DOUBT_MAX}")))?,
    };
    json(StatusCode::OK, &wait(control.in_doubt(limit)).await?)
}

async fn explain(control: &dyn Control, query: &Query<'_>) -> Routed {
    let mch_id = mch_id(&query.required("mch")?)?;
    let out_trade_no = out_trade_no(&query.required("out_trade_no")?)?;
    json(StatusCode::OK, &wait(control.explain(mch_id, out_trade_no)).await?)
}

fn put_merchant(
    context: &Context,
    query: &Query<'_>,
    body: &Secret,
) -> Result<AdminCommand, Refusal> {
    let only_if_absent = match query.optional("only_if_absent")?.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Refusal::bad_request("only_if_absent: true or false")),
    };
    let spec: MerchantSpec = parse(body)?;
    let merchant = spec.seal(&context.kek).map_err(|problems| invalid(&problems))?;
    Ok(AdminCommand::PutMerchant { merchant, only_if_absent })
}

fn put_limits(control: &dyn Control, body: &Secret) -> Result<AdminCommand, Refusal> {
    let request: LimitRequest = parse(body)?;
    let merchant = known_merchant(control, &request.mch)?;
    let limits = request.over(merchant.limits).parse().map_err(|problems| invalid(&problems))?;
    Ok(AdminCommand::PutLimits { mch_id: merchant.mch_id, limits, until_ms: request.until_ms })
}

fn set_drained(body: &Secret) -> Result<AdminCommand, Refusal> {
    let request: DrainRequest = parse(body)?;
    let site = u8::try_from(request.site);
    let site = site.map_err(|_| Refusal::bad_request("site: no such site"))?;
    Ok(AdminCommand::SetDrained { site, drained: request.drained })
}

fn set_member(body: &Secret) -> Result<AdminCommand, Refusal> {
    let request: MemberRequest = parse(body)?;
    let site = u8::try_from(request.site);
    let site = site.map_err(|_| Refusal::bad_request("site: no such site"))?;
    Ok(AdminCommand::SetMember { site, member: request.member })
}

enum Decided {
    /// The first word: an answer, no command yet.
    Proposed(Page),
    /// The second word: the first operator and the command.
    Agreed(ShortText, AdminCommand),
}

fn decide(context: &Context, operator: ShortText, body: &Secret) -> Result<Decided, Refusal> {
    let request: DecideRequest = parse(body)?;
    let out_refund_no = request.out_refund_no.as_deref().map(out_refund_no).transpose()?;
    let decision = Decision {
        mch_id: mch_id(&request.mch)?,
        out_trade_no: out_trade_no(&request.out_trade_no)?,
        out_refund_no,
        success: request.success,
    };
    let note = text("note", &request.note)?;
    // The words of both operators must meet, so they all go where the decision is carried out.
    if let Some(elsewhere) = context.control.led_elsewhere(decision.mch_id) {
        return Err(elsewhere.into());
    }
    // A panic while it was held cannot have left half a proposal.
    let mut proposals = context.proposals.lock().unwrap_or_else(PoisonError::into_inner);
    match proposals.say(decision, operator, note, Instant::now()) {
        Verdict::Agreed { first, note } => Ok(Decided::Agreed(first, decision.by(operator, note))),
        Verdict::Proposed => {
            let minutes = PROPOSAL_LIFE.as_secs() / 60;
            let done = format!(
                "proposed by {operator}: another operator must send the same decision within {minutes} minutes"
            );
            json(StatusCode::ACCEPTED, &Done { done }).map(Decided::Proposed)
        }
        Verdict::Contradicted { first } => Err(Refusal::new(
            StatusCode::CONFLICT,
            "contradicted",
            format!("{first} proposed the opposite: agree first"),
        )),
        Verdict::Full => Err(Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many open proposals: confirm some, or wait until they expire",
        )),
    }
}

impl Decision {
    fn by(self, second: ShortText, note: ShortText) -> AdminCommand {
        let Self { mch_id, out_trade_no, out_refund_no, success } = self;
        AdminCommand::Decide { mch_id, out_trade_no, out_refund_no, success, second, note }
    }
}

fn out_refund_no(text: &str) -> Result<OutRefundNo, Refusal> {
    OutRefundNo::parse(text.as_bytes()).map_err(|_| {
        Refusal::bad_request(format!(
            "out_refund_no: {text:?}; allowed: 1 to 32 of 0-9 A-Z a-z _ | * -"
        ))
    })
}

fn mch_id(text: &str) -> Result<MchId, Refusal> {
    MchId::parse(text.as_bytes()).map_err(|_| {
        Refusal::bad_request(format!("mch: {text:?}; allowed: 1 to 32 of 0-9 A-Z a-z _ -"))
    })
}

fn out_trade_no(text: &str) -> Result<OutTradeNo, Refusal> {
    OutTradeNo::parse(text.as_bytes()).map_err(|_| {
        Refusal::bad_request(format!(
            "out_trade_no: {text:?}; allowed: 1 to 32 of 0-9 A-Z a-z _ | * -"
        ))
    })
}

fn text(key: &str, text: &str) -> Result<ShortText, Refusal> {
    ShortText::new(text.as_bytes())
        .filter(|text| !text.is_empty())
        .ok_or_else(|| Refusal::bad_request(format!("{key}: 1 to 32 printable ASCII characters")))
}

fn known_merchant(control: &dyn Control, id: &str) -> Result<Merchant, Refusal> {
    let merchant = control.merchant(mch_id(id)?);
    merchant.ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("no merchant {id}"))
    })
}

fn invalid(problems: &[Problem]) -> Refusal {
    let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Refusal::bad_request(all.join("; "))
}

/// Bodies may hold merchants' keys: kept where they are zeroed afterwards.
async fn read_body<B>(body: B) -> Result<Secret, Refusal>
where
    B: hyper::body::Body,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Limited::new(body, BODY_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, collected).await {
        Ok(Ok(body)) => Ok(Secret::new(body.to_bytes().to_vec())),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is longer than {BODY_MAX} bytes"),
        )),
        Ok(Err(_)) => Err(Refusal::bad_request("the body ended early")),
        Err(_) => {
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long"))
        }
    }
}

/// serde's messages name fields and positions. They may quote a value of the
/// wrong type, which could be a misplaced secret: only its place is told.
fn parse<T: DeserializeOwned>(body: &Secret) -> Result<T, Refusal> {
    serde_json::from_slice(body.expose()).map_err(|error| {
        let message = error.to_string();
        let quoted = quotes_a_value(&message);
        let (line, column) = (error.line(), error.column());
        Refusal::bad_request(match quoted {
            true => format!("a value of the wrong type at line {line} column {column}"),
            false => format!("not the expected JSON: {message}"),
        })
    })
}

async fn wait<T>(answer: Answer<T>) -> Result<T, Refusal> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer?),
        Ok(Err(_)) => {
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the node is stopping"))
        }
        Err(_) => Err(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "no_answer",
            "no answer in time: the command may still be carried out; look before asking again",
        )),
    }
}

/// A request's query string.
struct Query<'a>(&'a str);

impl Query<'_> {
    fn optional(&self, key: &str) -> Result<Option<String>, Refusal> {
        let value =
            self.0.split('&').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == key);
        match value {
            None => Ok(None),
            Some((_, value)) => percent_decode(value)
                .map(Some)
                .ok_or_else(|| Refusal::bad_request(format!("{key}: bad percent encoding"))),
        }
    }

    fn required(&self, key: &str) -> Result<String, Refusal> {
        self.optional(key)?
            .ok_or_else(|| Refusal::bad_request(format!("{key} is missing in the query")))
    }
}

pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        decoded.push((high << 4 | low) as u8);
    }
    String::from_utf8(decoded).ok()
}

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";

fn page(status: StatusCode, kind: &'static str, body: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(body)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

fn json(status: StatusCode, body: &impl Serialize) -> Routed {
    match serde_json::to_string(body) {
        Ok(text) => Ok(page(status, JSON, text)),
        Err(error) => {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string()))
        }
    }
}

fn refusal_page(refusal: Refusal) -> Page {
    let error = ErrorDetail {
        code: refusal.code.to_owned(),
        leader: refusal.leader,
        message: refusal.message,
    };
    // Two strings always serialise.
    let text = serde_json::to_string(&ErrorBody { error }).unwrap_or_default();
    let mut page = page(refusal.status, JSON, text);
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        page.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    page
}
