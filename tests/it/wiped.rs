//! A site that comes back with an empty disk under its old number.

use std::time::Duration;

use tests::cluster::Cluster;
use tests::wait_until;

use crate::cluster::{connect, one_of_each_shard, paid};
use crate::run;

#[test]
fn a_wiped_site_is_refused_and_its_successor_takes_its_place() {
    let mut cluster = Cluster::init_voters(4, 3, 40);
    let _channel = cluster.deployment.channel(&[]);
    (1..=3).for_each(|site| cluster.start_site(site));
    (1..=3).for_each(|site| cluster.wait_ready(site));
    let merchants = one_of_each_shard(&cluster);
    run(async {
        let client = connect(&cluster).await;
        for merchant in &merchants {
            paid(&client, merchant, "before").await;
        }
    });
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.deployment.file("data/site-3")).expect("its disk is gone");
    cluster.start_site(3);
    let ended = cluster.process(3).wait(Duration::from_secs(60));
    let printed = cluster.process(3).printed();
    assert_eq!(ended.code(), Some(2), "{printed}");
    for word in ["knows another log of site 3", "member remove 3", "member add"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    // It was heard by nobody, and the others tell their operators.
    for site in [1, 2] {
        assert!(cluster.process(site).runs());
        let printed = cluster.process(site).printed();
        assert!(printed.contains("is not the one that site 3 had"), "{printed}");
    }
    // As it says: out with the old number, in with a new one.
    cluster.admin(1, &["member", "remove", "3"]);
    cluster.start_site(4);
    cluster.admin(1, &["member", "add", "4"]);
    cluster.wait_ready(4);
    run(async {
        let client = connect(&cluster).await;
        for merchant in &merchants {
            let again = paid(&client, merchant, "before").await;
            assert!(again.replayed, "nothing was forgotten");
            paid(&client, merchant, "after").await;
        }
    });
    wait_until("it leads its share", || cluster.leads(1)[4] > 0);
}
