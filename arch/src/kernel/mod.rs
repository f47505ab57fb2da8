//! Kernel file formats of both architectures: what a file is, and how its bytes get into guest memory.
//!
//! * x86_64: bzImage ("The Linux/x86 Boot Protocol", 2.12 and later, 64-bit kernels), and ELF64, entered by Linux's
//!   64-bit protocol or by PVH (Xen's "x86/HVM direct boot ABI").
//! * aarch64: Image ("Booting AArch64 Linux"), Image.gz, and EFI zboot with a gzip payload.
//!
//! A file's bytes are read straight into guest memory; only headers are held in the heap, and no allocation has a size
//! that the file names. Not done: compressed ELF or bzImage files, other compressions, big-endian or 32-bit kernels.

mod bzimage;
mod elf;
mod error;
mod image;

use std::io::{Read, Seek, SeekFrom};

use skep_hypervisor::ArchKind;
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, ReadVolatile};

use crate::layout::AddressRange;

pub use bzimage::BzImage;
pub use elf::Elf;
pub use error::{KernelError, LoadError};
pub use image::Image;

/// A file that a kernel or an initramfs is read from: a `File`, or a `Cursor` over bytes.
pub trait Source: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> Source for T {}

/// A file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Linux/x86 bzImage.
    BzImage,
    /// ELF with a PVH entry point.
    ElfPvh,
    /// ELF without one.
    Elf,
    /// Uncompressed arm64 Image.
    Image,
    /// Image compressed by gzip.
    ImageGz,
    /// Image in an EFI application that decompresses it.
    Zboot,
}

impl Format {
    /// The format's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BzImage => "bzImage",
            Self::ElfPvh => "ELF (PVH)",
            Self::Elf => "ELF",
            Self::Image => "Image",
            Self::ImageGz => "Image.gz",
            Self::Zboot => "EFI zboot",
        }
    }
}

/// What a kernel file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Whose kernel it is.
    pub architecture: ArchKind,
    /// Its format.
    pub format: Format,
    /// The version text of a bzImage.
    pub version: Option<String>,
}

/// A kernel whose headers have been read and checked.
#[derive(Clone, Debug)]
pub enum Kernel {
    /// Linux/x86 bzImage.
    BzImage(BzImage),
    /// ELF for x86_64.
    Elf(Elf),
    /// arm64 Image, compressed or not.
    Image(Image),
}

impl Kernel {
    /// Finds out what `source` is, by its content, and checks its headers against its length.
    ///
    /// # Errors
    /// [`KernelError`], which says what the file is instead, or what is wrong with it.
    pub fn probe<S: Source>(source: &mut S) -> Result<Self, KernelError> {
        let mut file = Reader::new(source)?;
        match identify(file.head()) {
            Found::BzImage => BzImage::parse(&mut file).map(Self::BzImage),
            Found::Elf => Elf::parse(&mut file).map(Self::Elf),
            Found::Image => Image::parse(&mut file).map(Self::Image),
            Found::Gzip => Image::parse_gzip(&mut file).map(Self::Image),
            Found::Zboot => Image::parse_zboot(&mut file).map(Self::Image),
            Found::Other(what, mend) => Err(KernelError::NotAKernel { what, mend }),
            Found::Unknown if file.length < IDENTITY as u64 => {
                Err(KernelError::Truncated { needs: IDENTITY as u64, has: file.length })
            }
            Found::Unknown => Err(KernelError::NotAKernel { what: "unknown data", mend: KernelError::FORMATS }),
        }
    }

    /// What the file says of itself.
    pub fn info(&self) -> KernelInfo {
        let (architecture, format, version) = match self {
            Self::BzImage(kernel) => (ArchKind::X86_64, Format::BzImage, kernel.version().map(str::to_owned)),
            Self::Elf(kernel) => (ArchKind::X86_64, kernel.format(), None),
            Self::Image(kernel) => (ArchKind::Aarch64, kernel.format(), None),
        };
        KernelInfo { architecture, format, version }
    }
}

/// A kernel file whose headers are being read: its first page is held, since most of them stand there.
struct Reader<'s, S> {
    source: &'s mut S,
    length: u64,
    head: [u8; 4096],
}

impl<'s, S: Source> Reader<'s, S> {
    fn new(source: &'s mut S) -> Result<Self, KernelError> {
        let mut reader = Self { length: length(source)?, source, head: [0; 4096] };
        let count = reader.head().len();
        reader.source.seek(SeekFrom::Start(0))?;
        reader.source.read_exact(&mut reader.head[..count])?;
        Ok(reader)
    }

    /// The file's first page, or less if there is no more.
    fn head(&self) -> &[u8] {
        &self.head[..self.head.len().min(usize::try_from(self.length).unwrap_or(usize::MAX))]
    }

    /// Fills `buffer` from `offset` of the file.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), KernelError> {
        let needs = offset.checked_add(buffer.len() as u64).ok_or(KernelError::Malformed("an offset beyond 2^64"))?;
        if needs > self.length {
            return Err(KernelError::Truncated { needs, has: self.length });
        }
        let held = usize::try_from(offset).ok().and_then(|at| self.head().get(at..)?.get(..buffer.len()));
        if let Some(held) = held {
            buffer.copy_from_slice(held);
            return Ok(());
        }
        self.source.seek(SeekFrom::Start(offset))?;
        Ok(self.source.read_exact(buffer)?)
    }
}

