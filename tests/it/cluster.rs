//! Three sites as real processes: one dies, stops or leaves, and nobody is
//! charged twice, forgotten or let through above a limit.

use std::sync::OnceLock;
use std::time::Duration;

use protocol::client::{Client, ClientConfig, Signer, Site};
use protocol::code::{Code, OrderState};
use protocol::id::OutTradeNo;
use protocol::message::{Auth, OrderRef, OrderReply, OrderRequest, Pay};
use tests::cluster::Cluster;
use tests::gateway::{Gateway, Merchant, merchant, now_ms, pay, signed_pay};
use tests::{Process, wait_until};

use crate::run;

/// Longer than any pause of a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
const SHARDS: u16 = 12;
const MERCHANTS: u32 = 40;

fn signer(merchant: &Merchant) -> Signer {
    Signer::new(merchant.key_id, merchant.key.clone())
}

/// A client of all sites.
pub(crate) async fn connect(cluster: &Cluster) -> Client {
    let deployment = &cluster.deployment;
    let pem = |name: &str| std::fs::read(deployment.file(name)).unwrap();
    let serving = cluster.sites().filter(|site| !cluster.is_witness(*site));
    let sites = serving.map(|site| Site {
        address: deployment.site_config(site)["gateway"]["listen"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap(),
        server_name: format!("site-{site}.site.payswitch"),
    });
    let (ca, cert) = (pem("certs/ca.pem"), pem("certs/gw-1.pem"));
    let mut config = ClientConfig::new(sites.collect(), ca, cert, pem("certs/gw-1.key"));
    config.connect_timeout = Duration::from_secs(60);
    config.transport.idle_max = Duration::from_secs(60);
    Client::connect(config).await.unwrap()
}

/// The same request whenever it is made for the same number.
fn same_pay(merchant: &Merchant, no: &str) -> Pay<'static> {
    static EXPIRES_MS: OnceLock<u64> = OnceLock::new();
    let time_expire_ms = *EXPIRES_MS.get_or_init(|| now_ms() + 3_600_000);
    Pay { time_expire_ms, ..pay(merchant, no, 100) }
}

/// Pays until the outcome is final: a busy machine may get an early answer.
pub(crate) async fn paid(client: &Client, merchant: &Merchant, no: &str) -> OrderReply {
    loop {
        let reply = client.pay(&same_pay(merchant, no), &signer(merchant), WITHIN).await.unwrap();
        if reply.state != OrderState::Processing {
            assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Paid), "{no}");
            return reply;
        }
    }
}

pub(crate) async fn queried(client: &Client, merchant: &Merchant, no: &str) -> OrderReply {
    let order = OrderRef::OutTradeNo(OutTradeNo::parse(no.as_bytes()).unwrap());
    let request =
        OrderRequest { mch_id: merchant.id, order, refresh: false, wait_ms: 0, auth: Auth::NONE };
    client.query(&request, &signer(merchant), WITHIN).await.unwrap()
}

/// The first merchant of each shard.
pub(crate) fn one_of_each_shard(cluster: &Cluster) -> Vec<Merchant> {
    let all = (0..MERCHANTS as usize).map(|at| merchant(&cluster.deployment, at));
    let mut found: Vec<Option<Merchant>> = vec![None; usize::from(SHARDS)];
    for merchant in all {
        let slot = &mut found[usize::from(merchant.id.shard(SHARDS))];
        slot.get_or_insert(merchant);
    }
    found.into_iter().map(|merchant| merchant.expect("a merchant in every shard")).collect()
}

/// Three sites that lead their shares, and their channel.
fn three_sites() -> (Cluster, Process) {
    let mut cluster = Cluster::init(3, MERCHANTS);
    let channel = cluster.deployment.channel(&[]);
    cluster.start();
    wait_spread(&cluster, 1);
    (cluster, channel)
}

/// Waits until every site leads its share, as `asked` sees it.
pub(crate) fn wait_spread(cluster: &Cluster, asked: u16) {
    wait_until("every site leads its share", || cluster.leads(asked) == [0, 4, 4, 4]);
}

