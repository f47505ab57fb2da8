//! A device's view of guest memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard};

use skep_irq::Requester;

use crate::{RamView, RequesterId};

/// Why a device can't reach memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DmaError {
    /// The guest has not enabled bus mastering.
    #[error("device {requester:#06x} is no bus master: the guest has not enabled it")]
    NotBusMaster {
        /// Who asked.
        requester: u32,
    },
    /// Not RAM, or only in part.
    #[error("device {requester:#06x}: {len} bytes at {gpa:#x} are not RAM")]
    NotRam {
        /// Who asked.
        requester: u32,
        /// The guest physical address.
        gpa: u64,
        /// How many bytes.
        len: usize,
    },
}

/// A function's bus master enable bit (PCI 3.0 section 6.2.2), shared by its config space, which sets it, and its DMA view, which honours it.
#[derive(Debug, Clone, Default)]
pub struct BusMaster(Arc<AtomicBool>);

impl BusMaster {
    /// For what is no PCI function and always may.
    #[must_use]
    pub fn always() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Sets the bit.
    pub fn set(&self, enabled: bool) {
        self.0.store(enabled, Ordering::Release);
    }

    /// The bit.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The RAM that a device reaches, for the length of one access.
pub type DmaGuard = GuestMemoryLoadGuard<RamView>;

/// A device's view of guest memory. What is written through it is marked dirty.
#[derive(Debug, Clone)]
pub struct Dma {
    ram: GuestMemoryAtomic<RamView>,
    requester: Requester,
    bus_master: BusMaster,
}

impl Dma {
    pub(crate) fn new(ram: GuestMemoryAtomic<RamView>, requester: Requester, bus_master: BusMaster) -> Self {
        Self { ram, requester, bus_master }
    }

    /// Who the device is on the bus now.
    #[must_use]
    pub fn requester(&self) -> RequesterId {
        self.requester.id()
    }

    /// The RAM, for one access or one batch of them: what a queue or a scatter list is walked by. It is not kept across a wait.
    ///
    /// # Errors
    /// [`DmaError::NotBusMaster`].
    pub fn memory(&self) -> Result<DmaGuard, DmaError> {
        if self.bus_master.is_enabled() {
            Ok(self.ram.memory())
        } else {
            Err(DmaError::NotBusMaster { requester: self.requester.id().0 })
        }
    }

    fn not_ram(&self, gpa: u64, len: usize) -> DmaError {
        DmaError::NotRam { requester: self.requester.id().0, gpa, len }
    }

    /// Reads bytes at `gpa`.
    ///
    /// # Errors
    /// [`DmaError`]; the buffer's content is then undefined.
    pub fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), DmaError> {
        self.memory()?.read_slice(into, GuestAddress(gpa)).map_err(|_| self.not_ram(gpa, into.len()))
    }

    /// Writes bytes at `gpa`.
    ///
    /// # Errors
    /// [`DmaError`]; what lies in RAM before the first byte that doesn't may have been written.
    pub fn write(&self, gpa: u64, from: &[u8]) -> Result<(), DmaError> {
        self.memory()?.write_slice(from, GuestAddress(gpa)).map_err(|_| self.not_ram(gpa, from.len()))
    }

    /// Reads a plain object at `gpa`.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn read_obj<T: ByteValued>(&self, gpa: u64) -> Result<T, DmaError> {
        self.memory()?.read_obj(GuestAddress(gpa)).map_err(|_| self.not_ram(gpa, size_of::<T>()))
    }

    /// Writes a plain object at `gpa`.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn write_obj<T: ByteValued>(&self, gpa: u64, object: T) -> Result<(), DmaError> {
        self.memory()?.write_obj(object, GuestAddress(gpa)).map_err(|_| self.not_ram(gpa, size_of::<T>()))
    }
}
