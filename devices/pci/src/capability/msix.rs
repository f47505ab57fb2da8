//! MSI-X (PCI Local Bus 3.0 section 6.8.2): the capability. The table and the pending bits are in a BAR.

use super::id;
use crate::config_space::{Bits, ConfigSpace};
use crate::interrupts::{MAX_VECTORS, Messages, TABLE_ENTRY};

/// Message control, as the upper half of the header's doubleword.
const FUNCTION_MASK: u32 = 1 << 30;
const ENABLE: u32 = 1 << 31;

/// A function's MSI-X.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msix {
    /// How many vectors, 1 to [`MAX_VECTORS`].
    pub vectors: u16,
    /// The BAR of table and pending bits.
    pub bar: u8,
    /// Where the table is in the BAR: a multiple of 8, and 16 bytes for each vector long.
    pub table: u32,
    /// Where the pending bits are in the BAR: a multiple of 8, and 8 bytes for each 64 vectors long.
    pub pending: u32,
}

impl Msix {
    /// Bytes of the table.
    #[must_use]
    pub const fn table_size(&self) -> u64 {
        self.vectors as u64 * TABLE_ENTRY
    }

    /// Bytes of the pending bits.
    #[must_use]
    pub const fn pending_size(&self) -> u64 {
        self.vectors.div_ceil(64) as u64 * 8
    }

    /// A BAR of `vectors` alone, whose size is [`Self::own_bar_size`].
    #[must_use]
    pub const fn in_bar(bar: u8, vectors: u16) -> Self {
        let table = vectors as u32 * TABLE_ENTRY as u32;
        // A page of its own, so that a guest can be given the table apart from the bits.
        let pending = if table <= 0x800 { 0x800 } else { table.next_multiple_of(0x1000) };
        Self { vectors, bar, table: 0, pending }
    }

    /// Bytes of a BAR that holds nothing else: a power of two, 4 KiB at least.
    #[must_use]
    pub const fn own_bar_size(&self) -> u64 {
        let size = (self.pending as u64 + self.pending_size()).next_power_of_two();
        if size < 0x1000 { 0x1000 } else { size }
    }
}

/// Where the capability is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MsixCapability {
    offset: u16,
}

impl MsixCapability {
    pub(crate) fn add(space: &mut ConfigSpace, msix: &Msix) -> Self {
        let vectors = msix.vectors;
        assert!((1..=MAX_VECTORS).contains(&vectors), "MSI-X has 1 to {MAX_VECTORS} vectors");
        assert!(msix.table.is_multiple_of(8) && msix.pending.is_multiple_of(8), "table and pending bits are aligned");
        let offset = space.add_capability(id::MSIX, 12);
        space.define(offset, Bits::fixed(u32::from(vectors - 1) << 16).writable(FUNCTION_MASK | ENABLE));
        space.define(offset + 4, Bits::fixed(msix.table | u32::from(msix.bar)));
        space.define(offset + 8, Bits::fixed(msix.pending | u32::from(msix.bar)));
        Self { offset }
    }

    pub(crate) fn contains(self, offset: u16) -> bool {
        offset == self.offset
    }

    pub(crate) fn messages(self, space: &ConfigSpace) -> Messages {
        let control = space.register(self.offset);
        if control & ENABLE == 0 { Messages::Off } else { Messages::Msix { masked: control & FUNCTION_MASK != 0 } }
    }
}
