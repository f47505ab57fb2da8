//! Devices besides disks and network cards.

use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::group::{Group, group};
use crate::id::check_id;
use crate::place::Place;

#[cfg(test)]
#[path = "device_test.rs"]
mod test;

/// What a device is. A machine has each kind once at most, but for file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// Random numbers for the guest (virtio). They are there unless the config says `rng=false`.
    Rng {
        /// Whether it is there.
        present: bool,
    },
    /// A balloon, by which the guest gives memory back to the host (virtio).
    Balloon {
        /// The guest may take pages out of it before it runs out of memory.
        deflate_on_oom: bool,
    },
    /// Streams between programs of the guest and programs of the host (virtio).
    Vsock {
        /// The Unix socket at which programs of the host reach the guest.
        socket: PathBuf,
        /// The guest's context id.
        cid: u32,
    },
    /// A terminal and pipes between the guest and programs of the host (virtio).
    Console {
        /// The Unix socket of the terminal, which is the first port; that of a further port has the port's name behind it, after an `_`.
        socket: PathBuf,
        /// The further ports, by the names under which the guest finds them.
        ports: Vec<String>,
    },
    /// A directory of the host, by a vhost-user backend such as `virtiofsd` (virtio).
    Fs {
        /// The Unix socket at which the backend listens.
        socket: PathBuf,
        /// The name by which the guest mounts it.
        tag: String,
        /// Queues for requests.
        queues: u16,
        /// The name in messages, in snapshots and for `skep ctl`, which [`crate::Config::finish`] fills in.
        id: Option<String>,
    },
}

impl DeviceKind {
    /// The device's name: the kind's key, where there can be one only.
    pub fn name(&self) -> &str {
        match self {
            DeviceKind::Fs { id, .. } => id.as_deref().unwrap_or("fs"),
            DeviceKind::Rng { .. } => "rng",
            DeviceKind::Balloon { .. } => "balloon",
            DeviceKind::Vsock { .. } => "vsock",
            DeviceKind::Console { .. } => "console",
        }
    }
}

/// A device: `rng[=false]|balloon[,deflate-on-oom]|vsock=SOCKET[,cid=N]|console=SOCKET[,ports=NAME:NAME...]|fs,socket=SOCKET,tag=TAG[,queues=N][,id=ID][,place=PLACE]`.
///
/// [`crate::Config::finish`] fills in `place`, and adds `rng` where nothing is said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Where it is on PCI.
    pub place: Option<Place>,
}

impl Device {
    /// The one that gives random numbers, or says that there is none.
    pub fn rng(present: bool) -> Self {
        Device { kind: DeviceKind::Rng { present }, place: None }
    }

    /// Whether the guest sees a device.
    pub fn is_present(&self) -> bool {
        self.kind != DeviceKind::Rng { present: false }
    }
}

/// The context ids that guests can have: below are the host's, above is none.
const CIDS: std::ops::RangeInclusive<u32> = 3..=0xffff_fffe;
/// Bytes of a file system's name (virtio 1.2 section 5.11.4).
const MOST_TAG: usize = 36;
/// Queues of a file system: more than any backend has.
const MOST_QUEUES: u16 = 64;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    rng: Option<bool>,
    #[serde(default)]
    balloon: bool,
    #[serde(default)]
    deflate_on_oom: bool,
    vsock: Option<PathBuf>,
    cid: Option<u32>,
    console: Option<PathBuf>,
    ports: Option<String>,
    #[serde(default)]
    fs: bool,
    socket: Option<PathBuf>,
    tag: Option<String>,
    queues: Option<u16>,
    id: Option<String>,
    place: Option<Place>,
}

/// Ports of a console besides the first, and characters of a name.
const MOST_PORTS: usize = 30;
const MOST_NAME: usize = 64;

fn port_names(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(':').filter(|_| !text.is_empty()).map(str::to_owned).collect();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if let Some(wrong) = names.iter().find(|name| !(1..=MOST_NAME).contains(&name.len()) || !name.bytes().all(fits)) {
        return Err(format!("`{wrong}` is no port's name: 1 to {MOST_NAME} letters, digits, `-`, `_` and `.`"));
    }
    if let Some(twice) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) {
        return Err(format!("two ports are called `{twice}`"));
    }
    if names.len() > MOST_PORTS {
        return Err(format!("`ports` are {MOST_PORTS} at most"));
    }
    Ok(names)
}

