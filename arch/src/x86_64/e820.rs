//! The physical memory map as the PC's BIOS call E820 gives it, which boot protocols hand to a kernel.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::layout::{ACPI, BACKEND, CONVENTIONAL, ECAM, EXTENDED, LEGACY_HOLE, Layout};
use crate::layout::AddressRange;

/// What a range is, by the numbers of ACPI 6.5, table 15.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory that the system may use.
    Ram = 1,
    /// Not memory, or not to be used.
    Reserved = 2,
    /// Memory with ACPI tables, free once they are read.
    AcpiReclaimable = 3,
}

/// One range.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Entry {
    /// First address.
    pub base: U64,
    /// Length in bytes.
    pub size: U64,
    /// A [`Kind`].
    pub kind: U32,
}

impl Entry {
    /// The entry of `region`.
    pub fn new(region: AddressRange, kind: Kind) -> Self {
        Self { base: region.base.into(), size: region.size.into(), kind: (kind as u32).into() }
    }

    /// The range it stands for; `None` if it wraps around.
    pub fn region(&self) -> Option<AddressRange> {
        self.base.get().checked_add(self.size.get()).map(|end| AddressRange::between(self.base.get(), end))
    }
}

/// The memory map of a machine without firmware, ascending, with the ACPI tables in `tables`
/// (see [`Layout::acpi_tables`]).
pub fn memory_map(layout: &Layout, tables: Option<AddressRange>) -> Vec<Entry> {
    let low = layout.low_ram();
    // Tables below 1 MiB stand in what is reserved anyway.
    let carved = tables.filter(|tables| !ACPI.encloses(tables));
    let low_end = carved.map_or(low.end(), |tables| tables.base);
    let mut map = vec![
        Entry::new(AddressRange::between(CONVENTIONAL.base, CONVENTIONAL.end().min(low.end())), Kind::Ram),
        Entry::new(LEGACY_HOLE, Kind::Reserved),
        Entry::new(AddressRange::between(EXTENDED, low_end), Kind::Ram),
    ];
    map.extend(carved.map(|tables| Entry::new(AddressRange::between(tables.base, low.end()), Kind::AcpiReclaimable)));
    // Linux uses the ECAM only where the memory map, or ACPI, says that it is reserved.
    map.extend([Entry::new(ECAM, Kind::Reserved), Entry::new(BACKEND, Kind::Reserved)]);
    map.extend(layout.ram.iter().skip(1).map(|&part| Entry::new(part, Kind::Ram)));
    map
}

/// What firmware is told, which makes the memory map of its own: RAM, and what a backend keeps.
pub fn for_firmware(layout: &Layout) -> Vec<Entry> {
    let ram = layout.ram.iter().map(|&part| Entry::new(part, Kind::Ram));
    ram.chain([Entry::new(BACKEND, Kind::Reserved)]).collect()
}

#[cfg(test)]
#[path = "e820_test.rs"]
mod test;
