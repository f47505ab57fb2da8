//! Devices that come and go while the machine runs: what the config becomes by them.

use crate::Config;
use crate::device::{Device, DeviceKind};
use crate::disk::Disk;
use crate::error::Conflict;
use crate::net::Net;
use crate::place::Place;

#[cfg(test)]
#[path = "plug_test.rs"]
mod test;

impl Config {
    /// What a finished config becomes when `disk` is plugged in: the disk is its last one, complete, behind the root port that it names, the first
    /// free one, or with the others of its controller.
    ///
    /// # Errors
    /// [`Conflict`], as for a disk that is there from the start, and where there is no port for it.
    pub fn with_disk(&self, mut disk: Disk) -> Result<Self, Conflict> {
        if disk.source.is_vhost_user() {
            return Err(Conflict::PluggedBackend);
        }
        no_bootindex(disk.bootindex)?;
        let joins = disk.controller.is_some() && self.disk.iter().any(|other| other.controller == disk.controller);
        if !joins {
            disk.place = Some(self.port_for(disk.place)?);
        }
        let mut next = self.clone();
        next.disk.push(disk);
        next.finish_devices()?;
        Ok(next)
    }

    /// The same for a network card.
    ///
    /// # Errors
    /// As above.
    pub fn with_net(&self, mut net: Net) -> Result<Self, Conflict> {
        no_bootindex(net.bootindex)?;
        if net.vhost_user.is_some() {
            return Err(Conflict::PluggedBackend);
        }
        net.place = Some(self.port_for(net.place)?);
        let mut next = self.clone();
        next.net.push(net);
        next.finish_devices()?;
        Ok(next)
    }

    /// Forgets the devices that are no longer there: `is_there` is asked by their names, a disk's own and not its controller's.
    pub fn retain_devices(&mut self, is_there: impl Fn(&str) -> bool) {
        let there = |id: &Option<String>| id.as_deref().is_some_and(&is_there);
        let gone: Vec<Disk> = self.disk.extract_if(.., |disk| !there(&disk.id)).collect();
        for first in gone {
            // What the controller has stands with its first disk.
            let heir =
                self.disk.iter_mut().find(|disk| disk.controller.is_some() && disk.controller == first.controller);
            if let (Some(heir), Some(place)) = (heir, first.place) {
                (heir.place, heir.serial, heir.queues, heir.poll) =
                    (Some(place), first.serial, first.queues, first.poll);
            }
        }
        self.net.retain(|net| there(&net.id));
        for device in self.device.iter_mut().filter(|device| device.is_present() && !is_there(device.kind.name())) {
            if matches!(device.kind, DeviceKind::Rng { .. }) {
                *device = Device::rng(false);
            }
        }
        self.device.retain(|device| !device.is_present() || is_there(device.kind.name()));
    }

    /// The port of a device that is plugged: the one that it names, or the first free one.
    fn port_for(&self, named: Option<Place>) -> Result<Place, Conflict> {
        match named {
            Some(Place::Port(number)) => return Ok(Place::Port(number)),
            Some(place) => return Err(Conflict::NotPluggable { place }),
            None => {}
        }
        let occupant = |port: Place| self.placed().find(|(_, place)| *place == port).map(|(id, _)| id);
        let ports = (0..self.pci_ports).map(Place::Port);
        if let Some(free) = ports.clone().find(|port| occupant(*port).is_none()) {
            return Ok(free);
        }
        if self.pci_ports == 0 {
            let taken = ": this machine has none".to_owned();
            return Err(Conflict::NoFreePort { taken, mend: "start it with some, by --pci-ports N" });
        }
        let taken = ports.filter_map(|port| Some(format!("{port} has `{}`", occupant(port)?)));
        let taken = format!(": {}", taken.collect::<Vec<_>>().join(", "));
        Err(Conflict::NoFreePort {
            taken,
            mend: "remove one of them; or start the machine with more, by --pci-ports N",
        })
    }

    /// The devices and their places.
    fn placed(&self) -> impl Iterator<Item = (&str, Place)> {
        let disks = self.disk.iter().map(|disk| (disk.id.as_deref(), disk.place));
        let nets = self.net.iter().map(|net| (net.id.as_deref(), net.place));
        let devices = self.device.iter().map(|device| (Some(device.kind.name()), device.place));
        disks.chain(nets).chain(devices).filter_map(|(id, place)| Some((id.unwrap_or_default(), place?)))
    }
}

/// Firmware was told the order when the machine was made.
fn no_bootindex(bootindex: Option<u16>) -> Result<(), Conflict> {
    bootindex.map_or(Ok(()), |_| Err(Conflict::LateBootIndex))
}
