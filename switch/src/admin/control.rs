//! What the admin server asks the running node for. The runtime implements
//! [`Control`]; tests make one up.

use super::api::{Explain, InDoubt, MemberProgress, Status};
use crate::engine::input::AdminCommand;
use crate::engine::merchant::Merchant;
use protocol::id::{MchId, OutTradeNo, ShortText};
use tokio::sync::oneshot;

/// The running node, as operators see it. No method may block: the server has
/// one thread. What needs a worker is answered through an [`Answer`].
pub trait Control: Send + Sync + 'static {
    /// Whether the site serves; if not, why, in one line.
    ///
    /// # Errors
    /// The reason, for people.
    fn ready(&self) -> Result<(), String>;

    /// The site's state.
    fn status(&self) -> Status;

    /// Appends the metrics as Prometheus text.
    fn render_metrics(&self, out: &mut String);

    /// A merchant as this site's directory holds it.
    fn merchant(&self, mch_id: MchId) -> Option<Merchant>;

    /// Carries out a command through the log; the answer comes when its record
    /// is durable and says what was done.
    fn command(&self, operator: ShortText, command: AdminCommand) -> Answer<String>;

    /// Why what concerns this merchant must be asked elsewhere, if it must.
    fn led_elsewhere(&self, mch_id: MchId) -> Option<ControlError>;

    /// Hands a shard's leadership to another site; the answer comes when that
    /// has been started.
    fn transfer(&self, shard: u16, site: u16) -> Answer<String>;

    /// Takes the next step towards a site being a member of a shard, or none.
    fn seek_member(
        &self,
        operator: ShortText,
        shard: u16,
        site: u16,
        member: bool,
    ) -> Answer<MemberProgress>;

    /// Payments in doubt or in front of an operator, oldest first, at most `limit`. Of
    /// shards that are led elsewhere as far as this site has heard.
    fn in_doubt(&self, limit: usize) -> Answer<Vec<InDoubt>>;

    /// The time line of a payment.
    fn explain(&self, mch_id: MchId, out_trade_no: OutTradeNo) -> Answer<Explain>;
}

/// An answer that comes later. A dropped sender means that the node stops.
pub type Answer<T> = oneshot::Receiver<Result<T, ControlError>>;

/// Why the node does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such merchant or payment.
    #[error("not found")]
    NotFound,
    /// Another site leads the shard; ask there.
    #[error("site {leader} leads this shard: ask there")]
    NotLeader {
        /// The site.
        leader: u16,
    },
    /// The shard has no leader at present.
    #[error("the shard has no leader at present: ask again")]
    NoLeader,
    /// The worker's inbox is full.
    #[error("the node is overloaded: ask again")]
    Busy,
    /// The engine or the directory refuses; the text says why.
    #[error("{0}")]
    Refused(String),
}
