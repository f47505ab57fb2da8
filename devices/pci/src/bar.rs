//! Base address registers (PCI Local Bus 3.0 section 6.2.5).

use crate::config_space::{Bits, ConfigSpace, command, header};

#[cfg(test)]
#[path = "bar_test.rs"]
mod test;

/// How many a function has.
pub(crate) const BARS: usize = 6;

/// Which address space a range is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Memory.
    Memory,
    /// I/O.
    Io,
}

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; it takes two BARs. Behind a root port it is above 4 GiB only if it is prefetchable.
    Memory64 {
        /// Reading has no side effects, writes may be merged.
        prefetchable: bool,
    },
    /// I/O.
    Io,
}

/// A base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// How many bytes: a power of two; of memory at least 16, of I/O 4 to 256.
    pub size: u64,
}

/// Base address registers, by their numbers.
pub type Bars = [Option<Bar>; BARS];

/// A range that a function's BAR decodes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// The BAR.
    pub bar: u8,
    /// Of which address space.
    pub space: Space,
    /// The first address.
    pub base: u64,
    /// How many bytes. The range does not wrap around.
    pub size: u64,
}

impl Bar {
    /// Memory that a guest may put anywhere.
    #[must_use]
    pub const fn memory64(size: u64) -> Self {
        Self { kind: BarKind::Memory64 { prefetchable: true }, size }
    }

    /// Memory below 4 GiB.
    #[must_use]
    pub const fn memory32(size: u64) -> Self {
        Self { kind: BarKind::Memory32, size }
    }

    /// I/O.
    #[must_use]
    pub const fn io(size: u64) -> Self {
        Self { kind: BarKind::Io, size }
    }

    /// Which address space it is in.
    #[must_use]
    pub const fn space(&self) -> Space {
        match self.kind {
            BarKind::Io => Space::Io,
            _ => Space::Memory,
        }
    }

    /// Whether it may be above 4 GiB.
    #[must_use]
    pub const fn is_64_bit(&self) -> bool {
        matches!(self.kind, BarKind::Memory64 { .. })
    }

    /// The bits that say what it is.
    fn low_bits(&self) -> u32 {
        match self.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 { prefetchable } => 0b100 | u32::from(prefetchable) << 3,
            BarKind::Io => 1,
        }
    }

    fn address_mask(&self) -> u64 {
        !(self.size - 1)
    }

    /// # Panics
    /// If the size is not one that a BAR of its kind can have: devices' authors decide on it.
    fn define(&self, space: &mut ConfigSpace, number: u8) {
        let sizes = match self.kind {
            BarKind::Memory32 => 16..=1 << 31,
            BarKind::Memory64 { .. } => 16..=1 << 62,
            BarKind::Io => 4..=256,
        };
        assert!(self.size.is_power_of_two() && sizes.contains(&self.size), "a BAR of {:#x} bytes", self.size);
        let mask = self.address_mask();
        space.define(register(number), Bits::fixed(self.low_bits()).writable(mask as u32));
        if self.is_64_bit() {
            space.define(register(number + 1), Bits::fixed(0).writable((mask >> 32) as u32));
        }
    }

    /// What it decodes if its space is enabled. Address 0 is how it says that it has not been placed.
    fn decoded(&self, space: &ConfigSpace, number: u8) -> Option<Decoded> {
        let low = u64::from(space.register(register(number)));
        let high = if self.is_64_bit() { u64::from(space.register(register(number + 1))) } else { 0 };
        let base = (high << 32 | low) & self.address_mask();
        let last = base.checked_add(self.size - 1)?;
        let reach = if self.is_64_bit() { u64::MAX } else { u64::from(u32::MAX) };
        // While a guest sizes a BAR its address is all ones, which is no place for it.
        let placed = base != 0 && last < reach;
        placed.then_some(Decoded { bar: number, space: self.space(), base, size: self.size })
    }
}

/// Where a BAR is in configuration space.
pub(crate) const fn register(number: u8) -> u16 {
    header::BAR + 4 * number as u16
}

/// Lays out the BARs of an endpoint.
pub(crate) fn define(space: &mut ConfigSpace, bars: &Bars) {
    for (number, bar) in (0u8..).zip(bars) {
        let Some(bar) = bar else { continue };
        let pair = bars.get(usize::from(number) + 1);
        assert!(!bar.is_64_bit() || pair == Some(&None), "a 64-bit BAR takes the one after it");
        bar.define(space, number);
    }
}

/// What an endpoint's BARs decode, as its command register allows.
pub(crate) fn decoded(space: &ConfigSpace, bars: &Bars) -> Vec<Decoded> {
    let enabled = space.register(header::COMMAND);
    let is_on = |bar: &Bar| match bar.space() {
        Space::Memory => enabled & command::MEMORY != 0,
        Space::Io => enabled & command::IO != 0,
    };
    let decoded = |(number, bar): (u8, &Option<Bar>)| bar.filter(is_on)?.decoded(space, number);
    (0u8..).zip(bars).filter_map(decoded).collect()
}
