//! virtio devices and their PCI transport.
//!
//! Follows: Virtual I/O Device (VIRTIO) 1.2, chapters 2 (split virtqueues), 4.1 (PCI) and 5 (device types); sections named in this crate are
//! of it. Segmentation of UDP is as in 1.3.
//!
//! | device | module | host side |
//! |---|---|---|
//! | network | [`net`] | a `skep_net::Link`: tap, passt; or a backend in another program |
//! | block | [`blk`] | a `skep_block::Disk` |
//! | console | [`console`] | byte streams ([`PortIo`]) |
//! | entropy | [`rng`] | the host's kernel |
//! | memory balloon | [`balloon`] | guest memory itself |
//! | socket | [`vsock`] | Unix sockets |
//! | file system, block, and frames of network cards | [`vhost_user`] | a backend in another program |
//!
//! * [`Transport`] has the registers, negotiates features, and decides which queues run; [`PciDevice`] puts it on the bus. Its saved state is
//!   its own, apart from the device's.
//! * [`VirtioDevice`] is what a device is to its transport: features, configuration space, and queues that are started, where their state says,
//!   and begun to be stopped. A stop is complete, with the [`QueueState`], when what is in flight has ended. Reset, pause, save and removal are
//!   all made of it, and nobody waits: not a vCPU, not the control thread.
//! * [`Queue`] is the device's side of a ring; [`ActiveQueue`] is one that a device works.
//!
//! # Threads
//!
//! Queues are worked by threads of the device's own ([`skep_worker`]): one for each queue of a disk and each pair of a network card, one for
//! all queues of the others. A doorbell is an eventfd, and takes no lock. What is used is published once for a batch, and interrupts if the
//! driver wants it.
//!
//! # What a guest can do
//!
//! A driver that breaks the ring's rules breaks its own queue, which then stands still, and the device asks to be reset
//! (`DEVICE_NEEDS_RESET`). No length that a guest gives sizes an allocation or the work for one request: each device says what its caps are.
//! What a request moves lies in RAM or is refused; memory is looked at once, when a chain is taken, and copied before it is believed.
//!
//! What it does not do: packed rings, notification data, an IOMMU (`ACCESS_PLATFORM`), in-order use, shared memory, SR-IOV, legacy and
//! transitional devices, other transports.

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
pub mod vhost_user;
pub mod vsock;

#[cfg(test)]
mod flight_test;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod state_test;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
mod testing;
#[cfg(test)]
mod twin_test;

pub use balloon::Balloon;
pub use blk::{Blk, BlkConfig};
pub use console::{Console, PortConfig, PortIo};
pub use device::{DeviceType, Notifier, RunsOn, Stopped, VirtioDevice};
pub use net::{Net, NetConfig};
pub use queue::{
    ActiveQueue, Buffer, Buffers, Chain, MAX_QUEUE_SIZE, Queue, QueueConfig, QueueError, QueueStart, QueueState,
};
pub use rng::Rng;
pub use transport::{Interrupt, PciDevice, Transport, TransportQueueState, TransportState};
pub use vhost_user::{VhostUser, VhostUserConfig, VhostUserKind};
pub use vsock::Vsock;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::balloon::balloon_test::fuzz_queues as virtio_balloon;
    pub use crate::blk::blk_test::fuzz_requests as virtio_blk;
    pub use crate::console::console_test::fuzz_queues as virtio_console;
    pub use crate::net::net_test::fuzz_frames as virtio_net;
    pub use crate::queue::queue_test::fuzz_rings as virtio_rings;
    pub use crate::state_test::fuzz_states as virtio_device_states;
    pub use crate::transport::transport_test::fuzz_registers as virtio_registers;
    pub use crate::transport::transport_test::fuzz_state as virtio_state;
    pub use crate::vsock::vsock_test::fuzz_packets as virtio_vsock;
}
