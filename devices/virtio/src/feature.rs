//! Feature bits of the ring and of the transport (chapter 6).

/// `VIRTIO_F_INDIRECT_DESC`.
pub const INDIRECT: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_INDEX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_RING_RESET`.
pub const RING_RESET: u64 = 1 << 40;

/// What the transport offers beside the device's own features.
pub const TRANSPORT: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | RING_RESET;
