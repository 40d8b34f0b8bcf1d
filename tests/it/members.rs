//! Sites of real processes that join, leave, and are lost for good.

use protocol::code::OrderState;
use protocol::message::Pay;
use tests::gateway::{Gateway, Merchant, merchant, pay, signed_pay};
use tests::{Deployment, text, wait_until};

use crate::run;

/// Whether a site is ready and every shard has exactly these voters.
fn settled(deployment: &Deployment, site: u16, voters: &[u16]) -> bool {
    deployment.site_status(site).is_ok_and(|status| {
        let shards = status["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
        let same = |shard: &serde_json::Value| {
            shard["voters"] == serde_json::json!(voters) && shard["joint"] == false
        };
        status["ready"] == true && shards.len() == 12 && shards.iter().all(same)
    })
}

fn channel_is_up(deployment: &Deployment, site: u16) -> bool {
    deployment.site_status(site).is_ok_and(|status| status["channels"][0]["up"] == true)
}

fn member(deployment: &Deployment, verb: &str, site: u16) {
    let config = deployment.site_file(1);
    let config = config.to_str().expect("a UTF-8 path");
    let site = site.to_string();
    let output = deployment.payswitch(&["admin", "--config", config, "member", verb, &site]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("all 12 shards"), "{}", text(&output));
}

/// Sends these through site 1; whether each was answered from its record.
fn paid(deployment: &Deployment, orders: &[(Merchant, Pay<'static>)]) -> Vec<bool> {
    run(async {
        let mut gateway = Gateway::open(deployment).await;
        let mut replayed = Vec::new();
        for (number, (merchant, order)) in (1..).zip(orders) {
            let reply = gateway.order(&signed_pay(merchant, order, number)).await;
            assert_eq!(reply.state, OrderState::Paid, "{reply:?}");
            replayed.push(reply.replayed);
        }
        replayed
    })
}

#[test]
fn a_site_is_replaced_and_then_a_majority_is_lost_for_good() {
    let deployment = Deployment::init_sites(5, 3, 20);
    let _channel = deployment.channel(&[]);
    let first = deployment.start_site(1);
    let second = deployment.start_site(2);
    let third = deployment.start_site(3);
    for site in 1..=3 {
        wait_until("the sites are ready", || settled(&deployment, site, &[1, 2, 3]));
        wait_until("their channel is up", || channel_is_up(&deployment, site));
    }
    let orders: Vec<_> = (0..40)
        .map(|number| {
            let merchant = merchant(&deployment, number % 20);
            let order = pay(&merchant, &format!("m-{number}"), 900);
            (merchant, order)
        })
        .collect();
    let (old, new) = orders.split_at(20);
    assert_eq!(paid(&deployment, old), [false; 20]);

    // Site 4 joins, site 3 leaves; both commands may be repeated.
    let fourth = deployment.start_site(4);
    member(&deployment, "add", 4);
    member(&deployment, "remove", 3);
    member(&deployment, "remove", 3);
    for site in [1, 2, 4] {
        wait_until("the members are known", || settled(&deployment, site, &[1, 2, 4]));
        wait_until("their channel is up", || channel_is_up(&deployment, site));
    }
    wait_until("the removed site says so", || {
        deployment.site_status(3).is_ok_and(|status| {
            let shards = status["shards"].as_array().map(Vec::as_slice).unwrap_or_default();
            status["ready"] == false && shards.iter().all(|shard| shard["role"] == "none")
        })
    });
    third.kill();
    assert_eq!(paid(&deployment, old), [true; 20]);

    // Sites 2 and 4 are destroyed.
    second.kill();
    fourth.kill();
    for site in [2, 4] {
        let data = deployment.file(&format!("data/site-{site}"));
        std::fs::remove_dir_all(data).expect("their disks are gone");
    }
    let config = deployment.site_file(1);
    let config = config.to_str().expect("a UTF-8 path");
    let recover = ["recover", "--force-quorum", "--config", config];
    let running = deployment.payswitch_typed(&recover, "");
    assert_eq!(running.status.code(), Some(3), "the log is in use: {}", text(&running));
    first.kill();
    let refused = deployment.payswitch_typed(&recover, "yes\n");
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    let cluster = deployment.config()["cluster"].as_str().expect("an id").to_owned();
    let phrase = format!("lose acknowledged payments of {cluster:0>16}\n");
    let forced = deployment.payswitch_typed(&recover, &phrase);
    assert!(forced.status.success(), "{}", text(&forced));

    let _first = deployment.start_site(1);
    wait_until("the survivor leads alone", || settled(&deployment, 1, &[1]));
    wait_until("the channel is up", || deployment.channel_is_up());
    assert_eq!(paid(&deployment, old), [true; 20], "what this site held is answered");
    assert_eq!(paid(&deployment, new), [false; 20], "new payments work");
    let _fifth = deployment.start_site(5);
    member(&deployment, "add", 5);
    for site in [1, 5] {
        wait_until("a new site is there", || settled(&deployment, site, &[1, 5]));
    }
}
