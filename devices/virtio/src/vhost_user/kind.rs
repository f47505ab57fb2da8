//! What differs between the types of devices.

use super::backend::Needs;
use crate::DeviceType;
use crate::config::ConfigSpace;

/// Bytes of a tag (section 5.11.4).
pub const MOST_TAG: usize = 36;
/// Entries of a queue of a file system: what bounds one of its requests.
const FS_QUEUE: u16 = 1024;

/// Entries of a queue of a disk.
const BLK_QUEUE: u16 = 256;
/// Of a disk's features (section 5.2.3): sizes of requests, geometry, read-only, block size, flush, topology, writeback, several queues, discard,
/// zeroes. Not those that came later, whose parts of the configuration space are left out.
const BLK_FEATURES: u64 =
    1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | WRITEBACK_FEATURE | 1 << 12 | 1 << 13 | 1 << 14;
/// `VIRTIO_BLK_F_CONFIG_WCE`, where `writeback` is (section 5.2.4), and `num_queues`.
pub(super) const WRITEBACK_FEATURE: u64 = 1 << 11;
pub(super) const WRITEBACK: usize = 32;
const BLK_QUEUES: usize = 34;

/// Entries of a queue of a network card.
const NET_QUEUE: u16 = 256;
/// Of a network card's features (section 5.1.3) those that are about frames, which the backend moves: checksums, TSO and its ECN, UFO and USO both
/// ways, `MRG_RXBUF`, and `MQ`, which it may want to know of. The others are about the card, which is the front end's.
const NET_FEATURES: u64 = 1 << 0 | 1 << 1 | 0xf << 7 | 0xf << 11 | 1 << 15 | MULTIQUEUE | 7 << 54;
/// `VIRTIO_NET_F_MQ`.
const MULTIQUEUE: u64 = 1 << 22;

/// What a backend is to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VhostUserKind {
    /// A directory of the host.
    Fs {
        /// The name by which the guest mounts it: 1 to [`MOST_TAG`] bytes.
        tag: String,
    },
    /// A disk.
    Blk,
    /// The queues of a network card in which there are frames, in pairs.
    Net,
}

impl VhostUserKind {
    pub(super) fn device_type(&self) -> DeviceType {
        match self {
            Self::Fs { .. } => DeviceType::FS,
            Self::Blk => DeviceType::BLOCK,
            Self::Net => DeviceType::NET,
        }
    }

    /// Those of a backend's features that are passed on to the guest.
    pub(super) fn known_features(&self) -> u64 {
        match self {
            Self::Fs { .. } => 0,
            Self::Blk => BLK_FEATURES,
            Self::Net => NET_FEATURES,
        }
    }

    /// What a backend must have, where the config asks for `queues`.
    pub(super) fn needs(&self, queues: u16) -> Needs {
        let all = self.queue_sizes(queues).len() as u16;
        match self {
            Self::Fs { .. } => Needs { config: false, queues: all, silent: all },
            Self::Blk => Needs { config: true, queues: all, silent: all },
            // Some backends count queues, and others pairs. One that does not count has a pair.
            Self::Net => Needs { config: false, queues: queues.max(1), silent: 1 },
        }
    }

    /// The sizes of all queues, where the config asks for `queues`.
    pub(super) fn queue_sizes(&self, queues: u16) -> Vec<u16> {
        match self {
            // The first one is for what can't wait.
            Self::Fs { .. } => vec![FS_QUEUE; 1 + usize::from(queues.max(1))],
            Self::Blk => vec![BLK_QUEUE; usize::from(queues.max(1))],
            Self::Net => vec![NET_QUEUE; 2 * usize::from(queues.max(1))],
        }
    }

    /// The configuration space, which is the backend's `config` where that has it.
    pub(super) fn config(&self, queues: u16, config: &[u8]) -> Vec<u8> {
        let mut space = ConfigSpace::<CONFIG_SIZE>::new();
        match self {
            Self::Fs { tag } => {
                for (at, byte) in tag.bytes().take(MOST_TAG).enumerate() {
                    space.put(at, byte);
                }
                space.put(MOST_TAG, u32::from(queues.max(1)));
            }
            Self::Blk => {
                for (at, byte) in config.iter().enumerate() {
                    space.put(at, *byte);
                }
                // It may have more than are used.
                space.put(BLK_QUEUES, queues.max(1));
            }
            // The card's.
            Self::Net => {}
        }
        space.bytes().to_vec()
    }
}

/// Bytes of the largest configuration space: that of a block device, up to what belongs to features that are not passed on.
pub(super) const CONFIG_SIZE: usize = 60;
