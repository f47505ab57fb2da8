//! Linux's `boot_params` (the zero page), as "The Linux/x86 Boot Protocol" 2.15 and the kernel's
//! `Documentation/arch/x86/zero-page.rst` lay it out.
//!
//! Only what a 64-bit kernel without BIOS or EFI reads has a field; the rest is zero.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::e820::Entry;

/// Where the setup header begins, in a bzImage as in the zero page.
pub const HEADER_OFFSET: usize = 0x1f1;
/// Memory map entries that the zero page holds.
pub const E820_MAX: usize = 128;
/// `type_of_loader` of a boot loader without a number of its own.
pub const LOADER_UNDEFINED: u8 = 0xff;
/// `setup_data` type of a seed for the kernel's random number generator.
pub const SETUP_RNG_SEED: u32 = 9;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The protocol that a made-up header claims.
const PROTOCOL_2_15: u16 = 0x020f;
/// Command line bytes that x86_64 Linux takes, without the terminating zero.
const CMDLINE_MAX: u32 = 2047;
/// Highest address of an initramfs where the kernel names none.
const INITRD_MAX: u32 = 0x7fff_ffff;

/// The setup header: what a bzImage tells its loader, and the loader tells the kernel.
#[repr(C)]
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SetupHeader {
    /// Sectors of real-mode code; zero stands for four.
    pub setup_sects: u8,
    /// Whether the root is mounted read-only.
    pub root_flags: U16,
    /// Size of the protected-mode kernel in units of 16 bytes.
    pub syssize: U32,
    /// Obsolete.
    pub ram_size: U16,
    /// Video mode.
    pub vid_mode: U16,
    /// Obsolete.
    pub root_dev: U16,
    /// 0xaa55.
    pub boot_flag: U16,
    /// Jump around the header.
    pub jump: U16,
    /// "HdrS".
    pub header: U32,
    /// Boot protocol: major version in the high byte.
    pub version: U16,
    /// Real-mode hook.
    pub realmode_swtch: U32,
    /// Obsolete.
    pub start_sys_seg: U16,
    /// Offset of the version text, less 0x200.
    pub kernel_version: U16,
    /// The loader's number.
    pub type_of_loader: u8,
    /// Options of both sides.
    pub loadflags: u8,
    /// Real-mode size.
    pub setup_move_size: U16,
    /// 32-bit entry point.
    pub code32_start: U32,
    /// Low half of the initramfs' address.
    pub ramdisk_image: U32,
    /// Low half of its size.
    pub ramdisk_size: U32,
    /// Obsolete.
    pub bootsect_kludge: U32,
    /// Real-mode heap.
    pub heap_end_ptr: U16,
    /// Extension of the loader's number.
    pub ext_loader_ver: u8,
    /// Extension of the loader's number.
    pub ext_loader_type: u8,
    /// Low half of the command line's address.
    pub cmd_line_ptr: U32,
    /// Highest address that the initramfs may take.
    pub initrd_addr_max: U32,
    /// Alignment of a relocatable kernel.
    pub kernel_alignment: U32,
    /// Whether the kernel can be loaded elsewhere.
    pub relocatable_kernel: u8,
    /// Least alignment, as a power of two.
    pub min_alignment: u8,
    /// What the 64-bit kernel can do.
    pub xloadflags: U16,
    /// Longest command line, without the terminating zero.
    pub cmdline_size: U32,
    /// Paravirtual environment.
    pub hardware_subarch: U32,
    /// Its data.
    pub hardware_subarch_data: U64,
    /// Offset of the compressed kernel.
    pub payload_offset: U32,
    /// Its length.
    pub payload_length: U32,
    /// First of a chain of `setup_data`.
    pub setup_data: U64,
    /// Address where the kernel prefers to be loaded.
    pub pref_address: U64,
    /// Memory that it needs from there.
    pub init_size: U32,
    /// EFI handover entry point.
    pub handover_offset: U32,
    /// Offset of `kernel_info`.
    pub kernel_info_offset: U32,
}

impl SetupHeader {
    /// The header of a kernel that comes without one: an ELF file.
    pub fn synthetic() -> Self {
        Self {
            boot_flag: BOOT_FLAG.into(),
            header: HEADER_MAGIC.into(),
            version: PROTOCOL_2_15.into(),
            cmdline_size: CMDLINE_MAX.into(),
            initrd_addr_max: INITRD_MAX.into(),
            ..Self::new_zeroed()
        }
    }
}

/// The zero page.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct BootParams {
    _screen_to_ist: [u8; 0x70],
    /// Address of the RSDP.
    pub acpi_rsdp_addr: U64,
    _obsolete: [u8; 0x48],
    /// High half of the initramfs' address.
    pub ext_ramdisk_image: U32,
    /// High half of its size.
    pub ext_ramdisk_size: U32,
    /// High half of the command line's address.
    pub ext_cmd_line_ptr: U32,
    _cc_to_scratch: [u8; 0x11c],
    /// Entries of [`e820_table`](Self::e820_table) in use.
    pub e820_entries: u8,
    _edd_to_sentinel: [u8; 8],
    /// The setup header.
    pub header: SetupHeader,
    _header_rest: [u8; 0x24],
    _edd_signatures: [u8; 0x40],
    /// The memory map.
    pub e820_table: [Entry; E820_MAX],
    _edd: [u8; 0x330],
}

/// One link in the chain of `setup_data`, followed by `len` bytes.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct SetupData {
    /// Address of the next link, or zero.
    pub next: U64,
    /// What it is.
    pub kind: U32,
    /// Bytes that follow.
    pub len: U32,
}

/// A seed for the kernel's random number generator, as `setup_data`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RngSeed {
    /// The link.
    pub header: SetupData,
    /// The seed.
    pub seed: [u8; 32],
}

impl RngSeed {
    /// The last link of the chain.
    pub fn new(seed: [u8; 32]) -> Self {
        let header = SetupData { next: 0.into(), kind: SETUP_RNG_SEED.into(), len: 32.into() };
        Self { header, seed }
    }
}

#[cfg(test)]
#[path = "boot_params_test.rs"]
mod test;
