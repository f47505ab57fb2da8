//! Network cards.

use std::sync::Arc;

use skep_config::{Config, Net};
use skep_net::{Link, Passt, PasstConfig, Tap};
use skep_pci::RootComplex;
use skep_virtio::NetConfig;

use super::{DeviceError, Devices, POLL, named, socket};
use crate::Error;

/// Makes the network cards of `config`.
pub(super) fn add(devices: &Devices, config: &Config, root: &RootComplex) -> Result<(), Error> {
    for net in &config.net {
        let id = net.id.as_deref().unwrap_or_default();
        add_card(devices, id, net, root).map_err(named(id))?;
    }
    Ok(())
}

fn add_card(devices: &Devices, id: &str, net: &Net, root: &RootComplex) -> Result<(), DeviceError> {
    let socket = socket(root, net.place)?;
    let link: Arc<dyn Link> = match &net.tap {
        Some(name) => Arc::new(Tap::open(name, net.queues)?),
        None => Arc::new(Passt::start(&PasstConfig::default())?),
    };
    let mac = net.mac.expect("a finished config gives each card its address").0;
    let card = skep_virtio::Net::new(&NetConfig { name: id.to_owned(), link, mac, poll: POLL })?;
    devices.push_virtio(id, &socket, card, root)
}
