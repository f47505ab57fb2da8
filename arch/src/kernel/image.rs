//! arm64 Image, by itself, compressed by gzip, or in an EFI zboot application.

use std::io::{self, Read, SeekFrom};

use flate2::read::GzDecoder;
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemory};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Format, Found, IDENTITY, KernelError, LoadError, Reader, Source, check_range, copy_in, identify};
use crate::layout::{AddressRange, MIB};

/// Images are placed at `text_offset` from an address of this alignment.
pub(crate) const ALIGNMENT: u64 = 2 * MIB;
/// Where kernels before 3.17, whose headers say no size, expect to be.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// Room that such a kernel is given past its file, for its zeroed data.
const OLD_BSS: u64 = 16 * MIB;
const FLAG_BIG_ENDIAN: u64 = 1 << 0;
const PE_MACHINE_ARM64: u16 = 0xaa64;
/// Decompressed bytes that are held at a time.
const CHUNK: usize = 64 << 10;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct ImageHeader {
    code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    reserved: [U64; 3],
    magic: [u8; 4],
    pe_offset: U32,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct ZbootHeader {
    magic: [u8; 8],
    payload_offset: U32,
    payload_size: U32,
    reserved: [U32; 2],
    compression: [u8; 32],
    linux_magic: [u8; 4],
    pe_offset: U32,
}

/// PE/COFF file header, with its signature.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct PeHeader {
    signature: [u8; 4],
    machine: U16,
    sections: U16,
    unused: [U32; 3],
    optional_size: U16,
    characteristics: U16,
}

/// PE/COFF section header.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct PeSection {
    name: [u8; 8],
    virtual_size: U32,
    virtual_address: U32,
    raw_size: U32,
    raw_offset: U32,
    unused: [U32; 4],
}

/// An Image's header, and how its bytes stand in the file.
#[derive(Clone, Debug)]
pub struct Image {
    format: Format,
    /// The Image in the file, or the compressed data.
    payload: AddressRange,
    text_offset: u64,
    /// Memory from the start of the Image that it takes.
    size: u64,
}

impl Image {
    /// An Image by itself.
    pub(super) fn parse<S: Source>(file: &mut Reader<'_, S>) -> Result<Self, KernelError> {
        let mut header = ImageHeader::new_zeroed();
        file.read_at(0, header.as_mut_bytes())?;
        check_pe_sections(file, &header)?;
        Self::from_header(&header, Format::Image, AddressRange::new(0, file.length))
    }

    /// An Image compressed by gzip.
    pub(super) fn parse_gzip<S: Source>(file: &mut Reader<'_, S>) -> Result<Self, KernelError> {
        let payload = AddressRange::new(0, file.length);
        Self::parse_stream(file, payload, Format::ImageGz)
    }

    /// An Image in the gzip stream that `payload` of the file holds.
    fn parse_stream<S: Source>(
        file: &mut Reader<'_, S>,
        payload: AddressRange,
        format: Format,
    ) -> Result<Self, KernelError> {
        let mut bytes = [0; IDENTITY];
        let count = fill(&mut gunzip(file.source, payload)?, &mut bytes).map_err(KernelError::Compressed)?;
        match identify(&bytes[..count]) {
            Found::Image => {}
            Found::BzImage | Found::Elf => {
                let what = "a compressed x86 kernel or ELF file".to_owned();
                return Err(KernelError::Unsupported { what, mend: "decompress it first (gunzip)" });
            }
            Found::Other(what, mend) => return Err(KernelError::NotAKernel { what, mend }),
            Found::Gzip | Found::Zboot | Found::Unknown => {
                let what = "gzip-compressed data that holds no arm64 Image";
                return Err(KernelError::NotAKernel { what, mend: KernelError::FORMATS });
            }
        }
        match ImageHeader::ref_from_prefix(&bytes[..count]) {
            Ok((header, _)) => Self::from_header(header, format, payload),
            Err(_) => Err(KernelError::Malformed("an Image shorter than its header")),
        }
    }

    /// An Image in an EFI zboot application.
    pub(super) fn parse_zboot<S: Source>(file: &mut Reader<'_, S>) -> Result<Self, KernelError> {
        let mut header = ZbootHeader::new_zeroed();
        file.read_at(0, header.as_mut_bytes())?;
        let mut pe = PeHeader::new_zeroed();
        file.read_at(u64::from(header.pe_offset.get()), pe.as_mut_bytes())?;
        if pe.signature != *b"PE\0\0" || pe.machine.get() != PE_MACHINE_ARM64 {
            let what = "an EFI zboot kernel of another architecture".to_owned();
            return Err(KernelError::Unsupported { what, mend: KernelError::FORMATS });
        }
        let payload = AddressRange::new(u64::from(header.payload_offset.get()), u64::from(header.payload_size.get()));
        if payload.end() > file.length {
            return Err(KernelError::Truncated { needs: payload.end(), has: file.length });
        }
        let name = header.compression.split(|&byte| byte == 0).next().unwrap_or_default();
        if name != b"gzip" {
            return Err(KernelError::Unsupported {
                what: format!("an EFI zboot kernel compressed by {}", String::from_utf8_lossy(name)),
                mend: "take one compressed by gzip, or its Image",
            });
        }
        Self::parse_stream(file, payload, Format::Zboot)
    }

