//! What is done to the channel: its plan of faults is replaced while it runs.

use super::super::script::{Fault, Script};
use crate::exit::Failure;
use std::time::{Duration, Instant};

/// Of the flapping channel.
const SILENT: Duration = Duration::from_millis(250);
const SOUND: Duration = Duration::from_millis(1_000);
/// Longer than any drill.
const OUTAGE: &str = "--outage=0:3600";

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
        let until = Instant::now() + hold.max(2 * (SILENT + SOUND));
        let outage = [OUTAGE.to_owned()];
        while Instant::now() < until {
            self.stage.spoil(Some(&outage)).await?;
            tokio::time::sleep(SILENT).await;
            self.stage.spoil(None).await?;
            tokio::time::sleep(SOUND).await;
        }
        self.over(&mut fault, "the channel is sound again");
        Ok(fault)
    }
}
