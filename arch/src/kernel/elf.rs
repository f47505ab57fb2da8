//! ELF64 kernels for x86_64: entered by Linux's 64-bit protocol or by PVH.

use skep_memory::vm_memory::GuestMemory;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Format, KernelError, LoadError, Reader, Source, copy_in, zero};
use crate::layout::AddressRange;

const CLASS_64: u8 = 2;
const DATA_LITTLE: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERP: u32 = 3;
const SEGMENT_NOTE: u32 = 4;
/// Xen's note with the address of the 32-bit PVH entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// More program headers than any kernel has.
const SEGMENTS_MAX: u16 = 128;
/// More bytes of notes than any kernel has.
const NOTES_MAX: u64 = 1 << 16;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct FileHeader {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct NoteHeader {
    namesz: U32,
    descsz: U32,
    kind: U32,
}

/// A part of the file that belongs into memory.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    filesz: u64,
    memory: AddressRange,
}

/// An ELF kernel's segments and entry points.
#[derive(Clone, Debug)]
pub struct Elf {
    entry: u64,
    pvh_entry: Option<u32>,
    segments: Vec<Segment>,
}

impl Elf {
    pub(super) fn parse<S: Source>(file: &mut Reader<'_, S>) -> Result<Self, KernelError> {
        let mut header = FileHeader::new_zeroed();
        file.read_at(0, header.as_mut_bytes())?;
        check_header(&header)?;
        let count = header.phnum.get();
        if count > SEGMENTS_MAX {
            return Err(KernelError::Malformed("more than 128 ELF program headers"));
        }
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for index in 0..u64::from(count) {
            let offset = index * size_of::<ProgramHeader>() as u64;
            let offset =
                header.phoff.get().checked_add(offset).ok_or(KernelError::Malformed("ELF headers beyond 2^64"))?;
            let mut segment = ProgramHeader::new_zeroed();
            file.read_at(offset, segment.as_mut_bytes())?;
            match segment.kind.get() {
                SEGMENT_INTERP => return unsupported("a dynamically linked program", "take a kernel (vmlinux)"),
                SEGMENT_LOAD => segments.extend(load_segment(&segment, file.length)?),
                SEGMENT_NOTE if pvh_entry.is_none() => pvh_entry = find_pvh_entry(file, &segment)?,
                _ => {}
            }
        }
        if segments.is_empty() {
            return Err(KernelError::Malformed("an ELF file with nothing to load"));
        }
        let kernel = Self { entry: header.entry.get(), pvh_entry, segments };
        let within = |address| kernel.segments.iter().any(|segment| segment.memory.contains(address));
        if !within(pvh_entry.map_or(kernel.entry, u64::from)) {
            return Err(KernelError::Malformed("an ELF entry point outside the physical addresses that are loaded"));
        }
        Ok(kernel)
    }

    /// With a PVH entry point or without.
    pub fn format(&self) -> Format {
        if self.pvh_entry.is_some() { Format::ElfPvh } else { Format::Elf }
    }

    /// Physical address of the 32-bit PVH entry point, if the file has one.
    pub fn pvh_entry(&self) -> Option<u32> {
        self.pvh_entry
    }

    /// Physical address of the ELF entry point, which Linux's 64-bit protocol uses; `None` if it is not a loaded
    /// physical address, so that the kernel can be entered by PVH only.
    pub fn entry(&self) -> Option<u64> {
        self.segments.iter().any(|segment| segment.memory.contains(self.entry)).then_some(self.entry)
    }

    /// The memory from the first segment to the end of the last.
    pub fn region(&self) -> AddressRange {
        let base = self.segments.iter().map(|segment| segment.memory.base).min().unwrap_or_default();
        let end = self.segments.iter().map(|segment| segment.memory.end()).max().unwrap_or_default();
        AddressRange::between(base, end.max(base))
    }

