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
    /// Proposes the merchants chunk by chunk; the node is ready afterwards.
    pub fn start(self, net: &Rc<Net>, control: &std::sync::Arc<NodeControl>) {
        let (net, control) = (Rc::clone(net), std::sync::Arc::clone(control));
        tokio::task::spawn_local(async move {
            while !control.leads_all() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let operator = ShortText::new(b"bootstrap").unwrap_or_default();
            for chunk in self.merchants.chunks(CHUNK) {
                let mut answers = Vec::with_capacity(chunk.len());
                for merchant in chunk {
                    let (ticket, answer) = control.ticket();
                    answers.push((merchant.mch_id, answer));
                    let command = AdminCommand::PutMerchant {
                        merchant: merchant.clone(),
                        only_if_absent: true,
                    };
                    let shard = merchant.mch_id.shard(net.settings.shards);
                    let input = AdminInput { ticket, operator, command };
                    net.push(shard, Item::Admin(Box::new(input)));
                }
                for (mch_id, answer) in answers {
                    if let Ok(Err(error)) = answer.await {
                        eprintln!("bootstrap: merchant {mch_id}: {error}");
                    }
                }
            }
            control.bootstrapped();
        });
    }
}
