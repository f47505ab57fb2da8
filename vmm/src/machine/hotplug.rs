//! Devices that come and go while the guest runs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_block::Locking;
use skep_config::{Disk, Net};

use super::devices::{Removing, Site, Waiter};
use super::{DeviceInfo, HotplugError, Machine, Platform, Removal};
use crate::Error;

#[cfg(test)]
#[path = "hotplug_test.rs"]
mod test;

/// What was plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    /// Its name.
    pub id: String,
    /// Where it is, or its controller: `port:NUMBER`.
    pub place: String,
    /// The number of a namespace that has joined a controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
}

/// A balloon, and its guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonInfo {
    /// Bytes that the guest is asked for.
    pub target: u64,
    /// Bytes that it says that it has given.
    pub actual: u64,
    /// What it has last told: bytes `free`, `available`, `total` and of `caches`, and counts of `major-faults`, `minor-faults`, `swap-in` and
    /// `swap-out`. It may tell anything.
    pub guest: BTreeMap<String, u64>,
}

impl<A: Platform> Machine<A> {
    fn site(&self) -> Site<'_> {
        Site {
            devices: &self.devices,
            root: A::pci(&self.board),
            clock: &self.clock,
            memory: &self.memory,
            running: true,
            numbers: &self.numbers,
            locking: Locking::Now,
        }
    }

    /// The devices on PCI.
    pub fn device_list(&self) -> Vec<DeviceInfo> {
        self.devices.list(A::pci(&self.board))
    }

    /// Plugs in a disk, behind the root port that it names or the first free one; or attaches it to the running controller that it names.
    ///
    /// # Errors
    /// As for a disk that is there from the start, and where no port is free. Nothing has changed then.
    pub fn plug_disk(&mut self, disk: Disk) -> Result<Plugged, Error> {
        self.forget_gone();
        let next = self.config.with_disk(disk)?;
        let namespace = self.site().plug_disk(&next)?;
        let disk = next.disk.last();
        let of_same = |other: &&Disk| {
            disk.is_some_and(|disk| {
                other.id == disk.id || disk.controller.is_some() && other.controller == disk.controller
            })
        };
        let place = next.disk.iter().filter(of_same).find_map(|other| other.place);
        let id = disk.and_then(|disk| disk.id.clone());
        let plugged = Plugged {
            id: id.unwrap_or_default(),
            place: place.map(|place| place.to_string()).unwrap_or_default(),
            namespace,
        };
        self.config = next;
        Ok(plugged)
    }

    /// Plugs in a network card, behind the root port that it names or the first free one.
    ///
    /// # Errors
    /// As for a card that is there from the start, and where no port is free. Nothing has changed then.
    pub fn plug_net(&mut self, net: Net) -> Result<Plugged, Error> {
        self.forget_gone();
        let next = self.config.with_net(net)?;
        let mut plugged = Plugged { id: String::new(), place: String::new(), namespace: None };
        if let Some(net) = next.net.last() {
            self.site().plug_net(net)?;
            plugged.id = net.id.clone().unwrap_or_default();
            plugged.place = net.place.map(|place| place.to_string()).unwrap_or_default();
        }
        self.config = next;
        Ok(plugged)
    }

    /// Asks the guest to let a device go, or takes a namespace away from its controller. `waiter` is told, on any thread, when it has gone: what it had
    /// begun has ended, and its file is unlocked. A guest that was asked already is asked once more only `again`.
    ///
    /// # Errors
    /// Where there is no such device, it can't leave, or the guest knows already; `waiter` is dropped then.
    pub fn unplug(
        &mut self,
        id: &str,
        again: bool,
        waiter: Option<Box<dyn FnOnce(Removal) + Send>>,
    ) -> Result<(), HotplugError> {
        let waiter: Option<Waiter> = waiter;
        if self.devices.remove(A::pci(&self.board), id, again, waiter)? == Removing::Going {
            self.relocate();
        }
        Ok(())
    }

    /// Looks at the size of a disk's file again, and tells the guest. Answers it in bytes.
    ///
    /// # Errors
    /// Where there is no such disk, or the host refuses.
    pub fn resize_disk(&self, id: &str) -> Result<u64, HotplugError> {
        self.devices.resize(id)
    }

    /// Asks the guest for so many bytes, if any, and for what it knows of its memory. Answers what it has given and told so far.
    ///
    /// # Errors
    /// Where there is no balloon.
    pub fn balloon(&self, target: Option<u64>) -> Result<BalloonInfo, HotplugError> {
        let none = HotplugError::NoDevice { kind: "balloon", flag: "--device balloon" };
        let balloon = self.devices.balloon().ok_or(none)?;
        if let Some(bytes) = target {
            balloon.set_target(bytes);
        }
        let told = balloon.statistics().unwrap_or_default();
        balloon.refresh_statistics();
        let names = ["swap-in", "swap-out", "major-faults", "minor-faults", "free", "total", "available", "caches"];
        let values = [
            told.swap_in,
            told.swap_out,
            told.major_faults,
            told.minor_faults,
            told.free,
            told.total,
            told.available,
            told.caches,
        ];
        let guest = names.into_iter().zip(values).filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(BalloonInfo { target: balloon.target(), actual: balloon.actual(), guest: guest.collect() })
    }

    /// Tells the guest the size of its terminal.
    ///
    /// # Errors
    /// Where there is no console.
    pub fn resize_console(&self, columns: u16, rows: u16) -> Result<(), HotplugError> {
        let none = HotplugError::NoDevice { kind: "console", flag: "--device console=SOCKET" };
        self.devices.console().ok_or(none)?.resize(columns, rows);
        Ok(())
    }

    /// Lets the config be what is there: names and places of what has gone are free.
    pub(super) fn forget_gone(&mut self) {
        let devices = self.devices.clone();
        self.config.retain_devices(|id| devices.has(id));
    }
}