#[test]
fn a_site_dies_under_way_and_nothing_acknowledged_is_lost_or_paid_twice() {
    let (mut cluster, _channel) = three_sites();
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        let mut before = Vec::new();
        for merchant in &merchants {
            before.push(paid(&client, merchant, "before").await);
        }
        cluster.kill(2);
        for (merchant, first) in merchants.iter().zip(&before) {
            let found = queried(&client, merchant, "before").await;
            assert_eq!(
                (found.state, found.transaction_id),
                (OrderState::Paid, first.transaction_id)
            );
            let again = paid(&client, merchant, "before").await;
            assert!(again.replayed && again.transaction_id == first.transaction_id);
            paid(&client, merchant, "after").await;
        }
        // What is reported is refreshed a few times a second.
        wait_until("the dead site leads nothing", || cluster.leads(1)[2] == 0);
        cluster.start_site(2);
        cluster.wait_ready(2);
        wait_spread(&cluster, 2);
        for merchant in &merchants {
            assert_eq!(queried(&client, merchant, "after").await.state, OrderState::Paid);
        }
    });
}

#[test]
fn two_sites_and_a_witness_survive_either_of_the_two() {
    let mut cluster = Cluster::init_witness(MERCHANTS);
    let _channel = cluster.deployment.channel(&[]);
    cluster.start();
    let is_spread = |cluster: &Cluster, asked| cluster.leads(asked) == [0, 6, 6, 0];
    wait_until("both lead their share", || is_spread(&cluster, 3));
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        for merchant in &merchants {
            paid(&client, merchant, "both").await;
        }
        for (lost, left) in [(2, 1), (1, 2)] {
            cluster.kill(lost);
            for merchant in &merchants {
                assert_eq!(queried(&client, merchant, "both").await.state, OrderState::Paid);
                paid(&client, merchant, &format!("without-{lost}")).await;
            }
            // What is reported is refreshed a few times a second.
            let leads = |cluster: &Cluster| cluster.leads(left)[usize::from(left)];
            wait_until("the other leads all", || leads(&cluster) == usize::from(SHARDS));
            cluster.start_site(lost);
            cluster.wait_ready(lost);
            wait_until("both lead their share again", || is_spread(&cluster, left));
        }
    });
}

#[test]
fn limits_hold_over_a_takeover() {
    let (mut cluster, _channel) = three_sites();
    let limited = one_of_each_shard(&cluster)
        .into_iter()
        .find(|merchant| cluster.leader(1, merchant.id.shard(SHARDS)) == 2)
        .expect("site 2 leads something");
    let id = limited.id.to_string();
    // Asked at a site that does not lead the merchant: the command goes on to the one that does.
    cluster.admin(1, &["limit", "set", &id, "--pay-per-minute", "1", "--burst", "3"]);
    run(async {
        let client = connect(&cluster).await;
        for no in ["l-1", "l-2", "l-3"] {
            paid(&client, &limited, no).await;
        }
        // Through site 1, which asks whoever leads.
        let mut gateway = Gateway::open(&cluster.deployment).await;
        let fourth = signed_pay(&limited, &same_pay(&limited, "l-4"), 4);
        assert_eq!(gateway.order(&fourth).await.code, Code::RateLimited);
        cluster.kill(2);
        let fifth = signed_pay(&limited, &same_pay(&limited, "l-5"), 5);
        let refused = loop {
            let reply = gateway.order(&fifth).await;
            if !matches!(reply.code, Code::NoLeader | Code::NotLeader) {
                break reply;
            }
        };
        assert_eq!(refused.code, Code::RateLimited, "the new leader goes on where the old one was");
        assert!(paid(&client, &limited, "l-1").await.replayed);
    });
}

