//! The device's side of a split virtqueue (section 2.7).
//!
//! [`Queue`] is the ring itself: it is given guest memory with each call, and knows no device. [`ActiveQueue`] is a queue that a device
//! works: it has the device's view of memory and the way to the driver.
//!
//! The queue is skep's own, because a broken chain must be an error that the driver is told of rather than a shorter chain, because used
//! entries and interrupts are published per batch, and because a chain that was taken and not used goes back.

mod active;
mod chain;
mod error;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod queue_test;

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use skep_memory::RamView;
use skep_memory::vm_memory::{Bytes, GuestAddress};

pub use active::{ActiveQueue, QueueStart};
pub use chain::{Buffer, Buffers, Chain};
pub use error::QueueError;
pub use state::QueueState;

/// The largest queue that any device of skep offers: what bounds a chain, and with it all that is kept for one.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY` (sections 2.7.6 and 2.7.8).
const NO_SIGNAL: u16 = 1;
/// The rings' header: flags and index. An available entry is 2 bytes, a used one 8; an event index of 2 bytes follows each ring.
const HEADER: u64 = 4;

/// Where a queue is and what was negotiated for it: what the driver wrote before it enabled the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// How many descriptors: a power of two.
    pub size: u16,
    /// The descriptor table's address.
    pub descriptors: u64,
    /// The available ring's address: the driver area.
    pub available: u64,
    /// The used ring's address: the device area.
    pub used: u64,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC` was negotiated.
    pub indirect: bool,
}

impl QueueConfig {
    /// Refuses a configuration that no queue can have: sizes, alignment, and that all three parts are RAM.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn check(&self, memory: &RamView, max_size: u16) -> Result<(), QueueError> {
        let size = u64::from(self.size);
        if !self.size.is_power_of_two() || self.size > max_size {
            return Err(QueueError::Size { size: self.size, max: max_size });
        }
        let parts = [
            ("descriptor table", self.descriptors, 16, size * chain::DESCRIPTOR_SIZE),
            ("available ring", self.available, 2, HEADER + size * 2 + 2),
            ("used ring", self.used, 4, HEADER + size * 8 + 2),
        ];
        for (part, gpa, alignment, len) in parts {
            if !gpa.is_multiple_of(alignment) {
                return Err(QueueError::Alignment { part, gpa, alignment });
            }
            chain::check_ram(memory, part, gpa, len)?;
        }
        Ok(())
    }

    /// Where the driver says after which used entry it wants an interrupt.
    fn used_event(&self) -> u64 {
        self.available + HEADER + u64::from(self.size) * 2
    }

    /// Where the device says after which available entry it wants a notification.
    fn available_event(&self) -> u64 {
        self.used + HEADER + u64::from(self.size) * 8
    }
}

fn load(memory: &RamView, part: &'static str, gpa: u64) -> Result<u16, QueueError> {
    let not_ram = |_| QueueError::NotRam { part, gpa, len: 2 };
    memory.load(GuestAddress(gpa), Ordering::Acquire).map(u16::from_le).map_err(not_ram)
}

fn store(memory: &RamView, part: &'static str, gpa: u64, value: u16) -> Result<(), QueueError> {
    let not_ram = |_| QueueError::NotRam { part, gpa, len: 2 };
    memory.store(value.to_le(), GuestAddress(gpa), Ordering::Release).map_err(not_ram)
}

/// A split virtqueue. All that it remembers of guest memory is where it stands in the rings.
#[derive(Debug)]
pub struct Queue {
    config: QueueConfig,
    /// The next available entry to take.
    next_available: Wrapping<u16>,
    /// How far the driver's index was known to be.
    available: Wrapping<u16>,
    /// The next used entry to write, and how far the driver has been told.
    next_used: Wrapping<u16>,
    published: Wrapping<u16>,
    /// Chains taken and not yet used.
    in_flight: u16,
    /// Whether the ring's flags ask the driver to notify; unknown at first, since the ring may have had a life before.
    armed: Option<bool>,
    /// Lists of chains that have gone back, to be filled again: no more than were ever in flight at once.
    spare: Vec<Vec<Buffer>>,
}

impl Queue {
    /// A queue whose configuration [`QueueConfig::check`] has passed, that goes on at `next`, the index of both rings.
    #[must_use]
    pub fn new(config: QueueConfig, next: u16) -> Self {
        let next = Wrapping(next);
        Self {
            config,
            next_available: next,
            available: next,
            next_used: next,
            published: next,
            in_flight: 0,
            armed: None,
            spare: Vec::new(),
        }
    }

    /// How many chains have been taken and not been used.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The index of the next chain in the available ring: both rings' while nothing is in flight.
    #[must_use]
    pub fn next(&self) -> u16 {
        self.next_available.0
    }

    fn refresh(&mut self, memory: &RamView) -> Result<bool, QueueError> {
        self.available = Wrapping(load(memory, "available ring", self.config.available + 2)?);
        let ahead = (self.available - self.next_available).0;
        // What is in flight has its descriptors taken, so no more than the rest of them can be waiting.
        let room = self.config.size.saturating_sub(self.in_flight);
        if ahead > room {
            self.available = self.next_available;
            return Err(QueueError::Available { ahead, size: room });
        }
        Ok(ahead > 0)
    }

    /// Whether the driver has made a chain available.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn has_available(&mut self, memory: &RamView) -> Result<bool, QueueError> {
        if self.available == self.next_available { self.refresh(memory) } else { Ok(true) }
    }

    /// Takes the next chain.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is of no use then until it is reset.
    pub fn pop(&mut self, memory: &RamView) -> Result<Option<Chain>, QueueError> {
        if !self.has_available(memory)? {
            return Ok(None);
        }
        self.disarm(memory)?;
        let slot = u64::from(self.next_available.0 % self.config.size);
        let head = load(memory, "available ring", self.config.available + HEADER + slot * 2)?;
        let list = self.spare.pop().unwrap_or_default();
        let chain = Chain::walk(memory, &self.config, head, list)?;
        self.next_available += 1;
        self.in_flight += 1;
        Ok(Some(chain))
    }

    fn recycle(&mut self, chain: Chain) {
        let mut list = chain.buffers;
        list.clear();
        self.spare.push(list);
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Gives back unused the chain that was taken last: it is the next one again.
    pub fn give_back(&mut self, chain: Chain) {
        self.next_available -= 1;
        self.recycle(chain);
    }

    /// Uses a chain, `written` bytes of whose writable part the device has written. The driver sees it after [`Queue::publish`].
    ///
    /// # Errors
    /// [`QueueError::NotRam`] where the ring has gone.
    pub fn complete(&mut self, memory: &RamView, chain: Chain, written: u32) -> Result<(), QueueError> {
        let slot = u64::from(self.next_used.0 % self.config.size);
        let gpa = self.config.used + HEADER + slot * 8;
        let entry = u64::from(chain.head) | u64::from(written) << 32;
        self.recycle(chain);
        let not_ram = |_| QueueError::NotRam { part: "used ring", gpa, len: 8 };
        memory.write_slice(&entry.to_le_bytes(), GuestAddress(gpa)).map_err(not_ram)?;
        self.next_used += 1;
        Ok(())
    }

    /// Shows the driver what has been used since the last time, and says whether it wants an interrupt for that (section 2.7.7).
    ///
    /// # Errors
    /// [`QueueError::NotRam`] where the ring has gone.
    pub fn publish(&mut self, memory: &RamView) -> Result<bool, QueueError> {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Ok(false);
        }
        store(memory, "used ring", self.config.used + 2, new.0)?;
        self.published = new;
        // The driver writes what it wants, then looks at the index; the device writes the index, then looks at what it wants.
        fence(Ordering::SeqCst);
        if self.config.event_index {
            let event = Wrapping(load(memory, "available ring", self.config.used_event())?);
            Ok((new - event - Wrapping(1)) < (new - old))
        } else {
            Ok(load(memory, "available ring", self.config.available)? & NO_SIGNAL == 0)
        }
    }

    /// Asks the driver to notify of the next chain (section 2.7.10), and says whether one has come meanwhile.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn arm(&mut self, memory: &RamView) -> Result<bool, QueueError> {
        if self.config.event_index {
            store(memory, "used ring", self.config.available_event(), self.next_available.0)?;
        } else if self.armed != Some(true) {
            store(memory, "used ring", self.config.used, 0)?;
            self.armed = Some(true);
        }
        fence(Ordering::SeqCst);
        self.refresh(memory)
    }

    /// Notifications cost the guest an exit each: none are wanted while the device looks at the ring by itself. With an event index there
    /// is none until the index moves.
    fn disarm(&mut self, memory: &RamView) -> Result<(), QueueError> {
        if self.armed != Some(false) && !self.config.event_index {
            store(memory, "used ring", self.config.used, NO_SIGNAL)?;
            self.armed = Some(false);
        }
        Ok(())
    }
}
