//! Disks: images of the host as NVMe namespaces and virtio block devices.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use skep_block::{BlockError, ClosingDisk, FileDisk, FileOptions, ImageDisk, LimitedDisk, Locking, Qcow2Disk};
use skep_config::{Config, Disk, DiskDevice, DiskSource, Format};
use skep_nvme::{Controller, ControllerConfig, NamespaceConfig};
use skep_virtio::{Blk, BlkConfig, VhostUserKind};

use super::{DeviceError, Devices, Image, Kind, Site, limiter, named, vhost_user};
use crate::Error;

/// Sectors are what virtio counts in, and NVMe's smallest blocks.
const SECTOR: u32 = 512;
/// A controller's namespaces at most.
const NAMESPACES: u32 = 256;

/// Makes the disks of `config`.
pub(super) fn add(site: Site<'_>, config: &Config) -> Result<(), Error> {
    let mut controllers = BTreeSet::new();
    for disk in &config.disk {
        if disk.controller.as_ref().is_none_or(|name| controllers.insert(name)) {
            add_one(site, config, disk)?;
        }
    }
    Ok(())
}

/// Makes a disk, or a controller with all its disks, of which it is the first.
fn add_one(site: Site<'_>, config: &Config, disk: &Disk) -> Result<(), Error> {
    let id = disk.id.as_deref().unwrap_or_default();
    if let DiskSource::VhostUser { socket } = &disk.source {
        return add_backend(site, id, disk, socket).map_err(named(id));
    }
    match (disk.device, &disk.controller) {
        (DiskDevice::VirtioBlk, _) => add_virtio(site, id, disk).map_err(named(id)),
        (DiskDevice::Nvme, None) => add_controller(site, id, &[disk]),
        (DiskDevice::Nvme, Some(name)) => add_controller(site, name, &of_controller(config, name)),
    }
}

fn of_controller<'a>(config: &'a Config, name: &str) -> Vec<&'a Disk> {
    config.disk.iter().filter(|disk| disk.controller.as_deref() == Some(name)).collect()
}

/// Plugs in the last disk of `config`: a device of its own, or a further namespace of its controller, of which it answers the number.
pub(super) fn plug(site: Site<'_>, config: &Config) -> Result<Option<u32>, Error> {
    let Some(disk) = config.disk.last() else { return Ok(None) };
    if let Some(name) = &disk.controller
        && let [first, .., _] = of_controller(config, name)[..]
    {
        let id = disk.id.as_deref().unwrap_or_default();
        return join(site.devices, name, &serial(first, name), disk).map(Some).map_err(named(id));
    }
    add_one(site, config, disk).map(|()| None)
}

fn serial(first: &Disk, controller: &str) -> String {
    first.serial.clone().unwrap_or_else(|| controller.to_owned())
}

/// A controller with the namespaces `disks`, the first of which says what it is.
fn add_controller(site: Site<'_>, id: &str, disks: &[&Disk]) -> Result<(), Error> {
    let Some(first) = disks.first() else { return Ok(()) };
    let serial = serial(first, id);
    let mut form = ControllerConfig::new(serial.clone());
    form.queues = first.queues.unwrap_or(form.queues);
    form.poll = first.poll.unwrap_or_default().duration();
    let make = || {
        let socket = site.socket(first.place)?;
        Ok(skep_nvme::endpoint(&socket, form, site.clock.clone())?)
    };
    let (endpoint, controller) = make().map_err(named(id))?;
    let attach = |(number, disk): (u32, &&Disk)| {
        let id = disk.id.as_deref().unwrap_or_default();
        let nsid = site.numbers.namespaces.get(id).copied().unwrap_or(number);
        attach(&controller, nsid, &serial, disk, site.locking).map_err(named(id))
    };
    let images = (1..).zip(disks).map(attach).collect::<Result<_, _>>()?;
    site.push(id, endpoint, Kind::Nvme(controller), images).map_err(named(id))
}

fn attach(
    controller: &Controller,
    nsid: u32,
    serial: &str,
    disk: &Disk,
    locking: Locking,
) -> Result<Image, DeviceError> {
    let block_size = disk.block_size.unwrap_or(SECTOR);
    let file = open(disk, block_size, locking)?;
    let namespace =
        NamespaceConfig { disk: held(disk, &file), block_size, read_only: disk.readonly, uuid: uuid(serial, nsid) };
    controller.attach(nsid, &namespace)?;
    Ok(Image { id: disk.id.clone().unwrap_or_default(), file, namespace: Some(nsid) })
}

