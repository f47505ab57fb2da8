//! What a virtio device is to its transport, and the transport to a device.

use std::sync::Arc;

use skep_state::Component;
use vmm_sys_util::eventfd::EventFd;

use crate::{QueueStart, QueueState, feature};

/// Called when a queue has stopped, with all that is left of it.
pub type Stopped = Box<dyn FnOnce(QueueState) + Send>;

/// Called when a queue that was being stopped runs on.
pub type RunsOn = Box<dyn FnOnce() + Send>;

/// The way from a device to its driver, which the transport provides. It may be called on any thread, and takes no lock of the transport's
/// registers.
pub trait Notifier: Send + Sync {
    /// Buffers of a queue have been used, and the driver wants to know (section 2.3).
    fn used(&self, queue: u16);

    /// An eventfd, each signal of which is [`Notifier::used`] for as long as the queue runs, where the interrupt controller offers it.
    fn used_eventfd(&self, _queue: u16) -> Option<EventFd> {
        None
    }

    /// The device's configuration space has changed (section 2.3).
    fn config_changed(&self);

    /// The device can't go on before it is reset: `DEVICE_NEEDS_RESET` (section 2.1).
    fn needs_reset(&self);
}

/// A device type: its number in chapter 5, and the PCI class that it shows (base class, subclass).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceType {
    /// The number.
    pub id: u16,
    /// PCI base class and subclass.
    pub class: [u8; 2],
    /// The name in messages.
    pub name: &'static str,
}

impl DeviceType {
    /// Network device (section 5.1).
    pub const NET: Self = Self { id: 1, class: [0x02, 0x00], name: "virtio-net" };
    /// Block device (section 5.2).
    pub const BLOCK: Self = Self { id: 2, class: [0x01, 0x80], name: "virtio-blk" };
    /// Console (section 5.3).
    pub const CONSOLE: Self = Self { id: 3, class: [0x07, 0x80], name: "virtio-console" };
    /// Entropy device (section 5.4).
    pub const ENTROPY: Self = Self { id: 4, class: [0xff, 0x00], name: "virtio-rng" };
    /// Traditional memory balloon (section 5.5).
    pub const BALLOON: Self = Self { id: 5, class: [0xff, 0x00], name: "virtio-balloon" };
    /// Socket device (section 5.10).
    pub const VSOCK: Self = Self { id: 19, class: [0xff, 0x00], name: "virtio-vsock" };
    /// File system (section 5.11).
    pub const FS: Self = Self { id: 26, class: [0x01, 0x80], name: "virtio-fs" };
}

/// A device without its transport. Its saved state is what it has beyond its queues and its configuration on the host; it is saved and
/// restored while its queues are stopped.
///
/// No method blocks: starting and stopping are told to whoever works the queue.
pub trait VirtioDevice: Component {
    /// What it is.
    fn device_type(&self) -> DeviceType;

    /// Its feature bits, without those of ring and transport (section 2.2).
    fn features(&self) -> u64;

    /// Those of ring and transport: all, where this crate works the rings.
    fn transport_features(&self) -> u64 {
        feature::TRANSPORT
    }

    /// The largest size of each queue, a power of two up to [`crate::MAX_QUEUE_SIZE`].
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads configuration space; what lies beyond its end is left as it is (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// The transport has been made: from now on the device may tell the driver of changes.
    fn attach(&self, _notifier: Arc<dyn Notifier>) {}

    /// The driver is ready, with these features of those offered (ring and transport ones included). No queue runs yet. Called again
    /// when a restored machine goes on.
    fn activate(&self, _features: u64) {}

    /// Starts a queue, or lets it go on where its state says. It is not running.
    fn start_queue(&self, start: QueueStart);

    /// Begins to stop a running queue. `stopped` is called once what is in flight has ended, never from inside this call.
    fn begin_stop(&self, index: u16, stopped: Stopped);

    /// Calls off the stop of a queue that has begun to stop: `runs_on` is called if it runs on with what is in flight, never from inside this call; then
    /// the stop's `stopped` is not. It may have stopped meanwhile, and `stopped` alone is called; so it is, late, of a device that can't call it off.
    fn call_off_stop(&self, _index: u16, _runs_on: RunsOn) {}
}
