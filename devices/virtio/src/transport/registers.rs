//! The common configuration structure (section 4.1.4.3).

use std::ops::Range;

use super::notifications::Notifications;
use crate::{QueueConfig, feature};

/// Bits of the device status (section 2.1).
pub(super) mod status {
    pub(in crate::transport) const ACKNOWLEDGE: u8 = 1;
    pub(in crate::transport) const DRIVER: u8 = 2;
    pub(in crate::transport) const DRIVER_OK: u8 = 4;
    pub(in crate::transport) const FEATURES_OK: u8 = 8;
    pub(in crate::transport) const NEEDS_RESET: u8 = 0x40;
    pub(in crate::transport) const FAILED: u8 = 0x80;
    /// Those that a driver sets.
    pub(in crate::transport) const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Bytes of the structure.
pub(super) const SIZE: usize = 60;

/// Offsets of what is written as a field of its own.
pub(super) mod field {
    pub(in crate::transport) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(in crate::transport) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(in crate::transport) const DRIVER_FEATURE: u64 = 12;
    pub(in crate::transport) const CONFIG_VECTOR: u64 = 16;
    pub(in crate::transport) const STATUS: u64 = 20;
    pub(in crate::transport) const QUEUE_SELECT: u64 = 22;
    pub(in crate::transport) const QUEUE_SIZE: u64 = 24;
    pub(in crate::transport) const QUEUE_VECTOR: u64 = 26;
    pub(in crate::transport) const QUEUE_ENABLE: u64 = 28;
    pub(in crate::transport) const DESCRIPTORS: u64 = 32;
    pub(in crate::transport) const AVAILABLE: u64 = 40;
    pub(in crate::transport) const USED: u64 = 48;
    pub(in crate::transport) const QUEUE_RESET: u64 = 58;
}

/// What a driver has written for one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    /// The driver may write the others: from a reset of device or queue until it has enabled the queue or is ready.
    pub(super) open: bool,
    /// The queue is being reset (section 2.6.1).
    pub(super) resetting: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            open: true,
            resetting: false,
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }

    pub(super) fn config(&self, features: u64) -> QueueConfig {
        QueueConfig {
            size: self.size,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
            event_index: features & feature::EVENT_INDEX != 0,
            indirect: features & feature::INDIRECT != 0,
        }
    }
}

/// What the driver has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) status: u8,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
}

impl Registers {
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
        }
    }

    pub(super) fn has(&self, bit: u8) -> bool {
        self.status & bit != 0
    }

    /// The selected queue.
    pub(super) fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    /// The structure as the driver reads it, which has no side effects.
    pub(super) fn image(&self, offered: u64, notifications: &Notifications) -> [u8; SIZE] {
        let mut image = [0; SIZE];
        let mut put = |range: Range<usize>, value: u64| {
            for (byte, value) in image[range].iter_mut().zip(value.to_le_bytes()) {
                *byte = value;
            }
        };
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let needs_reset = if notifications.is_reset_needed() { status::NEEDS_RESET } else { 0 };
        put(0..4, self.device_feature_select.into());
        put(4..8, half(offered, self.device_feature_select));
        put(8..12, self.driver_feature_select.into());
        put(12..16, half(self.driver_features, self.driver_feature_select));
        put(16..18, notifications.config_vector().into());
        put(18..20, self.queues.len() as u64);
        put(20..21, (self.status | needs_reset).into());
        put(21..22, notifications.generation().into());
        put(22..24, self.queue_select.into());
        // A queue that isn't there has size 0.
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else { return image };
        put(24..26, queue.size.into());
        put(26..28, notifications.queue_vector(self.queue_select).into());
        put(28..30, queue.enabled.into());
        put(30..32, self.queue_select.into());
        put(32..40, queue.descriptors);
        put(40..48, queue.available);
        put(48..56, queue.used);
        put(56..58, self.queue_select.into());
        put(58..60, queue.resetting.into());
        image
    }

    /// Writes one of a queue's addresses, as a whole or by its halves.
    pub(super) fn write_address(&mut self, offset: u64, width: usize, value: u64) {
        let Some(queue) = self.selected() else { return };
        let address = match offset & !7 {
            field::DESCRIPTORS => &mut queue.descriptors,
            field::AVAILABLE => &mut queue.available,
            field::USED => &mut queue.used,
            _ => return,
        };
        match (offset % 8, width) {
            (0, 8) => *address = value,
            (0, 4) => *address = *address & !0xffff_ffff | value,
            (4, 4) => *address = *address & 0xffff_ffff | value << 32,
            _ => {}
        }
    }
}
