//! virtio devices and their PCI transport.
#![forbid(unsafe_code)]

pub mod balloon;
pub mod blk;
mod config;
pub mod console;
mod device;
mod engine;
pub mod feature;
pub mod net;
mod queue;
pub mod rng;
mod transport;
pub mod vsock;

#[cfg(test)]
mod testing;

pub use balloon::Balloon;
pub use blk::{Blk, BlkConfig};
pub use console::{Console, PortConfig, PortIo};
pub use device::{DeviceType, Notifier, Stopped, VirtioDevice};
pub use net::{Net, NetConfig};
pub use queue::{
    ActiveQueue, Buffer, Buffers, Chain, MAX_QUEUE_SIZE, Queue, QueueConfig, QueueError, QueueStart, QueueState,
};
pub use rng::Rng;
pub use transport::{Interrupt, PciDevice, Transport, TransportQueueState, TransportState};
pub use vsock::Vsock;
