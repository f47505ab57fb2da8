//! Guest physical address space: what the layouts of both machines share.

use std::fmt;

use thiserror::Error;

/// One kibibyte, in bytes.
pub const KIB: u64 = 1 << 10;
/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// RAM is given in units of this size, so that every piece of it can be backed by huge pages.
pub const RAM_GRANULE: u64 = 2 * MIB;

/// Fewest guest physical address bits that a layout can be made for. Both architectures' smallest hosts have more.
pub const MIN_ADDRESS_BITS: u8 = 36;
/// Most guest physical address bits that either architecture defines (x86_64 with 5-level paging, Armv8.2 LPA).
pub const MAX_ADDRESS_BITS: u8 = 52;

/// A range of guest physical addresses (or of ports): `size` bytes from `base`. It never wraps around.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl AddressRange {
    /// The region of `size` bytes from `base`.
    ///
    /// # Panics
    /// If the region would pass the end of the 64-bit address space: regions are made from constants and from sizes
    /// that a layout has checked.
    pub const fn new(base: u64, size: u64) -> Self {
        assert!(base.checked_add(size).is_some(), "a region must not wrap around");
        Self { base, size }
    }

    /// The region from `base` up to, and without, `end`.
    pub const fn between(base: u64, end: u64) -> Self {
        assert!(base <= end, "a region must not end before it begins");
        Self { base, size: end - base }
    }

    /// First address after the region.
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }

    /// Whether the region holds no address.
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Whether `address` lies within.
    pub const fn contains(&self, address: u64) -> bool {
        address >= self.base && address - self.base < self.size
    }

    /// Whether all of `other` lies within.
    pub const fn encloses(&self, other: &AddressRange) -> bool {
        other.base >= self.base && other.end() <= self.end()
    }

    /// Whether the two share an address.
    pub const fn overlaps(&self, other: &AddressRange) -> bool {
        self.base < other.end() && other.base < self.end() && !self.is_empty() && !other.is_empty()
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.base, self.end())
    }
}

impl fmt::Display for AddressRange {
    /// `first-last`, both inclusive, as `/proc/iomem` writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}-{:012x}", self.base, self.end().saturating_sub(1))
    }
}

/// What stands in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Guest memory.
    Ram,
    /// Firmware flash.
    Flash,
    /// Registers of a device or of an interrupt controller.
    Device,
    /// PCI configuration space.
    PciConfig,
    /// Addresses that PCI devices are given.
    PciWindow,
    /// Kept free.
    Reserved,
}

impl fmt::Display for RangeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ram => "ram",
            Self::Flash => "flash",
            Self::Device => "device",
            Self::PciConfig => "pci-config",
            Self::PciWindow => "pci-window",
            Self::Reserved => "reserved",
        })
    }
}

/// One line of a printed layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub region: AddressRange,
    /// What kind of thing.
    pub kind: RangeKind,
    /// Its name, for people.
    pub name: &'static str,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:10}  {}", self.region, self.kind, self.name)
    }
}

/// Why no layout can be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The amount of RAM is zero or not a multiple of [`RAM_GRANULE`].
    #[error("memory of {0} bytes is not a multiple of 2 MiB; the nearest that is: {n}M", n = nearest_mib(*.0))]
    RamGranule(u64),
    /// The RAM and the windows above it pass the end of the guest's physical addresses.
    #[error(
        "{}M of memory do not fit into this host's {address_bits} guest address bits; at most {}M do",
        ram / MIB, max_ram / MIB
    )]
    RamTooLarge {
        /// Bytes asked for.
        ram: u64,
        /// Guest physical address bits.
        address_bits: u8,
        /// Bytes that would fit.
        max_ram: u64,
    },
    /// The host offers fewer guest physical address bits than the machine's fixed regions take.
    #[error("this host offers {0} guest address bits, and the machine needs at least {MIN_ADDRESS_BITS}")]
    AddressBits(u8),
    /// The interrupt controller of the layout can't serve that many vCPUs.
    #[error("{controller} serves {limit} vCPUs at most, and {asked} are asked for; take fewer{mend}")]
    TooManyCpus {
        /// The interrupt controller's name.
        controller: &'static str,
        /// vCPUs asked for.
        asked: u32,
        /// vCPUs that would do.
        limit: u32,
        /// What else would do, as the rest of the sentence.
        mend: &'static str,
    },
}

/// `ram` to the nearest granule that is not zero, in MiB.
fn nearest_mib(ram: u64) -> u64 {
    let down = ram / RAM_GRANULE;
    let up = u64::from(ram % RAM_GRANULE >= RAM_GRANULE / 2);
    (down + up).max(1) * (RAM_GRANULE / MIB)
}

/// `value` rounded up to a multiple of `align`, which is a power of two; `None` if that overflows.
pub(crate) const fn align_up(value: u64, align: u64) -> Option<u64> {
    debug_assert!(align.is_power_of_two());
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}

/// `value` rounded down to a multiple of `align`, which is a power of two.
pub(crate) const fn align_down(value: u64, align: u64) -> u64 {
    debug_assert!(align.is_power_of_two());
    value & !(align - 1)
}

/// Checks what both layouts are made from, and answers the first address past the guest's physical ones.
pub(crate) fn check(ram: u64, address_bits: u8) -> Result<u64, LayoutError> {
    if ram == 0 || !ram.is_multiple_of(RAM_GRANULE) {
        return Err(LayoutError::RamGranule(ram));
    }
    if address_bits < MIN_ADDRESS_BITS {
        return Err(LayoutError::AddressBits(address_bits));
    }
    Ok(1 << address_bits.min(MAX_ADDRESS_BITS))
}

/// The largest naturally aligned window of a power-of-two size between `min` and `max` that lies within `free`.
pub(crate) fn largest_window(free: AddressRange, min: u64, max: u64) -> Option<AddressRange> {
    let mut size = max;
    while size >= min {
        match align_up(free.base, size).and_then(|base| base.checked_add(size)) {
            Some(end) if end <= free.end() => return Some(AddressRange::new(end - size, size)),
            _ => size /= 2,
        }
    }
    None
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod test;
