//! Disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::group::{Group, group};
use crate::id::check_id;
use crate::place::Place;
use crate::poll::Poll;
use crate::rate::{Bytes, Rate, Requests};

#[cfg(test)]
#[path = "disk_test.rs"]
mod test;

/// How a disk's content is stored in its file. It is named and never guessed: a guest could write an image of another format into its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte by byte; a block device too.
    Raw,
    /// QEMU's copy on write format, with backing files.
    Qcow2,
}

/// What a disk is to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskDevice {
    /// A namespace of an NVMe controller, which every guest has a driver for.
    #[default]
    Nvme,
    /// A virtio block device.
    VirtioBlk,
}

/// Where a disk's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum DiskSource {
    /// In an image.
    Image {
        /// The image, or a block device of the host.
        file: PathBuf,
        /// How its content is stored.
        format: Format,
    },
    /// With another program.
    VhostUser {
        /// The Unix socket at which a vhost-user backend listens.
        #[serde(rename = "vhost-user")]
        socket: PathBuf,
    },
}

impl DiskSource {
    /// The path that it names.
    pub fn path_mut(&mut self) -> &mut PathBuf {
        match self {
            DiskSource::Image { file, .. } => file,
            DiskSource::VhostUser { socket } => socket,
        }
    }

    /// Whether it is with another program.
    pub fn is_vhost_user(&self) -> bool {
        matches!(self, DiskSource::VhostUser { .. })
    }
}

/// A disk: `FILE,format=raw|qcow2[,device=nvme|virtio-blk][,id=ID][,serial=TEXT][,readonly][,direct][,place=PLACE]...`, or `vhost-user=SOCKET[,queues=N][,id=ID][,place=PLACE]`.
///
/// [`crate::Config::finish`] fills in `id`, and, but for those that join another disk's controller, `serial`, `place`, `queues` and
/// `poll`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Disk {
    /// Where its content is.
    #[serde(flatten)]
    pub source: DiskSource,
    /// What the guest sees.
    pub device: DiskDevice,
    /// The name in messages, in snapshots and for `skep ctl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The serial number that the guest sees: at most 20 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The guest can't write, and the file is opened for reading only.
    pub readonly: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Bytes of a logical block of NVMe: 512 or 4096.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Queues, or pairs of queues, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// How long a queue's thread polls at most before it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// Requests in a second at most, of all its queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<Rate<Requests>>,
    /// Bytes read and written in a second at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate<Bytes>>,
    /// The NVMe disks of the same controller are its namespaces, in the order of the config.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Where it is on PCI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Firmware tries devices that have one first, the least before the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootindex: Option<u16>,
}

/// What one MSI-X table, one page of doorbells and a host's patience have room for.
const MOST_QUEUES: u16 = 256;
/// Characters of a serial number.
const MOST_SERIAL: usize = 20;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    file: Option<PathBuf>,
    format: Option<Format>,
    vhost_user: Option<PathBuf>,
    device: Option<DiskDevice>,
    id: Option<String>,
    serial: Option<String>,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    direct: bool,
    block_size: Option<u32>,
    queues: Option<u16>,
    poll: Option<Poll>,
    iops: Option<Rate<Requests>>,
    bandwidth: Option<Rate<Bytes>>,
    controller: Option<String>,
    place: Option<Place>,
    bootindex: Option<u16>,
}

impl Keys {
    /// Where the content is. What is in an image is described here, the rest by the backend.
    fn take_source(&mut self) -> Result<DiskSource, String> {
        let file = self.file.take().filter(|file| !file.as_os_str().is_empty());
        if let Some(socket) = self.vhost_user.take() {
            let own = [
                ("a file", file.is_some()),
                ("format", self.format.is_some()),
                ("serial", self.serial.is_some()),
                ("readonly", self.readonly),
                ("direct", self.direct),
                ("poll", self.poll.is_some()),
                ("iops", self.iops.is_some()),
                ("bandwidth", self.bandwidth.is_some()),
                ("device=nvme", self.device == Some(DiskDevice::Nvme)),
            ];
            if let Some((key, _)) = own.into_iter().find(|(_, given)| *given) {
                return Err(format!("`{key}` does not go with vhost-user=SOCKET: the backend has the disk"));
            }
            if socket.as_os_str().is_empty() {
                return Err("`vhost-user` needs the backend's socket: vhost-user=SOCKET".to_owned());
            }
            self.device = Some(DiskDevice::VirtioBlk);
            return Ok(DiskSource::VhostUser { socket });
        }
        let file = file.ok_or("a disk needs a file: FILE,format=raw; or a backend: vhost-user=SOCKET")?;
        let unnamed = || {
            let name = file.display();
            format!(
                "`{name}`: the format is never guessed, since its guest writes what a guess looks at: add format=raw or format=qcow2"
            )
        };
        let format = self.format.ok_or_else(unnamed)?;
        Ok(DiskSource::Image { file, format })
    }
}

impl Group for Disk {
    type Keys = Keys;
    const LEADING: Option<&'static str> = Some("file");

    fn from_keys(mut keys: Keys) -> Result<Self, String> {
        let source = keys.take_source()?;
        let device = keys.device.unwrap_or_default();
        for id in [&keys.id, &keys.controller].into_iter().flatten() {
            check_id(id)?;
        }
        if let Some(serial) = &keys.serial
            && (serial.is_empty() || serial.len() > MOST_SERIAL || !serial.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(format!(
                "`{serial}` is no serial number: 1 to {MOST_SERIAL} characters of ASCII without spaces"
            ));
        }
        if keys.queues.is_some_and(|queues| !(1..=MOST_QUEUES).contains(&queues)) {
            return Err(format!("`queues` must be 1 to {MOST_QUEUES}"));
        }
        let nvme = device == DiskDevice::Nvme;
        for (key, given) in [("block-size", keys.block_size.is_some()), ("controller", keys.controller.is_some())] {
            if given && !nvme {
                return Err(format!("`{key}` goes with device=nvme only"));
            }
        }
        if keys.block_size.is_some_and(|size| ![512, 4096].contains(&size)) {
            return Err("`block-size` must be 512 or 4096".to_owned());
        }
        Ok(Disk {
            source,
            device,
            id: keys.id,
            serial: keys.serial,
            readonly: keys.readonly,
            direct: keys.direct,
            block_size: nvme.then_some(keys.block_size.unwrap_or(512)),
            queues: keys.queues,
            poll: keys.poll,
            iops: keys.iops,
            bandwidth: keys.bandwidth,
            controller: keys.controller,
            place: keys.place,
            bootindex: keys.bootindex,
        })
    }
}

group!(
    Disk,
    "a text such as \"FILE,format=raw\", or a table of file and format, or vhost-user, of device, id and others"
);
