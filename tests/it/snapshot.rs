//! Sites that need more than the logs of the others still hold: away for too
//! long, or new.

use protocol::client::Client;
use protocol::code::OrderState;
use protocol::id::TransactionId;
use tests::cluster::Cluster;
use tests::gateway::Merchant;
use tests::{text, wait_until};

use crate::cluster::{connect, one_of_each_shard, paid, queried, wait_spread};
use crate::run;

const SHARDS: usize = 12;
const MERCHANTS: u32 = 40;

/// Sites whose states are written down often and whose logs are kept short; those
/// behind the first `voters` are no members yet.
fn sites(sites: u16, voters: u16) -> Cluster {
    let cluster = Cluster::init_voters(sites, voters, MERCHANTS);
    for site in cluster.sites() {
        let deployment = &cluster.deployment;
        deployment.small_segments_of(site);
        deployment.edit_site(site, "# checkpoint_mib = 1024", "checkpoint_mib = 1");
        deployment.edit_site(site, "# keep_mib = 0", "keep_mib = 1");
    }
    cluster
}

fn first_segment_is_gone(cluster: &Cluster, site: u16) -> bool {
    let dir = cluster.deployment.file(&format!("data/site-{site}/worker-0"));
    !dir.join(format!("{:016x}.wal", 1)).exists()
}

/// Load until the logs of these sites do not begin at the beginning any more.
fn load_until_released(cluster: &Cluster, on: &[u16]) {
    let gateway = cluster.deployment.file("gateway.toml");
    let gateway = gateway.to_str().expect("a UTF-8 path");
    for _ in 0..20 {
        let args = ["run", "--config", gateway, "--rate", "1500", "--duration", "5"];
        let ran = cluster.deployment.loadgen(&args);
        assert!(matches!(ran.status.code(), Some(0 | 5)), "{}", text(&ran));
        if on.iter().all(|site| first_segment_is_gone(cluster, *site)) {
            return;
        }
    }
    panic!("nothing is released");
}

/// Each shard's last block and number of payments, as a site says.
fn states(cluster: &Cluster, site: u16) -> Vec<(u64, u64)> {
    let status = cluster.status(site);
    let shards = status["shards"].as_array().cloned().unwrap_or_default();
    let word = |value: &serde_json::Value| value.as_u64().unwrap_or(u64::MAX);
    shards.iter().map(|shard| (word(&shard["applied"]), word(&shard["orders"]))).collect()
}

fn wait_level(cluster: &Cluster, one: u16, other: u16) {
    wait_until("the site is level", || {
        let (one, other) = (states(cluster, one), states(cluster, other));
        one.len() == SHARDS && one == other
    });
}

/// A payment per shard; what was said of it.
async fn pay_each(client: &Client, merchants: &[Merchant], no: &str) -> Vec<TransactionId> {
    let mut ids = Vec::new();
    for merchant in merchants {
        ids.push(paid(client, merchant, no).await.transaction_id.expect("a number"));
    }
    ids
}

/// Every one is known as it was, and not charged again.
async fn check_each(client: &Client, merchants: &[Merchant], no: &str, ids: &[TransactionId]) {
    for (merchant, id) in merchants.iter().zip(ids) {
        let found = queried(client, merchant, no).await;
        assert_eq!((found.state, found.transaction_id), (OrderState::Paid, Some(*id)), "{no}");
        let again = paid(client, merchant, no).await;
        assert!(again.replayed && again.transaction_id == Some(*id), "{no}");
    }
}

#[test]
fn a_site_away_for_longer_than_the_logs_reach_back_is_brought_up_and_leads_again() {
    let mut cluster = sites(3, 3);
    let _channel = cluster.deployment.channel(&[]);
    cluster.start();
    wait_spread(&cluster, 1);
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        let before = pay_each(&client, &merchants, "before").await;
        cluster.kill(3);
        load_until_released(&cluster, &[1, 2]);
        let away = pay_each(&client, &merchants, "away").await;
        cluster.start_site(3);
        cluster.wait_ready(3);
        wait_level(&cluster, 3, 1);
        let installed = cluster.deployment.site_metric(3, "snapshots_installed_total");
        assert!(installed > 0, "{}", cluster.process(3).printed());
        wait_spread(&cluster, 3);
        // Alone at the front, it says the same.
        cluster.admin(3, &["drain", "1"]);
        cluster.admin(3, &["drain", "2"]);
        wait_until("site 3 leads all", || cluster.leads(3) == [0, 0, 0, SHARDS]);
        check_each(&client, &merchants, "before", &before).await;
        check_each(&client, &merchants, "away", &away).await;
        let after = pay_each(&client, &merchants, "after").await;
        cluster.admin(3, &["undrain", "1"]);
        cluster.admin(3, &["undrain", "2"]);
        // And from its own disk.
        cluster.kill(3);
        cluster.start_site(3);
        cluster.wait_ready(3);
        wait_spread(&cluster, 3);
        wait_level(&cluster, 3, 2);
        check_each(&client, &merchants, "after", &after).await;
    });
    for site in cluster.sites() {
        cluster.stop(site);
        let dir = cluster.deployment.file(&format!("data/site-{site}/worker-0"));
        let verify = cluster.deployment.payswitch(&["log", "verify", dir.to_str().unwrap()]);
        assert!(verify.status.success(), "{}", text(&verify));
    }
}

#[test]
fn a_site_killed_while_a_state_comes_begins_anew_or_goes_on() {
    let mut cluster = sites(3, 3);
    let _channel = cluster.deployment.channel(&[]);
    cluster.start();
    wait_spread(&cluster, 1);
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        let before = pay_each(&client, &merchants, "before").await;
        cluster.kill(3);
        load_until_released(&cluster, &[1, 2]);
        for after_ms in [150, 300, 450, 600] {
            cluster.start_site(3);
            std::thread::sleep(std::time::Duration::from_millis(after_ms));
            let printed = cluster.process(3).printed();
            assert!(cluster.process(3).runs(), "it refuses what it has:\n{printed}");
            cluster.kill(3);
        }
        cluster.start_site(3);
        cluster.wait_ready(3);
        wait_level(&cluster, 3, 1);
        wait_spread(&cluster, 3);
        check_each(&client, &merchants, "before", &before).await;
    });
}

#[test]
fn a_new_site_joins_when_the_logs_have_lost_their_beginning() {
    let mut cluster = sites(4, 3);
    let _channel = cluster.deployment.channel(&[]);
    for site in 1..=3 {
        cluster.start_site(site);
    }
    for site in 1..=3 {
        cluster.wait_ready(site);
    }
    wait_until("the first three lead", || cluster.leads(1) == [0, 4, 4, 4, 0]);
    load_until_released(&cluster, &[1, 2, 3]);
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        let before = pay_each(&client, &merchants, "before").await;
        cluster.start_site(4);
        let added = cluster.admin(1, &["member", "add", "4"]);
        assert!(added.contains("all 12 shards"), "{added}");
        cluster.wait_ready(4);
        wait_level(&cluster, 4, 1);
        let installed = cluster.deployment.site_metric(4, "snapshots_installed_total");
        assert!(installed >= SHARDS as u64, "{}", cluster.process(4).printed());
        // Members are in the states and survive a restart from them.
        cluster.kill(4);
        cluster.start_site(4);
        cluster.wait_ready(4);
        let status = cluster.status(4);
        for shard in status["shards"].as_array().expect("shards") {
            assert_eq!(shard["voters"], serde_json::json!([1, 2, 3, 4]), "{shard}");
        }
        check_each(&client, &merchants, "before", &before).await;
    });
}