#[test]
fn any_site_answers_through_the_leader_and_says_who_it_is() {
    let (cluster, _channel) = three_sites();
    let merchants = one_of_each_shard(&cluster);
    run(async {
        // Connected to site 1 only.
        let mut gateway = Gateway::open(&cluster.deployment).await;
        assert_eq!((gateway.hello.site, gateway.hello.sites), (1, 3));
        for merchant in &merchants {
            // Only where the shard moved meanwhile is it asked again, for a repetition.
            let order = pay(merchant, "f-1", 5);
            for nonce in 7.. {
                let leader = cluster.leader(1, merchant.id.shard(SHARDS));
                let reply = gateway.order(&signed_pay(merchant, &order, nonce)).await;
                assert_eq!((reply.code, reply.state), (Code::Ok, OrderState::Paid));
                let hint = if leader == 1 { 0 } else { leader };
                if u16::from(reply.leader_hint) == hint {
                    break;
                }
                // What a site says of leaders is at most 200 ms old.
                tokio::time::sleep(Duration::from_millis(500)).await;
                let now = cluster.leader(1, merchant.id.shard(SHARDS));
                assert!(now != leader && nonce < 50, "{}: {}", merchant.id, reply.leader_hint);
            }
        }
    });
}

#[test]
fn a_drained_site_leads_nothing_until_it_is_let_back() {
    let (mut cluster, _channel) = three_sites();
    cluster.admin(2, &["drain", "3"]);
    assert_eq!(cluster.leads(2)[3], 0);
    // It stays drained over the restart of a whole site.
    cluster.stop(1);
    cluster.start_site(1);
    cluster.wait_ready(1);
    wait_until("site 1 leads again", || cluster.leads(1)[1] >= 4);
    assert_eq!(cluster.leads(1)[3], 0);
    assert_eq!(cluster.status(1)["drained"], serde_json::json!([3]));
    cluster.admin(3, &["undrain", "3"]);
    wait_spread(&cluster, 3);
    let moved = cluster.admin(1, &["transfer", "0", "2"]);
    assert!(moved.contains("shard 0 goes to site 2"), "{moved}");
    wait_until("shard 0 has moved", || cluster.leader(3, 0) == 2);
    wait_spread(&cluster, 1);
}

#[test]
fn a_rolling_restart_and_a_stopped_process_fail_no_request() {
    let (mut cluster, _channel) = three_sites();
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        for site in cluster.sites() {
            cluster.stop(site);
            for merchant in &merchants {
                paid(&client, merchant, &format!("stopped-{site}")).await;
            }
            cluster.start_site(site);
            cluster.wait_ready(site);
            wait_spread(&cluster, site);
        }
        cluster.process(3).signal("STOP");
        for merchant in &merchants {
            paid(&client, merchant, "frozen-3").await;
        }
        cluster.process(3).signal("CONT");
        wait_spread(&cluster, 3);
        for merchant in &merchants {
            assert_eq!(queried(&client, merchant, "frozen-3").await.state, OrderState::Paid);
        }
    });
}

#[test]
fn a_site_that_was_away_for_long_is_brought_level_from_the_log() {
    let (mut cluster, _channel) = three_sites();
    cluster.kill(3);
    // One merchant, so that its shard's log grows beyond what memory keeps.
    let gateway = cluster.deployment.file("gateway.toml");
    let ran = cluster.deployment.loadgen(&[
        "run",
        "--config",
        gateway.to_str().unwrap(),
        "--rate",
        "4000",
        "--duration",
        "10",
        "--merchants",
        "1",
    ]);
    assert!(matches!(ran.status.code(), Some(0 | 5)), "{}", tests::text(&ran));
    let applied = |cluster: &Cluster, site: u16| -> Vec<u64> {
        let status = cluster.status(site);
        let shards = status["shards"].as_array().cloned().unwrap_or_default();
        shards.iter().map(|shard| shard["applied"].as_u64().unwrap_or(0)).collect()
    };
    cluster.start_site(3);
    wait_until("site 3 is level", || {
        applied(&cluster, 3).len() == usize::from(SHARDS)
            && applied(&cluster, 3) == applied(&cluster, 1)
    });
    wait_spread(&cluster, 3);
}
