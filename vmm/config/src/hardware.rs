//! The devices together: names, places, and what follows from other keys.

use std::collections::BTreeMap;

use crate::Config;
use crate::device::{Device, DeviceKind};
use crate::disk::DiskDevice;
use crate::error::Conflict;
use crate::id::Ids;
use crate::place::{Place, Places};

#[cfg(test)]
#[path = "hardware_test.rs"]
mod test;

/// Pairs of queues of an NVMe controller, which cost nothing until a guest makes them.
const NVME_QUEUES: u16 = 64;
/// Queues of a virtio disk at most, where nobody says how many: each has a thread.
const DISK_QUEUES: u32 = 16;

impl Config {
    /// Completes the devices and gives each its place: first those that the config names, then the others in its order.
    pub(crate) fn finish_devices(&mut self) -> Result<(), Conflict> {
        if !self.device.iter().any(|device| matches!(device.kind, DeviceKind::Rng { .. })) {
            self.device.push(Device::rng(true));
        }
        self.fill_ids()?;
        self.check_controllers()?;
        // What another process works on is in memory that it can map.
        self.memory.shared |= self.of_a_backend().is_some();
        self.check_boot_order()?;
        let queues = u16::try_from(self.cpus.max.min(DISK_QUEUES)).unwrap_or(1);
        let joined = self.joined();
        for (disk, joins) in self.disk.iter_mut().zip(&joined) {
            if disk.source.is_vhost_user() {
                // What a backend has where nobody says more.
                disk.queues.get_or_insert(1);
            } else if !joins {
                let of_kind = if disk.device == DiskDevice::Nvme { NVME_QUEUES } else { queues };
                disk.queues.get_or_insert(of_kind);
                disk.poll.get_or_insert_default();
                disk.serial = disk.serial.take().or_else(|| disk.id.clone());
            }
        }
        self.net.iter_mut().for_each(crate::net::Net::fill);
        self.give_places(&joined)
    }

    /// The first device whose backend is another program, by vhost-user.
    pub fn of_a_backend(&self) -> Option<&str> {
        let disk = self.disk.iter().find(|disk| disk.source.is_vhost_user());
        let disk = disk.map(|disk| disk.id.as_deref().unwrap_or_default());
        let net = self.net.iter().find(|net| net.vhost_user.is_some());
        let net = net.map(|net| net.id.as_deref().unwrap_or_default());
        let device = self.device.iter().find(|device| matches!(device.kind, DeviceKind::Fs { .. }));
        disk.or(net).or(device.map(|device| device.kind.name()))
    }

    fn fill_ids(&mut self) -> Result<(), Conflict> {
        let mut ids = Ids::default();
        let controllers: std::collections::BTreeSet<_> =
            self.disk.iter().filter_map(|disk| disk.controller.clone()).collect();
        let given = self.disk.iter().map(|disk| &disk.id).chain(self.net.iter().map(|net| &net.id));
        let kinds = self.device.iter().filter_map(|device| match &device.kind {
            DeviceKind::Fs { id, .. } => id.as_deref(),
            kind => Some(kind.name()),
        });
        for id in given.flatten().chain(&controllers).map(String::as_str).chain(kinds) {
            ids.take(id)?;
        }
        for device in &mut self.device {
            if let DeviceKind::Fs { id, .. } = &mut device.kind {
                ids.fill("fs", id);
            }
        }
        self.disk.iter_mut().for_each(|disk| ids.fill("disk", &mut disk.id));
        self.net.iter_mut().for_each(|net| ids.fill("net", &mut net.id));
        Ok(())
    }

    /// Which disks are further namespaces of a controller that a disk before them has.
    fn joined(&self) -> Vec<bool> {
        let mut first = std::collections::BTreeSet::new();
        self.disk.iter().map(|disk| disk.controller.as_ref().is_some_and(|name| !first.insert(name))).collect()
    }

    fn check_controllers(&self) -> Result<(), Conflict> {
        let mut namespaces = BTreeMap::new();
        for (disk, joins) in self.disk.iter().zip(self.joined()) {
            let Some(controller) = &disk.controller else { continue };
            let count = namespaces.entry(controller).or_insert(0);
            *count += 1;
            if *count > MOST_NAMESPACES {
                return Err(Conflict::Namespaces { controller: controller.clone(), most: MOST_NAMESPACES });
            }
            let own = [
                ("place", disk.place.is_some()),
                ("serial", disk.serial.is_some()),
                ("queues", disk.queues.is_some()),
                ("poll", disk.poll.is_some()),
            ];
            if let Some((key, _)) = own.into_iter().find(|(_, given)| joins && *given) {
                let id = disk.id.clone().unwrap_or_default();
                return Err(Conflict::ControllersOwn { id, key, controller: controller.clone() });
            }
        }
        Ok(())
    }

    fn check_boot_order(&self) -> Result<(), Conflict> {
        let mut indexes = BTreeMap::new();
        let disks = self.disk.iter().map(|disk| (disk.bootindex, &disk.id));
        for (index, id) in disks.chain(self.net.iter().map(|net| (net.bootindex, &net.id))) {
            let Some(index) = index else { continue };
            if self.boot.firmware.is_none() {
                return Err(Conflict::Without { key: "bootindex", needs: "boot.firmware" });
            }
            let second = id.clone().unwrap_or_default();
            if let Some(first) = indexes.insert(index, second.clone()) {
                return Err(Conflict::SameBootIndex { index, first, second });
            }
        }
        Ok(())
    }

    fn give_places(&mut self, joined: &[bool]) -> Result<(), Conflict> {
        let mut places = Places::new(self.machine, self.pci_ports)?;
        let disks = self.disk.iter_mut().zip(joined).filter(|(_, joins)| !**joins);
        let disks = disks.map(|(disk, _)| (disk.id.clone().unwrap_or_default(), &mut disk.place));
        let nets = self.net.iter_mut().map(|net| (net.id.clone().unwrap_or_default(), &mut net.place));
        let devices = self.device.iter_mut().filter(|device| device.is_present());
        let devices = devices.map(|device| (device.kind.name().to_owned(), &mut device.place));
        let mut all: Vec<(String, &mut Option<Place>)> = disks.chain(nets).chain(devices).collect();
        for (id, place) in &all {
            if let Some(place) = place {
                places.take(*place, id)?;
            }
        }
        for (id, place) in &mut all {
            if place.is_none() {
                **place = Some(places.next(id)?);
            }
        }
        Ok(())
    }
}

/// Namespaces of a controller.
const MOST_NAMESPACES: usize = 256;
