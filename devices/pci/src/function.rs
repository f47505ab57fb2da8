//! The seam between the bus and a device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_memory::Dma;
use vmm_sys_util::eventfd::EventFd;

use crate::Interrupts;

/// What is behind a function's BARs. Handlers take `&self`, and are called under no lock of this crate.
pub trait Function: Send + Sync {
    /// Fills `data`: 1, 2, 4 or 8 bytes at `offset` of a BAR, little-endian, within the BAR, not always aligned. What a function does not answer stays
    /// all ones.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes `data`, as [`Self::read`].
    fn write(&self, bar: u8, offset: u64, data: &[u8]);

    /// The power-on state: function-level reset, bus reset, machine reset, return from D3hot, loss of power. What is in flight may end later: the
    /// function then masters the bus no more, and its interrupts are off.
    fn reset(&self);

    /// Where a guest's write may signal an eventfd in place of [`Self::write`]. They are attached wherever the BAR is. When they become others, the function
    /// says so by [`Doorbells::changed`]. A machine without this power calls [`Self::write`].
    fn doorbells(&self) -> Vec<FunctionDoorbell> {
        Vec::new()
    }
}

/// A write to a BAR that signals an eventfd.
#[derive(Debug, Clone)]
pub struct FunctionDoorbell {
    /// The BAR.
    pub bar: u8,
    /// Where in the BAR, in bytes.
    pub offset: u64,
    /// The write's width in bytes (1, 2, 4, 8), or `None` for any.
    pub width: Option<u8>,
    /// Only a write of this value, where the width is given.
    pub value: Option<u64>,
    /// What is signalled.
    pub fd: Arc<EventFd>,
}

/// By this a function says that [`Function::doorbells`] answers something else than before. The machine asks again after the guest's next write to
/// the function that reaches it, so the write that follows a change is the last one to take the long way.
#[derive(Debug, Clone, Default)]
pub struct Doorbells(Arc<AtomicBool>);

impl Doorbells {
    /// They have changed.
    pub fn changed(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether they have, since this was last asked.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Acquire) && self.0.swap(false, Ordering::AcqRel)
    }
}

/// What the bus gives to a function when it is made.
#[derive(Clone)]
pub struct Attachment {
    /// Guest memory, as long as the guest lets the function master the bus.
    pub dma: Dma,
    /// MSI-X, MSI or INTx.
    pub interrupts: Arc<Interrupts>,
    /// The function's word to the machine that its doorbells have changed.
    pub doorbells: Doorbells,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("dma", &self.dma)
            .field("interrupts", &self.interrupts)
            .finish_non_exhaustive()
    }
}
