//! Carries the faults out, and undoes them.

mod certificates;
mod channel;
mod evidence;
mod log;
mod machine;
mod sites;
pub(super) mod slow_disk;
mod storm;

use super::action::Action;
use super::script::{Fault, Script};
use crate::cluster::Way;
use crate::exit::Failure;
use std::time::Duration;

impl Script<'_> {
    /// Does something to a site (0: to none in particular), undoes it after `hold` and
    /// waits until the site is level. It begins when the one before at the same place is
    /// over, and not at all when there is nothing to do it to.
    pub(super) async fn act(
        &self,
        action: &Action,
        site: u8,
        hold: Duration,
    ) -> Result<Vec<Fault>, Failure> {
        let _turn = self.turns.take(action, site).await;
        if action.hits_a_site() {
            self.stage.runs(site)?;
        }
        let hold = hold.max(action.least_hold());
        let one = match action {
            Action::Kill => self.kill(site, hold).await,
            Action::KillInRecovery => self.kill_in_recovery(site, hold).await,
            Action::Pause => self.pause(site, hold).await,
            Action::Drain => self.drain(site, hold).await,
            Action::Restart => self.restart(site).await,
            Action::Isolate => self.cut(site, Way::Both(site), hold).await,
            Action::OneWay => {
                let deaf = self.draw(2) == 0;
                let way = if deaf { Way::To(site) } else { Way::From(site) };
                self.cut(site, way, hold).await
            }
            Action::Wan(line) => self.distance(line, hold).await,
            Action::SlowDisk => self.slow_disk(site, hold).await,
            Action::SyncError => self.sync_error(site, hold).await,
            Action::FullDisk => self.full_disk(site, hold).await,
            Action::ClockStep(seconds) => self.clock_step(site, *seconds, hold).await,
            Action::TornTail => self.torn_tail(site, hold).await,
            Action::DamagedMiddle => self.damaged_middle(site, hold).await,
            Action::Rotate => return self.rotate(hold).await,
            Action::Expire => self.expire(site, hold).await,
            Action::Channel(faults) => self.spoil(faults, hold).await,
            Action::WrongAmount(share) => self.wrong_amounts(share, hold).await,
            Action::Flap => self.flap(hold).await,
            Action::Reconnect => self.reconnect(hold).await,
            Action::Transfers => self.transfers(hold).await,
            Action::Load(times) => self.load(*times, hold).await,
        };
        one.map(|fault| vec![fault])
    }
}
