//! Merchants that the configuration brings along: proposed once the shards
//! lead, kept only where a shard does not know the merchant yet. Later changes
//! go through the admin interface.

use std::rc::Rc;
use std::time::Duration;

use protocol::id::ShortText;

use super::control::NodeControl;
use super::inbox::Item;
use super::net::Net;
use crate::config::{Config, merchants};
use crate::engine::input::{AdminCommand, AdminInput};
use crate::engine::merchant::Merchant;
use crate::secret::Kek;

/// Merchants proposed at once: their records stay well below a block's bound.
const CHUNK: usize = 256;

/// Pause before looking again for what other sites have proposed.
const ELSEWHERE: Duration = Duration::from_millis(5);

/// The configured merchants.
pub struct Bootstrap {
    merchants: Vec<Merchant>,
}

/// Reads the merchants file, if one is configured.
///
/// # Errors
/// What is wrong with it.
pub fn load(config: &Config, kek: &Kek) -> Result<Bootstrap, String> {
    let merchants = match &config.bootstrap.merchants {
        Some(path) => merchants::load(path, kek).map_err(|error| error.to_string())?,
        None => Vec::new(),
    };
    Ok(Bootstrap { merchants })
}

impl Bootstrap {
    /// Proposes, chunk by chunk, the merchants that are in no log yet: each by
    /// the site that leads its shard. The node is ready when all are known here.
    pub fn start(self, net: &Rc<Net>, control: &std::sync::Arc<NodeControl>) {
        let (net, control) = (Rc::clone(net), std::sync::Arc::clone(control));
        tokio::task::spawn_local(async move {
            while !control.all_led() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            loop {
                let unknown: Vec<&Merchant> = self.unknown(&control).collect();
                if unknown.is_empty() {
                    break;
                }
                let shards = net.settings.shards;
                let ours = |merchant: &&&Merchant| control.leads(merchant.mch_id.shard(shards));
                let chunk: Vec<&Merchant> =
                    unknown.iter().filter(ours).take(CHUNK).copied().collect();
                if chunk.is_empty() {
                    tokio::time::sleep(ELSEWHERE).await;
                    continue;
                }
                propose(&chunk, &net, &control).await;
            }
            control.bootstrapped();
        });
    }

    fn unknown<'a>(&'a self, control: &'a NodeControl) -> impl Iterator<Item = &'a Merchant> {
        self.merchants.iter().filter(|merchant| !control.knows(merchant.mch_id))
    }
}

async fn propose(merchants: &[&Merchant], net: &Net, control: &NodeControl) {
    let operator = ShortText::new(b"bootstrap").unwrap_or_default();
    let mut answers = Vec::with_capacity(merchants.len());
    for merchant in merchants {
        let (ticket, answer) = control.ticket();
        answers.push((merchant.mch_id, answer));
        let command =
            AdminCommand::PutMerchant { merchant: (*merchant).clone(), only_if_absent: true };
        let shard = merchant.mch_id.shard(net.settings.shards);
        let input = AdminInput { ticket, operator, command };
        net.push(shard, Item::Admin(Box::new(input)));
    }
    for (mch_id, answer) in answers {
        match answer.await {
            // Leadership moved meanwhile: the new leader's site proposes it.
            Ok(Err(_)) if !control.leads(mch_id.shard(net.settings.shards)) => {}
            Ok(Err(error)) => {
                eprintln!("bootstrap: merchant {mch_id}: {error}");
                tokio::time::sleep(ELSEWHERE).await;
            }
            Ok(Ok(_)) | Err(_) => {}
        }
    }
}
