//! The order in which firmware tries devices, as paths of Open Firmware (IEEE 1275) in the form that QEMU writes and OVMF, AAVMF and SeaBIOS read.

use std::fmt::Write;

use skep_config::{Config, DiskDevice, FIRST_PORT, Place};

#[cfg(test)]
#[path = "boot_order_test.rs"]
mod test;

/// What fw_cfg's file `bootorder` holds; `None` where no device has a place in it. `pci` is the host bridge's part of a path.
pub(super) fn list(config: &Config, pci: &str) -> Option<Vec<u8>> {
    let mut entries: Vec<(u16, String)> = Vec::new();
    for (position, disk) in config.disk.iter().enumerate() {
        let Some(index) = disk.bootindex else { continue };
        // The place is with the first disk of the controller, and namespaces are numbered in the order of the config.
        let (mut place, mut namespace) = (disk.place, 1);
        if let Some(controller) = &disk.controller {
            let mut before =
                config.disk.iter().take(position).filter(|other| other.controller.as_ref() == Some(controller));
            if let Some(first) = before.next() {
                (place, namespace) = (first.place, 2 + before.count());
            }
        }
        let Some(place) = place else { continue };
        entries.push((
            index,
            match disk.device {
                // It is QEMU's first NVMe controller that firmware knows by name.
                DiskDevice::Nvme => format!("{}/namespace@{namespace:x},0", path(pci, "pci8086,5845", place)),
                DiskDevice::VirtioBlk => format!("{}/disk@0,0", path(pci, "scsi", place)),
            },
        ));
    }
    for net in &config.net {
        if let (Some(index), Some(place)) = (net.bootindex, net.place) {
            entries.push((index, format!("{}/ethernet-phy@0", path(pci, "ethernet", place))));
        }
    }
    entries.sort();
    let lines: Vec<String> = entries.into_iter().map(|(_, path)| path).collect();
    (!lines.is_empty()).then(|| format!("{}\0", lines.join("\n")).into_bytes())
}

fn path(pci: &str, name: &str, place: Place) -> String {
    let mut path = format!("/{pci}");
    let device = match place {
        Place::Root(device) => device,
        Place::Port(number) => {
            let _ = write!(path, "/pci-bridge@{:x}", FIRST_PORT + number);
            0
        }
    };
    let _ = write!(path, "/{name}@{device:x}");
    path
}
