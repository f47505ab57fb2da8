//! Guest memory: its one owner, those who follow its changes, and the view that a device has of it.
//!
//! * [`Backing`] is host memory: anonymous, shared (memfd) or on huge pages, taken lazily, aligned to 2 MiB on the host, because a
//!   stage-2 table can map a large page only where guest and host addresses agree in their low bits.
//! * [`Region`] is a piece of guest physical address space that is backed by memory: RAM, ROM, flash that is being read, a device BAR.
//! * [`MemoryMap`] owns the regions and tells its [`Listener`]s (a backend's slots, vhost-user, VFIO) of each change.
//! * [`Dma`] is what a device holds: it knows its requester, honours bus mastering, reaches RAM only and marks what it dirties.
//! * [`DirtyLog`] has one owner that reads it, and named consumers that each see every dirty page once.
//!
//! Everything that accesses memory is `vm-memory`'s ([`vm_memory::Bytes`], [`vm_memory::GuestMemory`]); this crate adds who owns what.
//!
//! What it does not do: translate by an IOMMU ([`Dma`] is where one will stand), or dispatch accesses to devices (the bus does).

mod backing;
mod dirty;
mod dma;
mod map;
mod region;
mod used;
mod zero;

pub use backing::{Backing, HugePages, RamOptions};
pub use dirty::{Consumer, DirtyLog, DirtySource, PAGE_SIZE};
pub use dma::{BusMaster, Dma, DmaError, DmaGuard};
pub use map::{Listener, MemoryMap, RamView};
pub use region::{DirtyBits, DirtySlice, Region, RegionKind};
pub use skep_irq::{Requester, RequesterId};
pub use vm_memory;
pub use zero::is_zero;

/// Why memory can't be had or mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host refuses the memory itself.
    #[error("the host refuses {} KiB of {what}: {source}{mend}", size / 1024)]
    Host {
        /// What kind of memory.
        what: &'static str,
        /// How many bytes.
        size: u64,
        /// The host's error.
        source: std::io::Error,
        /// What would mend it, or nothing.
        mend: String,
    },
    /// A size or an address that is not a multiple of the page size, is zero, or leaves the address space.
    #[error("guest memory at {gpa:#x} of {size:#x} bytes: {reason}")]
    BadRange {
        /// The guest physical address.
        gpa: u64,
        /// The size in bytes.
        size: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two regions would share addresses.
    #[error("guest memory `{new}` at {gpa:#x} overlaps `{old}`")]
    Overlap {
        /// The region to be added.
        new: String,
        /// Its guest physical address.
        gpa: u64,
        /// The region that is there.
        old: String,
    },
    /// No region of that name and address.
    #[error("there is no guest memory region at {gpa:#x}")]
    NoRegion {
        /// The guest physical address.
        gpa: u64,
    },
    /// A listener refuses the change.
    #[error("{listener} refuses guest memory `{region}` at {gpa:#x}: {reason}")]
    Listener {
        /// Who.
        listener: &'static str,
        /// Which region.
        region: String,
        /// Its guest physical address.
        gpa: u64,
        /// Its own error.
        reason: String,
    },
}
