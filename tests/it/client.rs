//! The Rust gateway client against the real switch.

use std::time::Duration;

use protocol::client::{Client, ClientConfig, ClientError, Signer, Site, Subscription};
use protocol::code::{Code, OrderState, RefundState};
use protocol::id::{OutRefundNo, OutTradeNo, TransactionId};
use protocol::message::{
    Auth, Event, OrderRef, OrderReply, OrderRequest, Pay, QueryRefund, Refund,
};
use protocol::money::{Amount, Currency};
use tests::Deployment;
use tests::gateway::{Merchant, merchant, pay};

use crate::run;

/// Longer than any pause of a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

async fn connect(deployment: &Deployment) -> Client {
    let pem = |name: &str| std::fs::read(deployment.file(name)).unwrap();
    let site = Site {
        address: deployment.address("gateway", "listen").parse().unwrap(),
        server_name: "site-1.site.payswitch".to_owned(),
    };
    let mut config = ClientConfig::new(
        vec![site],
        pem("certs/ca.pem"),
        pem("certs/gw-1.pem"),
        pem("certs/gw-1.key"),
    );
    config.connect_timeout = Duration::from_secs(60);
    Client::connect(config).await.unwrap()
}

fn signer(merchant: &Merchant) -> Signer {
    Signer::new(merchant.key_id, merchant.key.clone())
}

fn order(merchant: &Merchant, order: OrderRef) -> OrderRequest<'static> {
    OrderRequest { mch_id: merchant.id, order, refresh: false, wait_ms: 0, auth: Auth::NONE }
}

fn by_no(no: &str) -> OrderRef {
    OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap())
}

/// Pays until the outcome is final: a busy machine may get an early answer.
async fn paid(client: &Client, signer: &Signer, pay: &Pay<'_>) -> OrderReply {
    loop {
        let reply = client.pay(pay, signer, WITHIN).await.unwrap();
        if reply.state != OrderState::Processing {
            return reply;
        }
    }
}

#[test]
fn the_client_does_everything_and_goes_on_after_kill_9() {
    let deployment = Deployment::init(20);
    let _channel = deployment.channel(&[]);
    let switch = deployment.serve();
    // The first signs by HMAC, the last by Ed25519.
    let (m, other) = (merchant(&deployment, 0), merchant(&deployment, 19));
    let (signs, other_signs) = (signer(&m), signer(&other));
    let first = Pay { notify: b"outcomes", ..pay(&m, "c-1", 12_345) };
    run(async {
        let client = connect(&deployment).await;
        assert_eq!(client.sites(), [Ok(1)]);
        assert_eq!(client.ping(9, WITHIN).await.unwrap().token, 9);
        let mut events = client.subscribe(WITHIN).await.unwrap();

        let reply = paid(&client, &signs, &first).await;
        assert_eq!((reply.code, reply.state, reply.amount), (Code::Ok, OrderState::Paid, 12_345));
        let id = reply.transaction_id.unwrap();
        assert_eq!(hear(&mut events, id).await.state, OrderState::Paid);
        for reference in [by_no("c-1"), OrderRef::TransactionId(id)] {
            let found = client.query(&order(&m, reference), &signs, WITHIN).await.unwrap();
            assert_eq!((found.state, found.amount), (OrderState::Paid, 12_345));
        }
        refund_and_query(&client, &m, &signs).await;
        let refused = client.close(&order(&m, by_no("c-1")), &signs, WITHIN).await.unwrap();
        assert_eq!(refused.code, Code::OrderPaid);
        let reply = paid(&client, &other_signs, &pay(&other, "c-2", 700)).await;
        assert_eq!(reply.state, OrderState::Paid);
        let reversed = client.reverse(&order(&other, by_no("c-2")), &other_signs, WITHIN).await;
        assert_eq!(reversed.unwrap().code, Code::Ok);
        let forged = client.pay(&pay(&other, "c-3", 1), &signs, WITHIN).await.unwrap();
        assert!(matches!(forged.code, Code::BadSignature | Code::UnknownKey), "{forged:?}");

        switch.kill();
        let unheard = client.pay(&pay(&m, "c-4", 5), &signs, Duration::from_millis(300)).await;
        assert!(
            matches!(unheard, Err(ClientError::OutcomeUnknown { .. } | ClientError::NotSent)),
            "{unheard:?}"
        );
        // A pay that waits while the switch comes back, by the same client.
        let asked = {
            let (client, signs, pay) = (client.clone(), signs.clone(), pay(&m, "c-5", 5));
            tokio::spawn(async move { paid(&client, &signs, &pay).await })
        };
        let _switch = deployment.serve();
        assert_eq!(asked.await.unwrap().state, OrderState::Paid);
        let again = paid(&client, &signs, &first).await;
        assert_eq!((again.state, again.replayed), (OrderState::Paid, true));
        assert_eq!(again.transaction_id, Some(id));
        // The subscription goes on too.
        let next = Pay { notify: b"outcomes", ..pay(&m, "c-6", 77) };
        let id = paid(&client, &signs, &next).await.transaction_id.unwrap();
        assert_eq!(hear(&mut events, id).await.state, OrderState::Paid);
        assert!(client.shutdown(WITHIN).await);
    });
}

/// The first event of a payment that could be acknowledged. One that was read
/// from a connection since lost cannot be: it comes again.
async fn hear(events: &mut Subscription, id: TransactionId) -> Event {
    loop {
        let event = tokio::time::timeout(WITHIN, events.next()).await.unwrap().unwrap();
        let held = events.acknowledge(event.event_id).await.is_ok();
        if held && event.transaction_id == id {
            return event;
        }
    }
}

async fn refund_and_query(client: &Client, m: &Merchant, signs: &Signer) {
    let refund = Refund {
        mch_id: m.id,
        order: by_no("c-1"),
        out_refund_no: OutRefundNo::parse(b"r-1").unwrap(),
        amount: Amount::new(345).unwrap(),
        currency: Currency::new(*b"CNY").unwrap(),
        reason: b"too much",
        wait_ms: 0,
        auth: Auth::NONE,
    };
    let reply = client.refund(&refund, signs, WITHIN).await.unwrap();
    assert_eq!((reply.code, reply.amount), (Code::Ok, 345));
    let query = QueryRefund {
        mch_id: m.id,
        order: by_no("c-1"),
        out_refund_no: refund.out_refund_no,
        auth: Auth::NONE,
    };
    loop {
        let found = client.query_refund(&query, signs, WITHIN).await.unwrap();
        assert_eq!((found.code, found.amount), (Code::Ok, 345));
        if found.state == RefundState::Success {
            return;
        }
        assert_eq!(found.state, RefundState::Processing);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