/// Attaches a namespace to a controller that runs, under a number that was not another's before as long as there is one.
fn join(devices: &Devices, controller: &str, serial: &str, disk: &Disk) -> Result<u32, DeviceError> {
    let mut inner = devices.lock();
    let found = inner.placed.iter_mut().find_map(|placed| match &placed.kind {
        Kind::Nvme(nvme) if placed.id == controller => Some((nvme.clone(), placed)),
        _ => None,
    });
    let refuse = |why| DeviceError::Controller { controller: controller.to_owned(), why };
    let (nvme, placed) = found.ok_or_else(|| refuse("is leaving"))?;
    let taken = nvme.namespaces();
    let last = placed.last_namespace.max(taken.iter().copied().max().unwrap_or(0));
    let free = (last + 1..=NAMESPACES).chain(1..=NAMESPACES).find(|nsid| !taken.contains(nsid));
    let nsid = free.ok_or_else(|| refuse("has as many disks as it can"))?;
    let image = attach(&nvme, nsid, serial, disk, Locking::Now)?;
    placed.last_namespace = nsid;
    placed.images.push(image);
    Ok(nsid)
}

fn add_virtio(site: Site<'_>, id: &str, disk: &Disk) -> Result<(), DeviceError> {
    let socket = site.socket(disk.place)?;
    let file = open(disk, SECTOR, site.locking)?;
    let form = BlkConfig {
        name: id.to_owned(),
        disk: held(disk, &file),
        queues: disk.queues.unwrap_or(1),
        serial: disk.serial.clone().unwrap_or_else(|| id.to_owned()),
        poll: disk.poll.unwrap_or_default().duration(),
    };
    let device =
        Blk::new(&form).map_err(|source| DeviceError::Host { what: "start a disk's threads".to_owned(), source })?;
    site.push_virtio(id, &socket, device, None, vec![Image { id: id.to_owned(), file, namespace: None }])
}

/// The image as the guest may use it: with its limits before it.
pub(super) fn held(disk: &Disk, file: &Arc<dyn ImageDisk>) -> Arc<dyn skep_block::Disk> {
    match limiter(disk.iops, disk.bandwidth) {
        Some(limiter) => LimitedDisk::new(file.clone(), limiter),
        None => file.clone(),
    }
}

fn add_backend(site: Site<'_>, id: &str, disk: &Disk, socket: &Path) -> Result<(), DeviceError> {
    let place = site.socket(disk.place)?;
    let device = vhost_user::connect(site, id, socket, VhostUserKind::Blk, disk.queues.unwrap_or(1))?;
    site.push_virtio(id, &place, device, None, Vec::new())
}

/// The image of a disk that has one.
fn image(disk: &Disk) -> (&Path, Format) {
    match &disk.source {
        DiskSource::Image { file, format } => (file, *format),
        DiskSource::VhostUser { socket } => unreachable!("nobody opens a backend's socket {}", socket.display()),
    }
}

/// Opens the image, which must be made of whole blocks.
pub(super) fn open(disk: &Disk, block_size: u32, lock: Locking) -> Result<Arc<dyn ImageDisk>, DeviceError> {
    let options = FileOptions { read_only: disk.readonly, direct: disk.direct, lock, ..FileOptions::default() };
    let (file, format) = image(disk);
    let opened: Result<Arc<dyn ImageDisk>, _> = match format {
        Format::Raw => FileDisk::open(file, &options).map(|disk| disk as _),
        Format::Qcow2 => Qcow2Disk::open(file, &options).map(|disk| ClosingDisk::new(disk) as _),
    };
    let opened = opened.map_err(|source| {
        let mend = mend(&source, disk);
        DeviceError::Disk { source, mend }
    })?;
    let length = std::fs::metadata(file).ok().filter(|data| data.is_file() && format == Format::Raw);
    let size = length.map_or(opened.info().size, |data| data.len());
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        let reason = format!("it has {size} bytes, and a disk is made of blocks of {block_size}");
        let mend = match format {
            Format::Raw => "\n  try: another size, by `truncate -s SIZE FILE`",
            Format::Qcow2 => "\n  try: another size, by `qemu-img resize`",
        };
        return Err(DeviceError::Disk { source: BlockError::Unusable { path: file.to_owned(), reason }, mend });
    }
    Ok(opened)
}

fn mend(error: &BlockError, disk: &Disk) -> &'static str {
    let (file, _) = image(disk);
    match error {
        BlockError::Host { source, path, .. } => match source.kind() {
            io::ErrorKind::NotFound if path != file => "\n  try: put it where the image before it says that it is",
            io::ErrorKind::NotFound => {
                "\n  try: make an empty disk, by `skep image create FILE --format FORMAT --size 10G`"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if path == file && !disk.readonly => {
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
