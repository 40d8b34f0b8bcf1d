//! A site that comes back with an empty disk under its old number, or with an old one.

use std::fs;
use std::path::Path;
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
    fs::remove_dir_all(cluster.deployment.file("data/site-3")).expect("its disk is gone");
    cluster.start_site(3);
    let ended = cluster.process(3).wait(Duration::from_secs(60));
    let printed = cluster.process(3).printed();
    assert_eq!(ended.code(), Some(2), "{printed}");
    for word in ["knows another log of site 3", "member remove 3", "member add"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    // It was heard by nobody, and the others tell their operators. It ends at the first that it
    // meets: the other one may meet it at a later start only.
    let tells = |cluster: &mut Cluster, site: u16| {
        cluster.process(site).printed().contains("is not the one that site 3 had")
    };
    for start in 1.. {
        if [1, 2].into_iter().all(|site| tells(&mut cluster, site)) {
            break;
        }
        assert!(start < 30, "one of the others is silent");
        cluster.start_site(3);
        let again = cluster.process(3).wait(Duration::from_secs(60));
        assert_eq!(again.code(), Some(2), "{}", cluster.process(3).printed());
    }
    assert!([1, 2].into_iter().all(|site| cluster.process(site).runs()));
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

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to),
            false => {
                fs::copy(entry.path(), to).expect("room for a copy");
            }
        }
    }
}

/// Whether one site has applied what another one knows as committed.
fn is_level(cluster: &Cluster, site: u16, with: u16) -> bool {
    let [own, others] = [site, with].map(|site| cluster.status(site)["shards"].clone());
    let (Some(own), Some(others)) = (own.as_array(), others.as_array()) else { return false };
    let mut pairs = own.iter().zip(others);
    own.len() == 12 && pairs.all(|(own, other)| own["applied"] == other["commit"])
}

#[test]
fn a_site_whose_disk_went_back_ends_and_does_not_start_again() {
    let mut cluster = Cluster::init(3, 40);
    let _channel = cluster.deployment.channel(&[]);
    cluster.start();
    let merchants = one_of_each_shard(&cluster);
    let pay = |cluster: &Cluster, number| {
        run(async {
            let client = connect(cluster).await;
            for merchant in &merchants {
                paid(&client, merchant, number).await;
            }
        });
    };
    pay(&cluster, "before");
    cluster.kill(3);
    let [data, old] = ["data/site-3", "data/old"].map(|name| cluster.deployment.file(name));
    copy(&data, &old);
    cluster.start_site(3);
    cluster.wait_ready(3);
    pay(&cluster, "after");
    wait_until("it has confirmed them", || is_level(&cluster, 3, 1));
    cluster.kill(3);
    fs::remove_dir_all(&data).expect("its disk is exchanged");
    fs::rename(&old, &data).expect("for what it was once");
    for said in ["but its leader was told", "it was found before"] {
        cluster.start_site(3);
        let ended = cluster.process(3).wait(Duration::from_secs(60));
        let printed = cluster.process(3).printed();
        assert_eq!(ended.code(), Some(2), "{printed}");
        assert!(printed.contains(said) && printed.contains("member remove 3"), "{printed}");
    }
    assert!([1, 2].into_iter().all(|site| cluster.process(site).runs()));
}