impl Keys {
    /// A file system, if it is one.
    fn take_fs(&mut self) -> Result<Option<DeviceKind>, String> {
        if !self.fs {
            return Ok(None);
        }
        let socket = self.socket.take().filter(|socket| !socket.as_os_str().is_empty());
        let socket = socket.ok_or("`fs` needs the backend's socket: fs,socket=SOCKET,tag=TAG")?;
        let tag = self.tag.take().ok_or("`fs` needs a tag, by which the guest mounts it: fs,socket=SOCKET,tag=TAG")?;
        if tag.is_empty() || tag.len() > MOST_TAG || tag.bytes().any(|byte| byte == 0) {
            return Err(format!("`{tag}` is no tag: 1 to {MOST_TAG} bytes"));
        }
        let queues = self.queues.take().unwrap_or(1);
        if !(1..=MOST_QUEUES).contains(&queues) {
            return Err(format!("`queues` must be 1 to {MOST_QUEUES}"));
        }
        let id = self.id.take();
        id.as_deref().map_or(Ok(()), check_id)?;
        Ok(Some(DeviceKind::Fs { socket, tag, queues, id }))
    }
}

impl Group for Device {
    type Keys = Keys;
    const LEADING: Option<&'static str> = None;

    fn from_keys(mut keys: Keys) -> Result<Self, String> {
        let fs = keys.take_fs()?;
        let beside = |key, given: bool, needs, there: bool| match given && !there {
            true => Err(format!("`{key}` goes with `{needs}` only")),
            false => Ok(()),
        };
        beside("deflate-on-oom", keys.deflate_on_oom, "balloon", keys.balloon)?;
        beside("cid", keys.cid.is_some(), "vsock", keys.vsock.is_some())?;
        beside("ports", keys.ports.is_some(), "console", keys.console.is_some())?;
        let ports = port_names(keys.ports.as_deref().unwrap_or_default())?;
        for (key, given) in [
            ("socket", keys.socket.is_some()),
            ("tag", keys.tag.is_some()),
            ("queues", keys.queues.is_some()),
            ("id", keys.id.is_some()),
        ] {
            beside(key, given, "fs", false)?;
        }
        let cid = keys.cid.unwrap_or(*CIDS.start());
        if !CIDS.contains(&cid) {
            return Err(format!("`cid` must be {} to {}", CIDS.start(), CIDS.end()));
        }
        let kinds = [
            keys.rng.map(|present| DeviceKind::Rng { present }),
            keys.balloon.then_some(DeviceKind::Balloon { deflate_on_oom: keys.deflate_on_oom }),
            keys.vsock.map(|socket| DeviceKind::Vsock { socket, cid }),
            keys.console.map(|socket| DeviceKind::Console { socket, ports }),
            fs,
        ];
        let mut kinds = kinds.into_iter().flatten();
        let (Some(kind), None) = (kinds.next(), kinds.next()) else {
            return Err("exactly one of rng, balloon, vsock=SOCKET, console=SOCKET and fs is needed".to_owned());
        };
        let device = Device { kind, place: keys.place };
        if !device.is_present() && device.place.is_some() {
            return Err("`place` is of no use to a device that is not there".to_owned());
        }
        Ok(device)
    }
}

group!(Device, "a text such as \"balloon\", or a table of one of rng, balloon, vsock, console and fs, and of place");

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.kind {
            DeviceKind::Rng { present } => map.serialize_entry("rng", present)?,
            DeviceKind::Balloon { deflate_on_oom } => {
                map.serialize_entry("balloon", &true)?;
                map.serialize_entry("deflate-on-oom", deflate_on_oom)?;
            }
            DeviceKind::Vsock { socket, cid } => {
                map.serialize_entry("vsock", socket)?;
                map.serialize_entry("cid", cid)?;
            }
            DeviceKind::Console { socket, ports } => {
                map.serialize_entry("console", socket)?;
                if !ports.is_empty() {
                    map.serialize_entry("ports", &ports.join(":"))?;
                }
            }
            DeviceKind::Fs { socket, tag, queues, id } => {
                map.serialize_entry("fs", &true)?;
                map.serialize_entry("socket", socket)?;
                map.serialize_entry("tag", tag)?;
                map.serialize_entry("queues", queues)?;
                if let Some(id) = id {
                    map.serialize_entry("id", id)?;
                }
            }
        }
        if let Some(place) = &self.place {
            map.serialize_entry("place", place)?;
        }
        map.end()
    }
}
