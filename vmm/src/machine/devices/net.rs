//! Network cards.

use std::sync::Arc;

use skep_config::{Config, Net};
use skep_net::{Link, Passt, PasstConfig, Tap};
use skep_virtio::NetConfig;

use super::{DeviceError, Site, limiter, named};
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
    let poll = net.poll.unwrap_or_default().duration();
    let (receive, send) = (limiter(net.rx_packets, net.rx_bandwidth), limiter(net.tx_packets, net.tx_bandwidth));
    let card = skep_virtio::Net::new(&NetConfig { name: id.to_owned(), link, mac, poll, receive, send })?;
    site.push_virtio(id, &socket, card, Vec::new())
}
