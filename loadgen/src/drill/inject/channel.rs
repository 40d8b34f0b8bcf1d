//! What is done to the channel: its plan of faults is replaced while it runs.

use super::super::action::FLAP;
use super::super::script::{Fault, POLL, Script};
use crate::exit::{Exit, Failure};
use serde::Deserialize;
use std::time::{Duration, Instant};

/// Longer than any drill.
const OUTAGE: &str = "--outage=0:3600";

/// State of what waits for an operator.
const MANUAL: &str = "MANUAL";
/// Longest time in which operators decide everything.
const DECIDED_IN: Duration = Duration::from_secs(30);
/// After so long without anything to decide nothing comes any more: it comes with the
/// replies that were in flight.
const QUIET: Duration = Duration::from_millis(1_500);

/// A line of `admin in-doubt --json`, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Doubt {
    mch_id: String,
    out_trade_no: String,
    state: String,
}

impl Script<'_> {
    pub(super) async fn spoil(&self, faults: &[String], hold: Duration) -> Result<Fault, Failure> {
        let words = faults.join(" ").replace("--", "");
        let mut fault = self.begin(0, format!("channel: {words}")).await;
        self.stage.spoil(Some(faults)).await?;
        tokio::time::sleep(hold).await;
        self.stage.spoil(None).await?;
        self.over(&mut fault, "the channel is sound again");
        Ok(fault)
    }

    pub(super) async fn flap(&self, hold: Duration) -> Result<Fault, Failure> {
        let mut fault = self.begin(0, "the channel flaps").await;
        let until = Instant::now() + hold;
        let (outage, [silent, sound]) = ([OUTAGE.to_owned()], FLAP);
        while Instant::now() + silent < until {
            self.stage.spoil(Some(&outage)).await?;
            tokio::time::sleep(silent).await;
            self.stage.spoil(None).await?;
            let rest = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(sound.min(rest)).await;
        }
        self.over(&mut fault, "the channel is sound again");
        Ok(fault)
    }

    /// What names another amount is nobody's to believe: it waits for two operators. They
    /// find that the money moved, as it did.
    pub(super) async fn wrong_amounts(
        &self,
        share: &str,
        hold: Duration,
    ) -> Result<Fault, Failure> {
        let faults = [format!("--wrong-amount={share}")];
        let mut fault = self.spoil(&faults, hold).await?;
        let (started, mut decided, mut last) = (Instant::now(), 0_u32, Instant::now());
        while last.elapsed() < QUIET {
            let mut found = 0;
            for site in self.stage.deployment.sites() {
                found += self.decide(site).await?;
            }
            decided += found;
            if found > 0 {
                last = Instant::now();
            }
            if started.elapsed() > DECIDED_IN {
                return Err(Failure::new(Exit::Missed, "operators do not come to an end"));
            }
            tokio::time::sleep(POLL).await;
        }
        fault.what = format!("{}; two operators decided {decided} payments", fault.what);
        match decided {
            0 => Err(Failure::new(Exit::Invalid, "no wrong amount came to an operator")),
            _ => Ok(fault),
        }
    }

    /// Two operators decide what waits at a site; how much that was.
    async fn decide(&self, site: u8) -> Result<u32, Failure> {
        let deployment = &self.stage.deployment;
        let answer = deployment.ask(site, &["in-doubt", "--limit", "1000", "--json"]).await?;
        let doubts: Vec<Doubt> = serde_json::from_str(&answer).map_err(|error| {
            Failure::environment(format_args!("site {site}'s list of doubts: {error}"))
        })?;
        let file = |name: &str| deployment.file(name).to_string_lossy().into_owned();
        let (cert, key) = (file("certs/admin-2.pem"), file("certs/admin-2.key"));
        let mut decided = 0;
        for doubt in doubts.iter().filter(|doubt| doubt.state == MANUAL) {
            let (mch_id, number) = (doubt.mch_id.as_str(), doubt.out_trade_no.as_str());
            let first = ["decide", mch_id, number, "--moved", "--note", "drill"];
            let mut second = first.to_vec();
            second.extend(["--cert", &cert, "--key", &key]);
            deployment.operate(site, &first).await?;
            deployment.operate(site, &second).await?;
            decided += 1;
        }
        Ok(decided)
    }
}
