//! Pays once and asks for the state: everything a gateway needs, to be copied.
//!
//! ```text
//! payswitch init --dir demo
//! loadgen channel --config demo/channel.toml &
//! payswitch serve --config demo/site-1.toml &
//! cargo run -p protocol --features client --example pay -- \
//!     127.0.0.1:7400 demo/certs MERCHANT KEY_ID SECRET_HEX ORDER_NUMBER
//! ```
//!
//! The address is `gateway.listen` of `site-1.toml`; merchant, key id and
//! secret stand in `gateway-merchants.toml`.

use protocol::client::{Client, ClientConfig, Signer, Site};
use protocol::code::{Method, Scene};
use protocol::id::{MchId, OutTradeNo};
use protocol::message::{Auth, OrderRef, OrderRequest, Pay, Tags};
use protocol::money::{Amount, Currency};
use protocol::sign::SigningKey;
use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Until then an answer is wanted; afterwards the outcome is unknown.
const WITHIN: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, certs, merchant, key_id, secret, number] = args.as_slice() else {
        return Err("usage: pay ADDRESS CERTS MERCHANT KEY_ID SECRET_HEX ORDER_NUMBER".into());
    };
    let site = Site { address: address.parse()?, server_name: "site-1.site.payswitch".into() };
    let pem = |name: &str| std::fs::read(format!("{certs}/{name}"));
    let config = ClientConfig::new(vec![site], pem("ca.pem")?, pem("gw-1.pem")?, pem("gw-1.key")?);
    let client = Client::connect(config).await?;

    let signer = Signer::new(key_id.parse()?, SigningKey::hmac(&unhex(secret)?));
    let mch_id = MchId::parse(merchant.as_bytes()).map_err(|_| "not a merchant id")?;
    // Store the number before the first send: it is the idempotency key.
    let out_trade_no = OutTradeNo::parse(number.as_bytes()).map_err(|_| "not an order number")?;
    let pay = Pay {
        mch_id,
        out_trade_no,
        amount: Amount::new(12_34).ok_or("not an amount")?,
        currency: Currency::new(*b"CNY").ok_or("not a currency")?,
        method: Method::Wallet,
        scene: Scene::App,
        payer_token: b"tok_demo",
        device_id: b"",
        client_ip: [0; 16],
        time_expire_ms: now_ms() + 600_000,
        notify: b"",
        wait_ms: 5_000,
        tags: Tags::default(),
        auth: Auth::NONE, // filled by the signer
        second: Auth::NONE,
    };
    match client.pay(&pay, &signer, WITHIN).await {
        Ok(reply) => println!("pay: {} {}", reply.code.name(), reply.state.name()),
        // Never a new number now: ask by query, or send the same content again.
        Err(error) if error.may_have_acted() => println!("pay: {error}"),
        Err(error) => return Err(error.into()),
    }
    let order = OrderRef::OutTradeNo(out_trade_no);
    let query = OrderRequest { mch_id, order, refresh: false, wait_ms: 1_000, auth: Auth::NONE };
    let found = client.query(&query, &signer, WITHIN).await?;
    println!("query: {} {} {}", found.code.name(), found.state.name(), found.amount);
    client.shutdown(WITHIN).await;
    Ok(())
}

fn unhex(text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| Ok(u8::from_str_radix(std::str::from_utf8(two)?, 16)?)).collect()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
