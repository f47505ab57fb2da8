//! Network cards.

use std::sync::Arc;

use skep_config::{Config, Net};
use skep_net::{Link, Passt, PasstConfig, Tap};
use skep_virtio::NetConfig;

use super::{DeviceError, POLL, Site, named};
use crate::Error;

/// Makes the network cards of `config`.
pub(super) fn add(site: Site<'_>, config: &Config) -> Result<(), Error> {
    config.net.iter().try_for_each(|net| plug(site, net))
}

/// Makes one.
pub(super) fn plug(site: Site<'_>, net: &Net) -> Result<(), Error> {
    let id = net.id.as_deref().unwrap_or_default();
    add_card(site, id, net).map_err(named(id))
}

fn add_card(site: Site<'_>, id: &str, net: &Net) -> Result<(), DeviceError> {
    let socket = site.socket(net.place)?;
    let link: Arc<dyn Link> = match &net.tap {
        Some(name) => Arc::new(Tap::open(name, net.queues)?),
        None => Arc::new(Passt::start(&PasstConfig::default())?),
    };
    let mac = net.mac.expect("a finished config gives each card its address").0;
    let card = skep_virtio::Net::new(&NetConfig { name: id.to_owned(), link, mac, poll: POLL })?;
    site.push_virtio(id, &socket, card, Vec::new())
}
