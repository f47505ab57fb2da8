//! Kernels made up for tests, of each format, and memory to load them into.

use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{AddressRange, MIB};

pub(crate) type File = Cursor<Vec<u8>>;

/// No initramfs, for calls that are generic over it.
pub(crate) const NO_INITRD: Option<&mut File> = None;

pub(crate) const VERSION: &str = "6.1.0-skep (test)";
pub(crate) const PVH_ENTRY: u32 = 0x10_0100;
pub(crate) const ELF_ENTRY: u64 = 0x10_0040;

/// Memory of the given ranges.
pub(crate) fn memory(ranges: &[AddressRange]) -> GuestMemoryMmap {
    let ranges: Vec<_> = ranges.iter().map(|r| (GuestAddress(r.base), r.size as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

pub(crate) fn bytes(memory: &GuestMemoryMmap, base: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(base)).unwrap();
    bytes
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 251) as u8 + 1).collect()
}

pub(crate) fn put(file: &mut [u8], offset: usize, value: &[u8]) {
    file[offset..offset + value.len()].copy_from_slice(value);
}

/// A bzImage with two setup sectors and `payload` as its protected-mode kernel, to be loaded at 16 MiB.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 3 * 512];
    put(&mut file, 0x1f1, &[2]);
    put(&mut file, 0x1f4, &(payload.len().div_ceil(16) as u32).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa]);
    put(&mut file, 0x200, &[0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes());
    put(&mut file, 0x20e, &0x100u16.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x236, &0x3fu16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut file, 0x260, &(8 * MIB as u32).to_le_bytes());
    put(&mut file, 0x300, VERSION.as_bytes());
    file.extend_from_slice(payload);
    file
}

/// An ELF kernel at 1 MiB with `payload` and as many zeroed bytes behind it, with a PVH note or without.
pub(crate) fn elf(payload: &[u8], pvh: bool) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2u16.to_le_bytes());
    put(&mut file, 18, &62u16.to_le_bytes());
    put(&mut file, 24, &ELF_ENTRY.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &2u16.to_le_bytes());
    // One segment of notes: someone else's, then Xen's.
    put(&mut file, 64, &4u32.to_le_bytes());
    put(&mut file, 72, &0x100u64.to_le_bytes());
    put(&mut file, 96, &44u64.to_le_bytes());
    put(&mut file, 112, &4u64.to_le_bytes());
    put(&mut file, 0x100, &[4, 0, 0, 0, 5, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut file, 0x10c, b"GNU\0hello\0\0\0");
    if pvh {
        put(&mut file, 0x118, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(&mut file, 0x124, b"Xen\0");
        put(&mut file, 0x128, &PVH_ENTRY.to_le_bytes());
    }
    // One segment to load.
    put(&mut file, 120, &1u32.to_le_bytes());
    put(&mut file, 128, &0x200u64.to_le_bytes());
    put(&mut file, 144, &MIB.to_le_bytes());
    put(&mut file, 152, &(payload.len() as u64).to_le_bytes());
    put(&mut file, 160, &(payload.len() as u64 * 2).to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// An arm64 Image of `size` bytes in the file, which takes `image_size` of memory, with an EFI header or without.
pub(crate) fn image(size: usize, image_size: u64, efi: bool) -> Vec<u8> {
    let mut file = pattern(size);
    file[..0x200].fill(0);
    put(&mut file, 8, &0u64.to_le_bytes());
    put(&mut file, 16, &image_size.to_le_bytes());
    put(&mut file, 24, &0xau64.to_le_bytes());
    put(&mut file, 56, b"ARM\x64");
    if efi {
        put(&mut file, 0, b"MZ");
        put(&mut file, 60, &64u32.to_le_bytes());
        pe_header(&mut file[64..], (size - 0x200) as u32);
    }
    file
}

/// A PE header with one section of `size` bytes from 0x200.
fn pe_header(file: &mut [u8], size: u32) {
    put(file, 0, b"PE\0\0\x64\xaa\x01\0");
    put(file, 40, &size.to_le_bytes());
    put(file, 44, &0x200u32.to_le_bytes());
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An EFI zboot application with `payload`, compressed by `compression`.
pub(crate) fn zboot(payload: &[u8], compression: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    put(&mut file, 0, b"MZ\0\0zimg");
    put(&mut file, 8, &0x400u32.to_le_bytes());
    put(&mut file, 12, &(payload.len() as u32).to_le_bytes());
    put(&mut file, 24, compression);
    put(&mut file, 56, &[0xcd, 0x23, 0x82, 0x81]);
    put(&mut file, 60, &64u32.to_le_bytes());
    pe_header(&mut file[64..], 0x200);
    file.extend_from_slice(payload);
    file
}