    fn from_header(header: &ImageHeader, format: Format, payload: AddressRange) -> Result<Self, KernelError> {
        if header.flags.get() & FLAG_BIG_ENDIAN != 0 {
            let what = "a big-endian arm64 kernel".to_owned();
            return Err(KernelError::Unsupported { what, mend: "take a little-endian one" });
        }
        let (text_offset, size) = match header.image_size.get() {
            0 if format == Format::Image => (OLD_TEXT_OFFSET, payload.size + OLD_BSS),
            0 => return Err(KernelError::Malformed("a compressed Image that does not say its size")),
            size => (header.text_offset.get(), size),
        };
        if text_offset >= ALIGNMENT || size > 1 << 40 {
            return Err(KernelError::Malformed("an Image with an absurd offset or size"));
        }
        if format == Format::Image && payload.size > size {
            // A signature, or padding, follows the Image.
            return Ok(Self { format, payload: AddressRange::new(0, size), text_offset, size });
        }
        Ok(Self { format, payload, text_offset, size })
    }

    /// How the Image stands in the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The memory that the kernel takes when it is loaded to the first place in RAM that begins at `ram_base`. Its
    /// first address is the entry point. `None` if it would pass the end of the address space.
    pub fn region(&self, ram_base: u64) -> Option<AddressRange> {
        let base = crate::layout::align_up(ram_base, ALIGNMENT)?.checked_add(self.text_offset)?;
        base.checked_add(self.size).map(|end| AddressRange::between(base, end))
    }

    /// Reads, or decompresses, the Image to the start of `region`, which is what [`region`](Self::region) answered.
    ///
    /// # Errors
    /// If there is no guest memory, or the file can't be read or is broken further on.
    pub fn load<M, S>(&self, source: &mut S, memory: &M, region: AddressRange) -> Result<(), LoadError>
    where
        M: GuestMemory + ?Sized,
        S: Source,
    {
        if self.format == Format::Image {
            return copy_in(memory, region.base, source, self.payload.base, self.payload.size);
        }
        check_range(memory, region)?;
        let mut stream = gunzip(source, self.payload)?;
        let mut chunk = vec![0; CHUNK];
        let mut at = region.base;
        loop {
            let count = fill(&mut stream, &mut chunk).map_err(KernelError::Compressed)?;
            if count as u64 > region.end() - at {
                return Err(KernelError::Malformed("an Image longer than it says").into());
            }
            memory.write_slice(&chunk[..count], GuestAddress(at))?;
            at += count as u64;
            if count < chunk.len() {
                return Ok(());
            }
        }
    }
}

/// The stream that `payload` of a file holds.
fn gunzip<S: Source>(source: &mut S, payload: AddressRange) -> Result<GzDecoder<io::Take<&mut S>>, KernelError> {
    source.seek(SeekFrom::Start(payload.base))?;
    Ok(GzDecoder::new(source.take(payload.size)))
}

/// Reads until `buffer` is full or the stream ends, and answers how many bytes came.
fn fill<R: Read>(stream: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match stream.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// An Image's own header does not say how long its file is; where it is an EFI application as well, its sections do.
fn check_pe_sections<S: Source>(file: &mut Reader<'_, S>, header: &ImageHeader) -> Result<(), KernelError> {
    if header.code[0].get() & 0xffff != u32::from(u16::from_le_bytes(*b"MZ")) {
        return Ok(());
    }
    let at = u64::from(header.pe_offset.get());
    let mut pe = PeHeader::new_zeroed();
    file.read_at(at, pe.as_mut_bytes())?;
    if pe.signature != *b"PE\0\0" {
        return Err(KernelError::Malformed("an EFI application without a PE header"));
    }
    if pe.machine.get() != PE_MACHINE_ARM64 {
        return Err(KernelError::Malformed("an arm64 Image in a PE file of another architecture"));
    }
    let table = at + size_of::<PeHeader>() as u64 + u64::from(pe.optional_size.get());
    let mut needs = 0;
    for index in 0..u64::from(pe.sections.get()) {
        let mut section = PeSection::new_zeroed();
        file.read_at(table + index * size_of::<PeSection>() as u64, section.as_mut_bytes())?;
        needs = needs.max(u64::from(section.raw_offset.get()) + u64::from(section.raw_size.get()));
    }
    if needs > file.length { Err(KernelError::Truncated { needs, has: file.length }) } else { Ok(()) }
}