    /// Reads the segments to their physical addresses. What a segment has in memory beyond the file is zeroed, unless
    /// `memory_is_zero` says that all memory is zero already: writing zeros would make the host allocate it.
    ///
    /// # Errors
    /// If there is no guest memory or the file can't be read.
    pub fn load<M, S>(&self, source: &mut S, memory: &M, memory_is_zero: bool) -> Result<(), LoadError>
    where
        M: GuestMemory + ?Sized,
        S: Source,
    {
        for segment in &self.segments {
            copy_in(memory, segment.memory.base, source, segment.offset, segment.filesz)?;
            if !memory_is_zero {
                zero(memory, AddressRange::between(segment.memory.base + segment.filesz, segment.memory.end()))?;
            }
        }
        Ok(())
    }
}

fn unsupported<T>(what: &str, mend: &'static str) -> Result<T, KernelError> {
    Err(KernelError::Unsupported { what: what.to_owned(), mend })
}

fn check_header(header: &FileHeader) -> Result<(), KernelError> {
    match header.machine.get() {
        MACHINE_X86_64 => {}
        MACHINE_386 => return unsupported("a 32-bit x86 ELF file", "take an x86_64 (amd64) kernel"),
        MACHINE_AARCH64 => {
            return unsupported(
                "an aarch64 ELF file",
                "take the kernel's Image (arch/arm64/boot/Image), or make it by `objcopy -O binary vmlinux Image`",
            );
        }
        _ => return unsupported("an ELF file of another architecture", KernelError::FORMATS),
    }
    if header.class != CLASS_64 || header.data != DATA_LITTLE {
        return unsupported("an ELF file that is not 64-bit and little-endian", "take an x86_64 (amd64) kernel");
    }
    if ![TYPE_EXEC, TYPE_DYN].contains(&header.kind.get()) {
        return unsupported("an ELF object or core file", "take the linked kernel (vmlinux)");
    }
    if usize::from(header.phentsize.get()) != size_of::<ProgramHeader>() {
        return Err(KernelError::Malformed("ELF program headers of a wrong size"));
    }
    Ok(())
}

/// `None` for a segment that takes no memory.
fn load_segment(header: &ProgramHeader, length: u64) -> Result<Option<Segment>, KernelError> {
    let (offset, filesz, memsz) = (header.offset.get(), header.filesz.get(), header.memsz.get());
    if filesz > memsz {
        return Err(KernelError::Malformed("an ELF segment larger in the file than in memory"));
    }
    if memsz == 0 {
        return Ok(None);
    }
    let base = header.paddr.get();
    base.checked_add(memsz).ok_or(KernelError::Malformed("an ELF segment beyond 2^64"))?;
    let needs = offset.checked_add(filesz).ok_or(KernelError::Malformed("an ELF segment beyond 2^64"))?;
    if filesz > 0 && needs > length {
        return Err(KernelError::Truncated { needs, has: length });
    }
    Ok(Some(Segment { offset, filesz, memory: AddressRange::new(base, memsz) }))
}

/// Looks through one segment of notes.
fn find_pvh_entry<S: Source>(file: &mut Reader<'_, S>, segment: &ProgramHeader) -> Result<Option<u32>, KernelError> {
    let size = segment.filesz.get();
    if size > NOTES_MAX {
        return Err(KernelError::Malformed("more than 64 KiB of ELF notes"));
    }
    let mut notes = vec![0; size as usize];
    file.read_at(segment.offset.get(), &mut notes)?;
    let align = if segment.align.get() == 8 { 8 } else { 4 };
    let mut rest = &notes[..];
    while let Ok((header, after)) = NoteHeader::ref_from_prefix(rest) {
        let padded = |size: U32| (size.get() as usize).next_multiple_of(align);
        let Some((name, after)) = after.split_at_checked(padded(header.namesz)) else { break };
        let desc_size = header.descsz.get() as usize;
        let Some(desc) = after.get(..desc_size) else { break };
        if header.kind.get() == NOTE_PHYS32_ENTRY && name.starts_with(b"Xen\0") {
            return match desc {
                // A 64-bit kernel's note holds a 64-bit word as often as a 32-bit one.
                [a, b, c, d] | [a, b, c, d, 0, 0, 0, 0] => Ok(Some(u32::from_le_bytes([*a, *b, *c, *d]))),
                _ => Err(KernelError::Malformed("a PVH entry point that is no 32-bit address")),
            };
        }
        rest = after.get(padded(header.descsz)..).unwrap_or_default();
    }
    Ok(None)
}
