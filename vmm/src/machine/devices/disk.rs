//! Disks: images of the host as NVMe namespaces and virtio block devices.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use skep_block::{BlockError, FileDisk, FileOptions, Qcow2Disk};
use skep_clock::Clock;
use skep_config::{Config, Disk, DiskDevice, Format};
use skep_nvme::{ControllerConfig, NamespaceConfig};
use skep_pci::RootComplex;
use skep_virtio::{Blk, BlkConfig};

use super::{DeviceError, Devices, Kind, POLL, named, socket};
use crate::Error;

/// Sectors are what virtio counts in, and NVMe's smallest blocks.
const SECTOR: u32 = 512;

/// Makes the disks of `config`.
pub(super) fn add(devices: &Devices, config: &Config, root: &RootComplex, clock: &Clock) -> Result<(), Error> {
    let mut controllers = BTreeSet::new();
    for disk in &config.disk {
        let id = disk.id.as_deref().unwrap_or_default();
        match (disk.device, &disk.controller) {
            (DiskDevice::VirtioBlk, _) => add_virtio(devices, id, disk, root).map_err(named(id))?,
            (DiskDevice::Nvme, None) => add_controller(devices, id, &[disk], root, clock)?,
            (DiskDevice::Nvme, Some(name)) => {
                if controllers.insert(name) {
                    let of_it = |other: &&Disk| other.controller.as_ref() == Some(name);
                    let disks: Vec<_> = config.disk.iter().filter(of_it).collect();
                    add_controller(devices, name, &disks, root, clock)?;
                }
            }
        }
    }
    Ok(())
}

/// A controller with the namespaces `disks`, the first of which says what it is.
fn add_controller(
    devices: &Devices,
    id: &str,
    disks: &[&Disk],
    root: &RootComplex,
    clock: &Clock,
) -> Result<(), Error> {
    let Some(first) = disks.first() else { return Ok(()) };
    let serial = first.serial.clone().unwrap_or_else(|| id.to_owned());
    let mut form = ControllerConfig::new(serial.clone());
    form.queues = first.queues.unwrap_or(form.queues);
    let make = || {
        let socket = socket(root, first.place)?;
        Ok(skep_nvme::endpoint(&socket, form, clock.clone())?)
    };
    let (endpoint, controller) = make().map_err(named(id))?;
    for (nsid, disk) in (1..).zip(disks) {
        let attach = || {
            let block_size = disk.block_size.unwrap_or(SECTOR);
            let namespace = NamespaceConfig {
                disk: open(disk, block_size)?,
                block_size,
                read_only: disk.readonly,
                uuid: uuid(&serial, nsid),
            };
            Ok(controller.attach(nsid, &namespace)?)
        };
        attach().map_err(named(disk.id.as_deref().unwrap_or_default()))?;
    }
    devices.push(id, endpoint, Kind::Nvme(controller), root).map_err(named(id))
}

fn add_virtio(devices: &Devices, id: &str, disk: &Disk, root: &RootComplex) -> Result<(), DeviceError> {
    let socket = socket(root, disk.place)?;
    let form = BlkConfig {
        name: id.to_owned(),
        disk: open(disk, SECTOR)?,
        queues: disk.queues.unwrap_or(1),
        serial: disk.serial.clone().unwrap_or_else(|| id.to_owned()),
        poll: POLL,
    };
    let device =
        Blk::new(&form).map_err(|source| DeviceError::Host { what: "start a disk's threads".to_owned(), source })?;
    devices.push_virtio(id, &socket, device, root)
}

/// Opens the image, which must be made of whole blocks.
fn open(disk: &Disk, block_size: u32) -> Result<Arc<dyn skep_block::Disk>, DeviceError> {
    let options = FileOptions { read_only: disk.readonly, direct: disk.direct, ..FileOptions::default() };
    let opened: Result<Arc<dyn skep_block::Disk>, _> = match disk.format {
        Format::Raw => FileDisk::open(&disk.file, &options).map(|disk| disk as _),
        Format::Qcow2 => Qcow2Disk::open(&disk.file, &options).map(|disk| disk as _),
    };
    let opened = opened.map_err(|source| {
        let mend = mend(&source, disk);
        DeviceError::Disk { source, mend }
    })?;
    let length = std::fs::metadata(&disk.file).ok().filter(|data| data.is_file() && disk.format == Format::Raw);
    let size = length.map_or(opened.info().size, |data| data.len());
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        let reason = format!("it has {size} bytes, and a disk is made of blocks of {block_size}");
        let mend = match disk.format {
            Format::Raw => "\n  try: another size, by `truncate -s SIZE FILE`",
            Format::Qcow2 => "\n  try: another size, by `qemu-img resize`",
        };
        return Err(DeviceError::Disk { source: BlockError::Unusable { path: disk.file.clone(), reason }, mend });
    }
    Ok(opened)
}

fn mend(error: &BlockError, disk: &Disk) -> &'static str {
    match error {
        BlockError::Host { source, path, .. } => match source.kind() {
            io::ErrorKind::NotFound if *path != disk.file => {
                "\n  try: put it where the image before it says that it is"
            }
            io::ErrorKind::NotFound => {
                "\n  try: make an empty disk, by `skep image create FILE --format FORMAT --size 10G`"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                if *path == disk.file && !disk.readonly =>
            {
                "\n  try: let this user write the file, or add `readonly`"
            }
            io::ErrorKind::InvalidInput if disk.direct => "\n  try: leave `direct` out",
            _ => "",
        },
        BlockError::Locked { .. } if !disk.readonly => {
            "\n  try: a copy of the file; or `readonly` for all who share it"
        }
        _ => "",
    }
}

/// The namespace's UUID: it follows from the serial number, so that it stays. Version 8 (RFC 9562 section 5.8).
fn uuid(serial: &str, nsid: u32) -> [u8; 16] {
    // FNV-1a of 128 bits.
    let seed = serial.bytes().chain(nsid.to_le_bytes());
    let hash = seed.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    let version = hash & !(0xf << 76) | 8 << 76;
    (version & !(3 << 62) | 2 << 62).to_be_bytes()
}
