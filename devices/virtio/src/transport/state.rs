//! The transport's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::notifications::NO_VECTOR;
use super::registers::status;
use crate::{MAX_QUEUE_SIZE, QueueState, feature};

/// Vectors that an MSI-X capability can have.
const MOST_VECTORS: u16 = 2048;

/// One queue, as its driver has set it up, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TransportQueueState {
    /// `queue_size`. Any value.
    #[n(0)]
    pub size: u16,
    /// `queue_msix_vector`.
    #[n(1)]
    pub vector: u16,
    /// `queue_enable`.
    #[n(2)]
    pub enabled: bool,
    /// Its registers may still be written.
    #[n(3)]
    pub open: bool,
    /// `queue_desc`. Any value.
    #[n(4)]
    pub descriptors: u64,
    /// `queue_driver`. Any value.
    #[n(5)]
    pub available: u64,
    /// `queue_device`. Any value.
    #[n(6)]
    pub used: u64,
    /// Where it stands in its rings.
    #[n(7)]
    pub queue: QueueState,
}

/// The registers of a transport whose queues have stopped.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct TransportState {
    /// `device_feature_select`. Any value.
    #[n(0)]
    pub device_feature_select: u32,
    /// `driver_feature_select`. Any value.
    #[n(1)]
    pub driver_feature_select: u32,
    /// The features that the driver has written.
    #[n(2)]
    pub driver_features: u64,
    /// `config_msix_vector`.
    #[n(3)]
    pub config_vector: u16,
    /// `device_status`, without `DEVICE_NEEDS_RESET`.
    #[n(4)]
    pub status: u8,
    /// `DEVICE_NEEDS_RESET`.
    #[n(5)]
    pub needs_reset: bool,
    /// `config_generation`. Any value.
    #[n(6)]
    pub generation: u8,
    /// `queue_select`. Any value.
    #[n(7)]
    pub queue_select: u16,
    /// The ISR status.
    #[n(8)]
    pub isr: u8,
    /// The queues.
    #[n(9)]
    pub queues: Vec<TransportQueueState>,
}

impl State for TransportState {
    const ID: &'static str = "virtio-pci";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        let has = |bit| self.status & bit != 0;
        ensure(self.status & !status::DRIVERS == 0, id, "status", self.status, "a driver sets no other bits")?;
        ensure(
            !has(status::DRIVER_OK) || has(status::FEATURES_OK),
            id,
            "status",
            self.status,
            "a driver is ready only after its features were accepted",
        )?;
        ensure(
            !has(status::FEATURES_OK) || self.driver_features & feature::VERSION_1 != 0,
            id,
            "driver_features",
            self.driver_features,
            "features are accepted only with VIRTIO_F_VERSION_1",
        )?;
        ensure(self.isr & !3 == 0, id, "isr", self.isr, "the ISR status has two bits")?;
        let rule = |vector: u16| vector == NO_VECTOR || vector < MOST_VECTORS;
        let vector = self.config_vector;
        ensure(rule(vector), id, "config_vector", vector, "a function has 2048 vectors at most, and 65535 is none")?;
        for queue in &self.queues {
            let vector = queue.vector;
            ensure(
                rule(vector),
                id,
                "queues.vector",
                vector,
                "a function has 2048 vectors at most, and 65535 is none",
            )?;
            ensure(
                !(queue.enabled && queue.open),
                id,
                "queues.open",
                queue.open,
                "an enabled queue's registers can't be written",
            )?;
            // Until it is enabled it may be any.
            ensure(
                queue.enabled || queue.queue == QueueState::default(),
                id,
                "queues.queue",
                queue.queue,
                "a queue that is not enabled has not gone on",
            )?;
        }
        let most = usize::from(MAX_QUEUE_SIZE);
        ensure(self.queues.len() <= most, id, "queues", self.queues.len(), "no device has so many queues")
    }
}
