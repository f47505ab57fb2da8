//! Network cards.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::file::full_path;
use crate::group::{Group, group};
use crate::id::check_id;
use crate::place::Place;
use crate::poll::Poll;
use crate::rate::{Bytes, Rate, Requests};

#[cfg(test)]
#[path = "net_test.rs"]
mod test;

/// An Ethernet address of one card, written `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of a card that was given none: it follows from what the card is connected to, so that it stays, and two cards of one host
    /// differ. `52:54:00` is what virtual cards have by custom.
    fn of(network: &str) -> Self {
        // FNV-1a.
        let hash = network
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [a, b, c, ..] = hash.to_le_bytes();
        Mac([0x52, 0x54, 0x00, a, b, c])
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |part: &str| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
        let bytes = bytes.ok_or_else(|| format!("`{text}` is no Ethernet address: write it as 52:54:00:12:34:56"))?;
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(format!("`{text}` can't be a card's own address: the lowest bit of its first byte must be 0"));
        }
        Ok(Mac(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// What a network card is to the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetDevice {
    /// A virtio network card.
    #[default]
    #[serde(rename = "virtio-net")]
    VirtioNet,
    /// An NE2000 on PCI, for guests that know no other: slow, each byte goes through a port.
    #[serde(rename = "ne2k_pci")]
    Ne2kPci,
}

/// A network card: `tap=NAME[,queues=N]|user|vhost-user=SOCKET[,queues=N][,device=virtio-net|ne2k_pci][,id=ID][,mac=MAC][,romfile=FILE][,place=PLACE]...`.
///
/// [`crate::Config::finish`] fills in `id`, `mac`, `poll` and `place`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Net {
    /// To the host's tap interface of that name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// To the user's own connections, by the program `passt`, where there is no tap interface.
    pub user: bool,
    /// The Unix socket at which a vhost-user backend listens, which moves the frames.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_user: Option<PathBuf>,
    /// What the guest sees.
    pub device: NetDevice,
    /// Pairs of queues, of a tap interface made with `multi_queue`, or of a backend.
    pub queues: u16,
    /// The name in messages, in snapshots and for `skep ctl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The card's address. Hosts that share a network should each give their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// How long a pair's thread polls at most before it sleeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<Poll>,
    /// Frames that the guest receives in a second at most, over all pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_packets: Option<Rate<Requests>>,
    /// Bytes of frames that it receives in a second at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bandwidth: Option<Rate<Bytes>>,
    /// Frames that it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_packets: Option<Rate<Requests>>,
    /// Bytes of frames that it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bandwidth: Option<Rate<Bytes>>,
    /// Its option ROM, by which firmware that has no driver for it boots from the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub romfile: Option<PathBuf>,
    /// Where it is on PCI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// Firmware tries devices that have one first, the least before the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootindex: Option<u16>,
}

/// What a tap interface has at most (Linux: `MAX_TAP_QUEUES`).
const MOST_QUEUES: u16 = 256;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    tap: Option<String>,
    #[serde(default)]
    user: bool,
    vhost_user: Option<PathBuf>,
    #[serde(default)]
    device: NetDevice,
    queues: Option<u16>,
    id: Option<String>,
    mac: Option<Mac>,
    poll: Option<Poll>,
    rx_packets: Option<Rate<Requests>>,
    rx_bandwidth: Option<Rate<Bytes>>,
    tx_packets: Option<Rate<Requests>>,
    tx_bandwidth: Option<Rate<Bytes>>,
    romfile: Option<PathBuf>,
    place: Option<Place>,
    bootindex: Option<u16>,
}

impl Net {
    /// The files and sockets that it names.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.romfile, &mut self.vhost_user].into_iter().flatten()
    }

    /// Fills in the address and how long it polls.
    pub(crate) fn fill(&mut self) {
        if self.device == NetDevice::VirtioNet && self.vhost_user.is_none() {
            self.poll.get_or_insert_default();
        }
        let socket = self.vhost_user.as_ref().map(|socket| full_path(socket).display().to_string());
        let network = self.tap.as_deref().or(socket.as_deref()).or(self.id.as_deref()).unwrap_or_default();
        self.mac.get_or_insert_with(|| Mac::of(network));
    }
}

impl Group for Net {
    type Keys = Keys;
    const LEADING: Option<&'static str> = None;

    fn from_keys(keys: Keys) -> Result<Self, String> {
        if [keys.tap.is_some(), keys.user, keys.vhost_user.is_some()].into_iter().filter(|given| *given).count() != 1 {
            return Err("exactly one of tap=NAME, user and vhost-user=SOCKET is needed".to_owned());
        }
        if keys.vhost_user.as_ref().is_some_and(|socket| socket.as_os_str().is_empty()) {
            return Err("`vhost-user` needs the backend's socket: vhost-user=SOCKET".to_owned());
        }
        let queues = keys.queues.unwrap_or(1);
        if !(1..=MOST_QUEUES).contains(&queues) {
            return Err(format!("`queues` must be 1 to {MOST_QUEUES}"));
        }
        if queues > 1 && keys.user {
            return Err("`queues` goes with `tap` and `vhost-user` only".to_owned());
        }
        if keys.vhost_user.is_some() && keys.device != NetDevice::VirtioNet {
            return Err("`vhost-user` goes with device=virtio-net only".to_owned());
        }
        if queues > 1 && keys.device != NetDevice::VirtioNet {
            return Err("`queues` goes with device=virtio-net only".to_owned());
        }
        let packets = keys.rx_packets.is_some() || keys.tx_packets.is_some();
        let limits = packets || keys.rx_bandwidth.is_some() || keys.tx_bandwidth.is_some();
        if (limits || keys.poll.is_some()) && keys.device != NetDevice::VirtioNet {
            return Err("rates and `poll` go with device=virtio-net only".to_owned());
        }
        if (limits || keys.poll.is_some()) && keys.vhost_user.is_some() {
            return Err("rates and `poll` do not go with vhost-user=SOCKET: the backend moves the frames".to_owned());
        }
        if let Some(id) = &keys.id {
            check_id(id)?;
        }
        Ok(Net {
            tap: keys.tap,
            user: keys.user,
            vhost_user: keys.vhost_user,
            device: keys.device,
            queues,
            id: keys.id,
            mac: keys.mac,
            poll: keys.poll,
            rx_packets: keys.rx_packets,
            rx_bandwidth: keys.rx_bandwidth,
            tx_packets: keys.tx_packets,
            tx_bandwidth: keys.tx_bandwidth,
            romfile: keys.romfile,
            place: keys.place,
            bootindex: keys.bootindex,
        })
    }
}

group!(
    Net,
    "a text such as \"tap=NAME\" or \"user\", or a table of tap, user, vhost-user, device, queues, id, mac and others"
);
