//! What a PVH kernel is handed: Xen's "x86/HVM direct boot ABI", start info version 1.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::e820::Entry;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;

/// `hvm_start_info`.
#[repr(C)]
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct StartInfo {
    /// 0x336ec578.
    pub magic: U32,
    /// 1: with a memory map.
    pub version: U32,
    /// None are defined for a guest.
    pub flags: U32,
    /// Entries of the module list.
    pub nr_modules: U32,
    /// Address of the module list.
    pub modlist_paddr: U64,
    /// Address of the command line.
    pub cmdline_paddr: U64,
    /// Address of the RSDP.
    pub rsdp_paddr: U64,
    /// Address of the memory map.
    pub memmap_paddr: U64,
    /// Entries of the memory map.
    pub memmap_entries: U32,
    /// Zero.
    pub reserved: U32,
}

impl StartInfo {
    /// A start info of version 1 with everything else zero.
    pub fn new() -> Self {
        Self { magic: MAGIC.into(), version: VERSION.into(), ..Self::new_zeroed() }
    }
}

impl Default for StartInfo {
    fn default() -> Self {
        Self::new()
    }
}

/// `hvm_modlist_entry`: the initramfs is the first module.
#[repr(C)]
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct Module {
    /// Address.
    pub paddr: U64,
    /// Length in bytes.
    pub size: U64,
    /// Address of its command line, or zero.
    pub cmdline_paddr: U64,
    /// Zero.
    pub reserved: U64,
}

/// `hvm_memmap_table_entry`.
#[repr(C)]
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct MemoryMapEntry {
    /// The range, as E820 gives it.
    pub entry: Entry,
    /// Zero.
    pub reserved: U32,
}

impl From<Entry> for MemoryMapEntry {
    fn from(entry: Entry) -> Self {
        Self { entry, reserved: 0.into() }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_abi() {
        assert_eq!(size_of::<StartInfo>(), 56);
        assert_eq!(std::mem::offset_of!(StartInfo, memmap_paddr), 40);
        assert_eq!(size_of::<Module>(), 32);
        assert_eq!(size_of::<MemoryMapEntry>(), 24);
        assert_eq!(StartInfo::new().as_bytes()[..8], [0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0]);
    }
}
