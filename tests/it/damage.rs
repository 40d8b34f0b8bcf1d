//! Damaged and torn logs of a real site.

use std::fs::File;
use std::os::unix::fs::FileExt;

use protocol::code::OrderState;
use tests::Deployment;
use tests::gateway::{Gateway, merchant, pay, signed_pay};

use crate::run;

const BLOCK: u64 = 4096;

/// A stopped site with a few payments; returns the end of its log's data.
fn with_payments(deployment: &Deployment, count: usize) -> u64 {
    let _channel = deployment.channel(&[]);
    let switch = deployment.serve();
    let m = merchant(deployment, 0);
    run(async {
        let mut gateway = Gateway::open(deployment).await;
        for number in 0..count {
            let no = format!("d-{number}");
            let reply = gateway.order(&signed_pay(&m, &pay(&m, &no, 10), number as u64)).await;
            assert_eq!(reply.state, OrderState::Paid);
        }
    });
    switch.kill();
    deployment.without_channel();
    data_end(deployment)
}

fn segment(deployment: &Deployment) -> File {
    let path = deployment.log_dir().join(format!("{:016x}.wal", 1));
    File::options().read(true).write(true).open(path).unwrap()
}

/// First block of the segment from which on all is zero.
fn data_end(deployment: &Deployment) -> u64 {
    let file = segment(deployment);
    let mut block = [0; BLOCK as usize];
    let blocks = file.metadata().unwrap().len() / BLOCK;
    let last = (0..blocks).rev().find(|number| {
        file.read_exact_at(&mut block, number * BLOCK).unwrap();
        block.iter().any(|byte| *byte != 0)
    });
    last.map_or(0, |number| (number + 1) * BLOCK)
}

#[test]
fn a_flipped_bit_in_the_middle_is_refused_with_its_place() {
    let deployment = Deployment::init(20);
    let end = with_payments(&deployment, 10);
    let file = segment(&deployment);
    let at = end / 2 / BLOCK * BLOCK + 200;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();

    let mut switch = deployment.start_switch();
    let status = switch.wait(std::time::Duration::from_secs(20));
    let printed = switch.printed();
    assert_eq!(status.code(), Some(2), "{printed}");
    assert!(printed.contains("0000000000000001.wal offset "), "{printed}");

    let log_dir = deployment.log_dir();
    let verify = deployment.payswitch(&["log", "verify", log_dir.to_str().unwrap()]);
    assert_eq!(verify.status.code(), Some(2));
    assert!(tests::text(&verify).contains("offset "), "{}", tests::text(&verify));
}

#[test]
fn a_torn_tail_is_cut_and_said() {
    let deployment = Deployment::init(20);
    let end = with_payments(&deployment, 5);
    let file = segment(&deployment);
    // The front of a batch whose rest never reached the disk.
    file.write_all_at(b"PSBT half a header", end).unwrap();
    let switch = deployment.serve();
    assert!(switch.printed().contains("a torn tail of "), "{}", switch.printed());
    assert!(switch.stop().success());
    let log_dir = deployment.log_dir();
    let verify = deployment.payswitch(&["log", "verify", log_dir.to_str().unwrap()]);
    assert!(verify.status.success(), "{}", tests::text(&verify));
}
