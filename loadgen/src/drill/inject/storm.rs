//! Too much of something: connections, hand-overs, load.

use super::super::script::{Fault, Script};
use super::certificates::hello;
use super::evidence;
use crate::cli::on_runtime;
use crate::config::GatewayFile;
use crate::exit::{Exit, Failure};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Connections that are being made at the same time.
const AT_ONCE: usize = 16;
/// Between two hand-overs.
const TRANSFER_PAUSE: Duration = Duration::from_millis(100);

impl Script<'_> {
    /// Connections are made on a thread of their own: the load's clock must not feel them.
    pub(super) async fn reconnect(&self, hold: Duration) -> Result<Fault, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let file = self.stage.deployment.file("gateway.toml");
        let mut fault = self.begin(0, "gateways connect and go").await;
        let storm = std::thread::Builder::new()
            .name("reconnect-storm".to_owned())
            .spawn(move || storm(&GatewayFile::load(&file)?, &told))
            .map_err(|error| {
                Failure::environment(format_args!("cannot start a thread: {error}"))
            })?;
        tokio::time::sleep(hold).await;
        stop.store(true, Ordering::Relaxed);
        while !storm.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ended = storm.join().map_err(|_| Failure::environment("the storm's thread died"))?;
        let (made, refused) = ended?;
        fault.what = format!("{made} connections made, {refused} refused");
        self.over(&mut fault, "no more connections");
        match made {
            0 => Err(Failure::new(Exit::Invalid, "no connection was made in the storm")),
            _ => Ok(fault),
        }
    }

    pub(super) async fn transfers(&self, hold: Duration) -> Result<Fault, Failure> {
        let (deployment, session) = (&self.stage.deployment, &self.stage.session);
        let mut fault = self.begin(0, "shards are handed around").await;
        let noticed = session.leader_changes();
        let (until, mut done, mut refused) = (Instant::now() + hold, 0_u32, 0_u32);
        let sites = u64::from(deployment.sites().count() as u8);
        for turn in 0_u64.. {
            if Instant::now() >= until {
                break;
            }
            let shard = turn % u64::from(deployment.gateway.shards);
            let leaders = deployment.leaders().await;
            let leader = leaders.get(shard as usize).copied().unwrap_or(0);
            let to = (u64::from(leader) + self.draw(sites - 1)) % sites + 1;
            let words = ["transfer", &shard.to_string(), &to.to_string()];
            // A shard that is just moving says no.
            match deployment.operate(leader.max(1), &words).await {
                Ok(()) => done += 1,
                Err(_) => refused += 1,
            }
            tokio::time::sleep(TRANSFER_PAUSE).await;
        }
        let noticed = session.leader_changes().saturating_sub(noticed);
        fault.what = format!(
            "{done} shards handed around, {refused} refused, {noticed} new leaders noticed"
        );
        self.over(&mut fault, "every shard goes home");
        match (done, noticed) {
            (0, _) => Err(evidence::none("no shard was handed over in the storm")),
            (_, 0) => Err(evidence::none("no gateway heard of another leader in the storm")),
            _ => Ok(fault),
        }
    }

    /// The load itself is planned with the phase.
    pub(super) async fn load(&self, times: f64, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(0, format!("{times} times the load")).await;
        tokio::time::sleep(hold).await;
        self.over(&mut fault, "the load is as before");
        Ok(fault)
    }
}

/// Connects again and again until told to stop; connections made and refused.
fn storm(gateway: &GatewayFile, stop: &AtomicBool) -> Result<(u64, u64), Failure> {
    on_runtime(async {
        let counts = Rc::new((Cell::new(0_u64), Cell::new(0_u64)));
        let next = Cell::new(0_usize);
        let mut workers = tokio::task::JoinSet::new();
        while !stop.load(Ordering::Relaxed) {
            while workers.len() < AT_ONCE {
                let site = next.get() % gateway.sites.len();
                next.set(next.get() + 1);
                let (connecting, counts) = (hello(gateway, site)?, Rc::clone(&counts));
                workers.spawn_local(async move {
                    let count = if connecting.await.is_ok() { &counts.0 } else { &counts.1 };
                    count.set(count.get() + 1);
                });
            }
            workers.join_next().await;
        }
        workers.shutdown().await;
        Ok((counts.0.get(), counts.1.get()))
    })
}
