//! What all queue pairs share: features, settings, and the control queue's commands (section 5.1.6.5).

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_net::{LinkInfo, NetError, Offloads};
use skep_state::{State, StateError, ensure};

use super::NetState;
use crate::Notifier;

/// Feature bits (section 5.1.3).
pub(super) mod feature {
    pub(in crate::net) const CSUM: u64 = 1 << 0;
    pub(in crate::net) const GUEST_CSUM: u64 = 1 << 1;
    pub(in crate::net) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub(in crate::net) const MTU: u64 = 1 << 3;
    pub(in crate::net) const MAC: u64 = 1 << 5;
    pub(in crate::net) const GUEST_TSO4: u64 = 1 << 7;
    pub(in crate::net) const GUEST_TSO6: u64 = 1 << 8;
    pub(in crate::net) const GUEST_ECN: u64 = 1 << 9;
    pub(in crate::net) const HOST_TSO4: u64 = 1 << 11;
    pub(in crate::net) const HOST_TSO6: u64 = 1 << 12;
    pub(in crate::net) const HOST_ECN: u64 = 1 << 13;
    pub(in crate::net) const MRG_RXBUF: u64 = 1 << 15;
    pub(in crate::net) const STATUS: u64 = 1 << 16;
    pub(in crate::net) const CTRL_VQ: u64 = 1 << 17;
    pub(in crate::net) const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub(in crate::net) const MQ: u64 = 1 << 22;
    pub(in crate::net) const CTRL_MAC_ADDR: u64 = 1 << 23;
    pub(in crate::net) const GUEST_USO4: u64 = 1 << 54;
    pub(in crate::net) const GUEST_USO6: u64 = 1 << 55;
    pub(in crate::net) const HOST_USO: u64 = 1 << 56;
}

/// For each offload, the feature of frames that the guest receives.
const RECEIVED: [(Offloads, u64); 6] = [
    (Offloads::CHECKSUM, feature::GUEST_CSUM),
    (Offloads::TSO4, feature::GUEST_TSO4),
    (Offloads::TSO6, feature::GUEST_TSO6),
    (Offloads::TSO_ECN, feature::GUEST_ECN),
    (Offloads::USO4, feature::GUEST_USO4),
    (Offloads::USO6, feature::GUEST_USO6),
];
/// For each set of offloads, the feature of frames that the guest sends.
const SENT: [(Offloads, u64); 5] = [
    (Offloads::CHECKSUM, feature::CSUM),
    (Offloads::TSO4, feature::HOST_TSO4),
    (Offloads::TSO6, feature::HOST_TSO6),
    (Offloads::TSO_ECN, feature::HOST_ECN),
    (Offloads::USO4.union(Offloads::USO6), feature::HOST_USO),
];
/// All features of received frames.
pub(super) const OFFLOADS: u64 = feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_USO4
    | feature::GUEST_USO6;

/// The features that follow from what a network can take.
pub(super) fn offload_features(offloads: Offloads) -> u64 {
    let given = |list: &[(Offloads, u64)]| {
        let offered = list.iter().filter(|(needs, _)| offloads.contains(*needs));
        offered.fold(0, |features, (_, feature)| features | feature)
    };
    let features = given(&RECEIVED) | given(&SENT);
    if features & feature::GUEST_CSUM != 0 { features | feature::CTRL_GUEST_OFFLOADS } else { features }
}

/// What may be left to do in received frames, by those features.
pub(super) fn received(features: u64) -> Offloads {
    RECEIVED.iter().filter(|(_, feature)| features & feature != 0).map(|(offload, _)| *offload).collect()
}

/// Classes and commands of the control queue.
mod command {
    pub(super) const MAC_ADDR_SET: (u8, u8) = (1, 1);
    pub(super) const ANNOUNCE_ACK: (u8, u8) = (3, 0);
    pub(super) const MQ_PAIRS_SET: (u8, u8) = (4, 0);
    pub(super) const GUEST_OFFLOADS_SET: (u8, u8) = (5, 0);
}

/// The longest command that there is, its class and number included, in bytes.
pub(super) const LONGEST: usize = 10;

struct Settings {
    mac: [u8; 6],
    pairs: u16,
    offloads: Option<u64>,
    announce: bool,
    link_up: bool,
    features: u64,
}

/// Lets the network be what a driver has set: what may be left to do in the frames that it receives, and how many pairs receive.
pub(super) type Apply = Box<dyn Fn(Offloads, u16) -> Result<(), NetError> + Send + Sync>;

/// The card as its driver has set it.
pub(super) struct Card {
    network: Apply,
    /// What the network offered when the card was made.
    info: LinkInfo,
    mac: [u8; 6],
    max_pairs: u16,
    settings: Mutex<Settings>,
    notifier: OnceLock<Arc<dyn Notifier>>,
}

