//! The forms of a kernel: the ELF inside a bzImage, and the forms that an arm64 Image is packed in.

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;

/// Magic number of the LZ4 form that `lz4 -l` writes, which is what Linux's own build calls.
const LZ4_LEGACY: u32 = 0x184c_2102;
/// The largest block of that form, decompressed.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

/// Takes the ELF (`vmlinux`, stripped) out of a bzImage, by the fields of its setup header
/// (Documentation/arch/x86/boot.rst: payload_offset and payload_length, since protocol 2.08).
pub(crate) fn vmlinux(bz_image: &[u8]) -> Result<Vec<u8>> {
    if bz_image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("this is no bzImage: it has no setup header");
    }
    if u16_at(bz_image, 0x206)? < 0x208 {
        bail!("the bzImage's boot protocol is older than 2.08 and does not say where the payload is");
    }
    let setup_sectors = match bz_image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(bz_image, 0x248)? as usize;
    let length = u32_at(bz_image, 0x24c)? as usize;
    let payload = bz_image.get(start..start.saturating_add(length)).context("the bzImage is cut off in its payload")?;
    // The build appends the size of what is inside.
    let (payload, _) = payload.split_at_checked(length.saturating_sub(4)).context("the bzImage's payload is empty")?;

    let elf = match u32_at(payload, 0)? {
        LZ4_LEGACY => lz4_legacy(&payload[4..])?,
        magic => bail!("the bzImage's payload is not LZ4 (it begins with {magic:#010x})"),
    };
    if !elf.starts_with(b"\x7fELF") {
        bail!("what the bzImage holds is no ELF file");
    }
    Ok(elf)
}

fn lz4_legacy(mut blocks: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    while !blocks.is_empty() {
        let size = u32_at(blocks, 0)? as usize;
        let block = blocks.get(4..size.saturating_add(4)).context("an LZ4 block is cut off")?;
        out.extend(lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK).context("an LZ4 block is damaged")?);
        blocks = &blocks[4 + size..];
    }
    Ok(out)
}

/// Packs with gzip, at a level that is quick.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(3));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory succeeds")
}

/// Makes an EFI zboot file (Linux: drivers/firmware/efi/libstub/zboot-header.S) of an arm64 Image packed with gzip.
///
/// A loader that unpacks the payload needs the header alone, so the EFI program that would unpack itself is not there:
/// firmware cannot start this file.
pub(crate) fn zboot(payload: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PE: &[u8] = b"PE\0\0\x64\xaa\0\0";
    let start = HEADER + PE.len();
    let mut out = Vec::with_capacity(start + payload.len());
    out.extend_from_slice(b"MZ\0\0zimg");
    out.extend_from_slice(&u32::try_from(start).expect("small").to_le_bytes());
    out.extend_from_slice(&u32::try_from(payload.len()).expect("a kernel is smaller than 4 GiB").to_le_bytes());
    out.extend_from_slice(&[0; 8]); // reserved
    out.extend_from_slice(b"gzip\0");
    out.resize(0x38, 0);
    out.extend_from_slice(&0x8182_23cd_u32.to_le_bytes()); // LINUX_PE_MAGIC
    out.extend_from_slice(&(HEADER as u32).to_le_bytes()); // where the PE header is
    out.extend_from_slice(PE);
    out.extend_from_slice(payload);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let field = bytes.get(at..at + 2).context("the file is cut off")?;
    Ok(u16::from_le_bytes(field.try_into().expect("two bytes")))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..at + 4).context("the file is cut off")?;
    Ok(u32::from_le_bytes(field.try_into().expect("four bytes")))
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod test;
