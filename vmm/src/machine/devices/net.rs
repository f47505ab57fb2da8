//! Network cards.

use std::path::Path;
use std::sync::Arc;

use skep_config::{Config, Net, NetDevice};
use skep_ne2k::{Ne2k, Ne2kConfig};
use skep_net::{Link, Passt, PasstConfig, Tap};
use skep_pci::OptionRom;
use skep_virtio::NetConfig;

use super::{DeviceError, Kind, Site, limiter, named, vhost_user};
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
    let rom = net.romfile.as_deref().map(read_rom).transpose()?;
    let mac = net.mac.expect("a finished config gives each card its address").0;
    if let Some(backend) = &net.vhost_user {
        let card = vhost_user::connect_card(site, id, backend, net.queues, mac)?;
        return site.push_virtio(id, &socket, card, rom, Vec::new());
    }
    let link: Arc<dyn Link> = match &net.tap {
        Some(name) => Arc::new(Tap::open(name, net.queues)?),
        None => Arc::new(Passt::start(&PasstConfig::default())?),
    };
    {
        let links = &mut site.devices.lock().links;
        links.retain(|(link, _)| link.strong_count() > 0);
        links.push((Arc::downgrade(&link), mac));
    }
    let name = id.to_owned();
    match net.device {
        NetDevice::VirtioNet => {
            let poll = net.poll.unwrap_or_default().duration();
            let receive = limiter(net.rx_packets, net.rx_bandwidth);
            let send = limiter(net.tx_packets, net.tx_bandwidth);
            let card = skep_virtio::Net::new(&NetConfig { name, link, mac, poll, receive, send })?;
            site.push_virtio(id, &socket, card, rom, Vec::new())
        }
        NetDevice::Ne2kPci => {
            let (endpoint, card) = Ne2k::endpoint(&socket, &Ne2kConfig { name, link, mac, rom })?;
            site.push(id, endpoint, Kind::Ne2k(card), Vec::new())
        }
    }
}

fn read_rom(file: &Path) -> Result<OptionRom, DeviceError> {
    let failed = |source| DeviceError::Host { what: format!("read the option ROM `{}`", file.display()), source };
    let bytes = std::fs::read(file).map_err(failed)?;
    OptionRom::new(&bytes).map_err(|source| DeviceError::Rom { file: file.to_owned(), source })
}