impl Card {
    pub(super) fn new(info: LinkInfo, network: Apply, mac: [u8; 6]) -> Self {
        let max_pairs = info.queues.max(1);
        let settings = Settings { mac, pairs: 1, offloads: None, announce: false, link_up: true, features: 0 };
        let card = Self { network, info, mac, max_pairs, settings: Mutex::new(settings), notifier: OnceLock::new() };
        card.apply(&card.lock());
        card
    }

    fn lock(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn info(&self) -> &LinkInfo {
        &self.info
    }

    pub(super) fn max_pairs(&self) -> u16 {
        self.max_pairs
    }

    pub(super) fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A device has one transport for life.
        let _ = self.notifier.set(notifier);
    }

    fn changed(&self) {
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }

    /// Lets the network be what the settings say. What it refuses now, it has offered before: the guest's frames are then lost as frames may be.
    fn apply(&self, settings: &Settings) -> bool {
        let offloads = received(settings.offloads.unwrap_or(settings.features & OFFLOADS));
        let result = (self.network)(offloads, settings.pairs);
        if let Err(error) = &result {
            tracing::warn!("a network card's settings: {error}");
        }
        result.is_ok()
    }

    pub(super) fn activate(&self, features: u64) {
        let mut settings = self.lock();
        settings.features = features;
        self.apply(&settings);
    }

    /// The number of the control queue: behind the pairs that the driver knows of.
    pub(super) fn control_queue(&self) -> u16 {
        let several = self.lock().features & feature::MQ != 0;
        2 * if several { self.max_pairs } else { 1 }
    }

    /// Whether frames may be longer than the network's packets.
    pub(super) fn takes_large_frames(&self) -> bool {
        let settings = self.lock();
        received(settings.offloads.unwrap_or(settings.features)).intersects(Offloads::all() - Offloads::CHECKSUM)
    }

    pub(super) fn config(&self) -> crate::config::ConfigSpace<12> {
        let settings = self.lock();
        let mut config = crate::config::ConfigSpace::new();
        for (place, byte) in settings.mac.into_iter().enumerate() {
            config.put(place, byte);
        }
        config.put(6, u16::from(settings.link_up) | u16::from(settings.announce) << 1);
        config.put(8, self.max_pairs);
        config.put(10, self.info.mtu.unwrap_or(0));
        config
    }

    /// Plugs the cable in or out.
    pub(super) fn set_link(&self, up: bool) {
        let was = std::mem::replace(&mut self.lock().link_up, up);
        if was != up {
            self.changed();
        }
    }

    /// Asks the driver to tell the network where it is.
    pub(super) fn announce(&self) {
        let asked = {
            let mut settings = self.lock();
            let can = settings.features & feature::GUEST_ANNOUNCE != 0;
            settings.announce = can;
            can
        };
        if asked {
            self.changed();
        }
    }

    /// Does a command, and says whether it is one that can be done.
    pub(super) fn control(&self, bytes: &[u8]) -> bool {
        let [class, number, data @ ..] = bytes else { return false };
        let mut settings = self.lock();
        let has = |feature: u64| settings.features & feature != 0;
        match ((*class, *number), data) {
            (command::MAC_ADDR_SET, mac) if has(feature::CTRL_MAC_ADDR) => {
                let Ok(mac) = <[u8; 6]>::try_from(mac) else { return false };
                settings.mac = mac;
                true
            }
            (command::ANNOUNCE_ACK, []) if settings.announce => {
                settings.announce = false;
                true
            }
            (command::MQ_PAIRS_SET, [low, high]) if has(feature::MQ) => {
                let pairs = u16::from_le_bytes([*low, *high]);
                if !(1..=self.max_pairs).contains(&pairs) {
                    return false;
                }
                settings.pairs = pairs;
                self.apply(&settings)
            }
            (command::GUEST_OFFLOADS_SET, offloads) if has(feature::CTRL_GUEST_OFFLOADS) => {
                let Ok(offloads) = <[u8; 8]>::try_from(offloads).map(u64::from_le_bytes) else { return false };
                // Only what was negotiated can be turned on again.
                if offloads & !(settings.features & OFFLOADS) != 0 {
                    return false;
                }
                settings.offloads = Some(offloads);
                self.apply(&settings)
            }
            _ => false,
        }
    }

    pub(super) fn save(&self) -> NetState {
        let settings = self.lock();
        NetState { mac: settings.mac, pairs: settings.pairs, offloads: settings.offloads, announce: settings.announce }
    }

    pub(super) fn restore(&self, state: &NetState) -> Result<(), StateError> {
        let most = self.max_pairs;
        ensure(state.pairs <= most, NetState::ID, "pairs", state.pairs, "this card has fewer queue pairs")?;
        let mut settings = self.lock();
        settings.mac = state.mac;
        settings.pairs = state.pairs;
        settings.offloads = state.offloads;
        settings.announce = state.announce;
        Ok(())
    }

    pub(super) fn reset(&self) {
        let mut settings = self.lock();
        let link_up = settings.link_up;
        *settings = Settings { mac: self.mac, pairs: 1, offloads: None, announce: false, link_up, features: 0 };
        self.apply(&settings);
    }
}
