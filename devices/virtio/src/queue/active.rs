//! A queue that a device works.

use std::sync::Arc;

use skep_memory::{Dma, DmaGuard};
use vmm_sys_util::eventfd::EventFd;

use super::{Chain, Queue, QueueConfig, QueueError, QueueState};
use crate::Notifier;

/// All that a device needs to work a queue.
#[derive(Clone)]
pub struct QueueStart {
    /// The queue's number.
    pub index: u16,
    /// Where it is, as the driver wrote it: not checked yet.
    pub config: QueueConfig,
    /// The largest size that the device offers for this queue.
    pub max_size: u16,
    /// Where it goes on; the default for one that begins.
    pub state: QueueState,
    /// The device's view of guest memory.
    pub dma: Dma,
    /// Signalled when the driver has made a chain available.
    pub doorbell: Arc<EventFd>,
    /// The way to the driver.
    pub notifier: Arc<dyn Notifier>,
}

/// A queue, the memory it is in, and the way to its driver. A driver that breaks the ring's rules breaks the queue: it then has no chains
/// any more, and the device asks to be reset.
pub struct ActiveQueue {
    start: QueueStart,
    queue: Queue,
    checked: bool,
    broken: bool,
    closed: bool,
}

impl ActiveQueue {
    /// Begins, or goes on where `start.state` says.
    #[must_use]
    pub fn new(start: QueueStart) -> Self {
        let queue = Queue::new(start.config, start.state.next);
        Self { queue, checked: false, broken: start.state.broken, closed: false, start }
    }

    /// The queue's number.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.start.index
    }

    /// How many descriptors: no more than so many chains are ever in flight. Of a driver's nonsense it is what can be.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.start.config.size.clamp(1, self.start.max_size)
    }

    /// What tells of new chains.
    #[must_use]
    pub fn doorbell(&self) -> &Arc<EventFd> {
        &self.start.doorbell
    }

    /// Guest memory, while the device may reach it and the queue is whole.
    pub fn memory(&mut self) -> Option<DmaGuard> {
        if self.broken {
            return None;
        }
        let memory = self.start.dma.memory().ok()?;
        if !self.checked {
            if let Err(error) = self.start.config.check(&memory, self.start.max_size) {
                self.fail(&error);
                return None;
            }
            self.checked = true;
        }
        Some(memory)
    }

    /// The driver broke the rules: the queue stands still, and the device asks to be reset (section 2.1.1).
    pub fn fail(&mut self, error: &QueueError) {
        if !self.broken {
            tracing::warn!("virtio queue {} stands still until the driver resets it: {error}", self.start.index);
            self.broken = true;
            self.start.notifier.needs_reset();
        }
    }

    fn or_fail<T>(&mut self, result: Result<T, QueueError>) -> Option<T> {
        result.map_err(|error| self.fail(&error)).ok()
    }

    /// Takes the next chain, if there is one and the queue is not being stopped.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.closed {
            return None;
        }
        let memory = self.memory()?;
        let popped = self.queue.pop(&memory);
        self.or_fail(popped).flatten()
    }

    /// Whether a chain waits: without a system call, and `false` while the queue is being stopped.
    pub fn has_available(&mut self) -> bool {
        if self.closed {
            return false;
        }
        let Some(memory) = self.memory() else { return false };
        let available = self.queue.has_available(&memory);
        self.or_fail(available).unwrap_or(false)
    }

    /// Gives back unused the chain that was taken last.
    pub fn give_back(&mut self, chain: Chain) {
        self.queue.give_back(chain);
    }

    /// Uses a chain, `written` bytes of which the device has written. The driver sees it after [`ActiveQueue::publish`].
    pub fn complete(&mut self, chain: Chain, written: u32) {
        let Some(memory) = self.memory() else {
            // The driver can't be told, so the rings are apart from here on.
            self.queue.recycle(chain);
            return self.fail(&QueueError::NotRam { part: "used ring", gpa: self.start.config.used, len: 8 });
        };
        let completed = self.queue.complete(&memory, chain, written);
        self.or_fail(completed);
    }

    /// Shows the driver what has been used, and interrupts it if it wants that: once for a whole batch.
    pub fn publish(&mut self) {
        let Some(memory) = self.memory() else { return };
        let published = self.queue.publish(&memory);
        if self.or_fail(published) == Some(true) {
            self.start.notifier.used(self.start.index);
        }
    }

    /// Asks the driver to ring at its next chain, and says whether one has come meanwhile.
    pub fn arm(&mut self) -> bool {
        if self.closed {
            return false;
        }
        let Some(memory) = self.memory() else { return false };
        let armed = self.queue.arm(&memory);
        self.or_fail(armed).unwrap_or(false)
    }

    /// How many chains have been taken and not been used.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// Whether the queue is being stopped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// From here on no chain is taken.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Chains are taken again.
    pub fn reopen(&mut self) {
        self.closed = false;
    }

    /// The state of a queue that has been closed, once nothing is in flight.
    pub fn finish(&mut self) -> Option<QueueState> {
        if !self.closed || self.queue.in_flight() > 0 {
            return None;
        }
        self.publish();
        Some(QueueState { next: self.queue.next(), broken: self.broken })
    }
}