/// Bytes from a file's start by which its format is known: to the end of a bzImage's magic number.
const IDENTITY: usize = 0x206;

/// What the first bytes of a file tell.
enum Found {
    BzImage,
    Elf,
    Image,
    Gzip,
    Zboot,
    /// Something that people do give for a kernel, and what would do.
    Other(&'static str, &'static str),
    Unknown,
}

fn identify(head: &[u8]) -> Found {
    let has = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // A kernel that is an EFI application as well begins with "MZ": its own magic decides.
    if has(0x1fe, b"\x55\xaa") && has(0x202, b"HdrS") {
        return Found::BzImage;
    }
    if has(56, b"ARM\x64") {
        return Found::Image;
    }
    if has(0, b"MZ\0\0zimg") {
        return Found::Zboot;
    }
    const UNPACK: &str = "decompress it first";
    const INITRD: &str = "give it by --initrd, and a kernel by --kernel";
    const OTHERS: [(&[u8], &str, &str); 10] = [
        (b"070701", "an initramfs (cpio archive)", INITRD),
        (b"070702", "an initramfs (cpio archive)", INITRD),
        (b"\xfd7zXZ", "xz-compressed data", UNPACK),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed data", UNPACK),
        (b"\x02\x21\x4c\x18", "LZ4-compressed data", UNPACK),
        (b"\x04\x22\x4d\x18", "LZ4-compressed data", UNPACK),
        (b"BZh", "bzip2-compressed data", UNPACK),
        (b"\x27\x05\x19\x56", "a U-Boot image", "unpack the kernel in it"),
        (b"\xd0\x0d\xfe\xed", "a device tree or a U-Boot FIT image", "unpack the kernel in it"),
        (b"QFI\xfb", "a qcow2 disk image", "give it by --disk, and a kernel by --kernel"),
    ];
    match () {
        () if has(0, b"\x7fELF") => Found::Elf,
        () if has(0, b"\x1f\x8b") => Found::Gzip,
        () if has(56, b"RSC\x05") => Found::Other("a RISC-V kernel", KernelError::FORMATS),
        () if has(0, b"MZ") => Found::Other("an EFI application that is no Linux kernel", KernelError::FORMATS),
        () => OTHERS
            .iter()
            .find(|(magic, ..)| has(0, magic))
            .map_or(Found::Unknown, |&(_, what, mend)| Found::Other(what, mend)),
    }
}

/// Length of a file in bytes.
fn length<S: Seek>(source: &mut S) -> Result<u64, KernelError> {
    match source.seek(SeekFrom::End(0))? {
        0 => Err(KernelError::Empty),
        length => Ok(length),
    }
}

/// Length of an initramfs in bytes.
///
/// # Errors
/// If the file can't be read or is empty.
pub fn initrd_length<S: Seek>(initrd: &mut S) -> Result<u64, LoadError> {
    match length(initrd) {
        Ok(length) => Ok(length),
        Err(KernelError::Io(error)) => Err(LoadError::Initrd(error)),
        Err(_) => Err(LoadError::InitrdEmpty),
    }
}

/// Reads `count` bytes from `offset` of a file straight into guest memory at `gpa`.
pub(crate) fn copy_in<M, S>(memory: &M, gpa: u64, source: &mut S, offset: u64, count: u64) -> Result<(), LoadError>
where
    M: GuestMemory + ?Sized,
    S: Source,
{
    source.seek(SeekFrom::Start(offset)).map_err(KernelError::Io)?;
    let bytes = usize::try_from(count).map_err(|_| KernelError::Malformed("a part beyond the host's address size"))?;
    check_range(memory, AddressRange { base: gpa, size: count })?;
    memory.read_exact_volatile_from(GuestAddress(gpa), source, bytes).map_err(|error| match error {
        // The file had its length when it was looked at.
        GuestMemoryError::PartialBuffer { completed, .. } => {
            KernelError::Truncated { needs: offset + count, has: offset + completed as u64 }.into()
        }
        error => error.into(),
    })
}

/// That all of `region` is guest memory.
pub(crate) fn check_range<M: GuestMemory + ?Sized>(memory: &M, region: AddressRange) -> Result<(), LoadError> {
    let fits = usize::try_from(region.size)
        .is_ok_and(|size| memory.check_range(GuestAddress(region.base), size, Permissions::ReadWrite));
    if fits { Ok(()) } else { Err(LoadError::NoMemoryAt { base: region.base, size: region.size }) }
}

/// Writes zeros to `region`.
pub(crate) fn zero<M: GuestMemory + ?Sized>(memory: &M, region: AddressRange) -> Result<(), LoadError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    check_range(memory, region)?;
    let mut at = region.base;
    while at < region.end() {
        let count = (region.end() - at).min(ZEROS.len() as u64);
        memory.write_slice(&ZEROS[..count as usize], GuestAddress(at))?;
        at += count;
    }
    Ok(())
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "samples_test.rs"]
pub(crate) mod samples;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "kernel_test.rs"]
pub(crate) mod test;
