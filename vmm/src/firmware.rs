//! The files of firmware: its code, and the variables that it stores.
//!
//! A file of variables is this machine's alone. It is locked while the machine runs, and made from a template where it is not there: as a whole, or not
//! at all. How it is kept whole while the guest writes it is told by [`skep_chipset::flash`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FallocateFlags, FlockOperation, RenameFlags, fallocate, flock, renameat_with};
use rustix::io::Errno;
use skep_arch::aarch64;
use skep_arch::x86_64;
use skep_block::Locking;
use skep_block::image::sync_name;
use skep_chipset::flash::{BlockState, FlashState, Geometry, mend};
use skep_config::{ArchKind, FirmwareVars};
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, PAGE_SIZE, RamOptions, Region, RegionKind, is_zero};

use crate::Error;
use crate::boot::open;
use crate::leftover::Leftover;
use crate::state::{Records, Snapshot, SnapshotError};

#[cfg(test)]
#[path = "firmware_test.rs"]
pub(crate) mod test;

/// Firmware, opened and read.
#[derive(Debug)]
pub struct FirmwareFiles {
    /// Its path.
    pub path: PathBuf,
    /// What can't be written: all of it, or what follows its own variables.
    pub code: Arc<Backing>,
    /// The bank of flash with its variables, if it has any.
    pub vars: Option<Variables>,
    /// A kernel that it is handed.
    pub kernel: Option<File>,
    /// The kernel's initramfs.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: Vec<u8>,
}

/// Variables, in a bank of flash.
#[derive(Debug)]
pub struct Variables {
    /// What the bank holds.
    pub content: Arc<Backing>,
    /// Where it lasts. Without, it is forgotten at the machine's end.
    pub file: Option<File>,
}

/// Sizes of an architecture's flash.
struct Flash {
    /// A bank has so many bytes whatever is in it; else as many as its file.
    bank: Option<u64>,
    /// All banks together.
    most: u64,
}

fn flash(arch: ArchKind) -> Flash {
    match arch {
        ArchKind::X86_64 => Flash { bank: None, most: x86_64::layout::FLASH_SPACE.size },
        ArchKind::Aarch64 => {
            Flash { bank: Some(aarch64::layout::FLASH_CODE.size), most: aarch64::layout::FLASH_CODE.size }
        }
    }
}

const CODE: &str = "firmware";
const VARS: &str = "firmware's variables";

fn failed(role: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { role, path: path.clone(), source }
}

fn wrong(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl FirmwareFiles {
    /// Reads firmware, which is handed `kernel`, and its variables. Its file of variables is made where it is not there, and locked; or not looked at ([`Locking::Never`]).
    pub(crate) fn open(
        path: &Path,
        vars: Option<&FirmwareVars>,
        arch: ArchKind,
        lock: Locking,
        kernel: Option<File>,
    ) -> Result<Self, Error> {
        let mut file = open(CODE, path)?;
        let image = read_code(&mut file, arch).map_err(failed(CODE, path))?;
        if kernel.is_some() && !image.boots_kernels {
            let text = "it is no UEFI firmware, and would not look at the kernel\n  try: the kernel without `--firmware`, or UEFI firmware";
            return Err(failed(CODE, path)(wrong(text)));
        }
        let vars = match vars {
            Some(vars) if lock != Locking::Never => Some(open_vars(vars, &Beside { path, image: &image, arch }, lock)?),
            // Not looked at.
            Some(_) => None,
            None => forgetful(image.own_vars.as_deref(), arch).map_err(failed(CODE, path))?,
        };
        let path = path.to_path_buf();
        Ok(Self { path, code: image.code, vars, kernel, initrd: None, cmdline: Vec::new() })
    }
}

/// What a file of firmware holds.
struct FirmwareImage {
    code: Arc<Backing>,
    /// A PC's firmware in one file begins with its variables.
    own_vars: Option<Vec<u8>>,
    /// What can't be written begins with a firmware volume, as edk2's does.
    is_volume: bool,
    /// It is UEFI firmware, which looks for a kernel in fw_cfg. A BIOS boots what it finds on disks and networks, and what option ROMs bring.
    boots_kernels: bool,
}

fn read_code(file: &mut File, arch: ArchKind) -> io::Result<FirmwareImage> {
    let Flash { bank, most } = flash(arch);
    let size = file.metadata()?.len();
    if size == 0 || !size.is_multiple_of(PAGE_SIZE) || size > most {
        let most = most >> 20;
        return Err(wrong(format!(
            "it has {size} bytes, and firmware for {arch} has a multiple of 4096, {most} MiB at most"
        )));
    }
    let mut start = vec![0; (size as usize).min(VOLUME_HEADER)];
    file.read_exact(&mut start)?;
    let own =
        volume(&start).filter(|volume| arch == ArchKind::X86_64 && volume.has_variables).map(|volume| volume.size);
    if let Some(own) = own.filter(|own| *own == 0 || *own > size || !own.is_multiple_of(PAGE_SIZE)) {
        return Err(wrong(format!(
            "it begins with a volume of variables of {own} bytes, and has {size}: it is damaged, or not all of it is there"
        )));
    }
    // One that has nothing else is no firmware.
    let own = own.filter(|own| *own < size);
    file.seek(SeekFrom::Start(0))?;
    let own_vars = match own {
        Some(size) => {
            let mut bytes = vec![0; size as usize];
            file.read_exact(&mut bytes)?;
            Some(bytes)
        }
        None => None,
    };
    let rest = size - own.unwrap_or(0);
    let code = backing(bank.unwrap_or(rest))?;
    let mut seen = Seen::default();
    fill(&code, file, rest, |offset, bytes| seen.look(offset, rest, bytes))?;
    seen.check(arch)?;
    let boots_kernels = arch == ArchKind::Aarch64 || own.is_some() || seen.has_volume;
    Ok(FirmwareImage { code, own_vars, is_volume: seen.is_volume, boots_kernels })
}

fn backing(size: u64) -> io::Result<Arc<Backing>> {
    Backing::new(size, &RamOptions::default()).map(Arc::new).map_err(|e| io::Error::other(e.to_string()))
}

/// Reads `size` bytes of `file` into memory that is zero; pages of zeroes stay untouched.
fn fill(into: &Arc<Backing>, file: &mut impl Read, size: u64, mut look: impl FnMut(u64, &[u8])) -> io::Result<()> {
    const PIECE: u64 = 256 << 10;
    let failed = |e: String| io::Error::other(e);
    let region = Region::new("firmware", RegionKind::ReadOnly, 0, into.size(), into.clone(), 0);
    let region = region.map_err(|e| failed(e.to_string()))?;
    let mut piece = vec![0; PIECE as usize];
    let mut offset = 0;
    while offset < size {
        let take = (size - offset).min(PIECE) as usize;
        let bytes = piece.get_mut(..take).unwrap_or_default();
        file.read_exact(bytes)?;
        for (at, page) in (offset..).step_by(PAGE_SIZE as usize).zip(bytes.chunks(PAGE_SIZE as usize)) {
            if !is_zero(page) {
                region.write_slice(page, MemoryRegionAddress(at)).map_err(|e| failed(e.to_string()))?;
            }
        }
        look(offset, bytes);
        offset += take as u64;
    }
    Ok(())
}

/// What tells which architecture's firmware a file is.
#[derive(Default)]
struct Seen {
    x86_64: bool,
    aarch64: bool,
    /// There is a firmware volume, and it begins with one.
    has_volume: bool,
    is_volume: bool,
    first: [u8; 4],
    /// What a PC's processor finds at its reset vector.
    last: [u8; 16],
}

impl Seen {
    fn look(&mut self, offset: u64, size: u64, bytes: &[u8]) {
        if offset == 0 {
            bytes.iter().zip(&mut self.first).for_each(|(byte, first)| *first = *byte);
        }
        let is_volume = |page: &[u8]| volume(page).is_some();
        self.has_volume = self.has_volume || bytes.chunks(PAGE_SIZE as usize).any(is_volume);
        self.is_volume |= offset == 0 && is_volume(bytes);
        if offset + bytes.len() as u64 == size {
            let tail = bytes.get(bytes.len().saturating_sub(16)..).unwrap_or_default();
            tail.iter().zip(&mut self.last).for_each(|(byte, last)| *last = *byte);
        }
        if self.x86_64 || self.aarch64 {
            return;
        }
        // Headers of UEFI images (PI 1.8, section I.3.15; PE/COFF), of which firmware's first ones are not compressed: the machine follows the signature.
        for header in bytes.windows(6).step_by(4) {
            let machine = match header {
                [b'V', b'Z', low, high, _, 10..=13] | [b'P', b'E', 0, 0, low, high] => {
                    u16::from_le_bytes([*low, *high])
                }
                _ => continue,
            };
            match machine {
                0x014c | 0x8664 => self.x86_64 = true,
                0xaa64 => self.aarch64 = true,
                _ => {}
            }
        }
    }

    fn check(&self, arch: ArchKind) -> io::Result<()> {
        let other = |other: ArchKind| Err(wrong(format!("it is for {other} guests, and this machine is {arch}")));
        match arch {
            ArchKind::X86_64 if self.aarch64 && !self.x86_64 => other(ArchKind::Aarch64),
            ArchKind::Aarch64 if self.x86_64 && !self.aarch64 => other(ArchKind::X86_64),
            ArchKind::X86_64 if self.last.iter().all(|byte| *byte == self.last[0]) => {
                Err(wrong("it is no firmware of a PC: there is no code at the reset vector, 16 bytes before its end"))
            }
            // It begins with a branch (DDI 0487, C6.2.26).
            ArchKind::Aarch64 if u32::from_le_bytes(self.first) >> 26 != 0b000101 => {
                Err(wrong("it is no aarch64 firmware: there is no code at its beginning"))
            }
            _ => Ok(()),
        }
    }
}

/// A firmware volume (PI 1.8, volume 3, section 3.2.1).
struct Volume {
    size: u64,
    /// It is one of variables (edk2's NV data volume).
    has_variables: bool,
}

const VOLUME_HEADER: usize = 56;
/// fff12b8d-7696-4c8b-a985-2747075b4f50.
const NV_DATA: [u8; 16] =
    [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50];

fn volume(bytes: &[u8]) -> Option<Volume> {
    let signed = bytes.get(40..44)? == b"_FVH";
    let size = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
    signed.then_some(Volume { size, has_variables: bytes.get(16..32)? == NV_DATA })
}

/// Variables that are forgotten: the firmware's own, or an empty bank.
fn forgetful(own: Option<&[u8]>, arch: ArchKind) -> io::Result<Option<Variables>> {
    let content = match (own, flash(arch).bank) {
        (Some(own), _) => {
            let content = backing(own.len() as u64)?;
            fill(&content, &mut &own[..], own.len() as u64, |_, _| ())?;
            content
        }
        (None, Some(bank)) => backing(bank)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(Variables { content, file: None }))
}

/// The firmware that variables are for.
struct Beside<'a> {
    path: &'a Path,
    image: &'a FirmwareImage,
    arch: ArchKind,
}

impl Beside<'_> {
    /// Refuses variables of another size than the firmware has. What edk2 builds for a PC's flash is one image of a power of two bytes, which ends at 4 GiB, begins with the
    /// variables and has its code behind them; Debian and others give it away in two files. Code with variables of another build looks for its own at an
    /// address where there are none, and what a guest sets is lost.
    fn check(&self, size: u64) -> io::Result<()> {
        let code = self.image.code.size();
        let wanted = match (flash(self.arch).bank, &self.image.own_vars) {
            (Some(bank), _) => Some(bank),
            (None, Some(own)) => Some(own.len() as u64),
            (None, None) if self.image.is_volume => Some(code.next_power_of_two() - code).filter(|rest| *rest > 0),
            (None, None) => None,
        };
        match wanted {
            Some(wanted) if wanted != size => {
                let name = self.path.file_name().unwrap_or_default().to_string_lossy();
                let of = format!("`{name}`");
                Err(wrong(match (flash(self.arch).bank, &self.image.own_vars) {
                    (None, None) => format!(
                        "it has {size} bytes, and should have {wanted}: {of} has {code}, and is one half of an image of {}\n  try: another FILE, made from the template that came with {of}{} by \
                         `--firmware-vars FILE,template=TEMPLATE`",
                        code + wanted,
                        self.template().map_or_else(String::new, |template| format!(" (`{template}`)"))
                    ),
                    _ => format!("it has {size} bytes, and should have {wanted}\n  {MEND}"),
                }))
            }
            _ => Ok(()),
        }
    }

    /// The template that distributions name like this code.
    fn template(&self) -> Option<String> {
        let name = self.path.file_name()?.to_str()?;
        let path = self.path.with_file_name(name.replacen("CODE", "VARS", 1).replacen("code", "vars", 1));
        (path != self.path && path.is_file()).then(|| path.display().to_string())
    }
}

const MEND: &str =
    "try: another FILE, made from the firmware's own template by `--firmware-vars FILE,template=TEMPLATE`";

fn open_vars(vars: &FirmwareVars, firmware: &Beside<'_>, lock: Locking) -> Result<Variables, Error> {
    let arch = firmware.arch;
    let path = &vars.file;
    let failed = failed(VARS, path);
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(vars, firmware)?;
            open().map_err(&failed)?
        }
        opened => opened.map_err(&failed)?,
    };
    if !file.metadata().map_err(&failed)?.is_file() {
        return Err(failed(wrong("it is no regular file")));
    }
    if lock == Locking::Now {
        hold_vars(&file, true).map_err(&failed)?;
        if let Some(bank) = flash(arch).bank
            && mend(&file, bank, Geometry::VIRT).map_err(&failed)?
        {
            tracing::info!("`{}` is mended: a process has ended while it wrote a block of it", path.display());
        }
    }
    let content = read_vars(&mut file, firmware).map_err(&failed)?;
    if lock == Locking::Now {
        reserve(&file, path).map_err(&failed)?;
    }
    Ok(Variables { content, file: Some(file) })
}

/// Locks a file of variables, or lets another process have it.
pub(crate) fn hold_vars(file: &File, held: bool) -> io::Result<()> {
    let operation = if held { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::Unlock };
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => {
            let text = "another machine uses it\n  try: a file of its own for each, by `--firmware-vars FILE,template=TEMPLATE`";
            io::Error::new(io::ErrorKind::ResourceBusy, text)
        }
        errno => errno.into(),
    })
}

/// Has the host keep room for the volume of variables, as it says itself how large it is, so that the guest's first write to a part of it does not fail for want of
/// it. Not all file systems can. Of a bank that is empty nothing is known: firmware makes its volume by writing all of it.
fn reserve(file: &File, path: &Path) -> io::Result<()> {
    let mut start = [0; VOLUME_HEADER];
    file.read_exact_at(&mut start, 0)?;
    let Some(volume) = volume(&start).filter(|volume| volume.size > 0) else { return Ok(()) };
    let size = volume.size.min(file.metadata()?.len());
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(Errno::NOSPC | Errno::DQUOT) => tracing::warn!(
            "the host has no room for all of `{}`'s variables, {size} bytes: those fail to be set for which it has none",
            path.display()
        ),
        Err(error) => tracing::debug!(%error, "no room is kept for firmware's variables"),
        Ok(()) => {}
    }
    Ok(())
}

/// Makes the file of variables: whole, or not at all.
fn make(vars: &FirmwareVars, firmware: &Beside<'_>) -> Result<(), Error> {
    const TEMPLATE: &str = "the template of firmware's variables";
    let path = &vars.file;
    let failed_here = failed(VARS, path);
    let (mut source, size): (Box<dyn Read>, u64) = match (&vars.template, &firmware.image.own_vars) {
        (Some(template), _) => {
            let file = open(TEMPLATE, template)?;
            let failed = failed(TEMPLATE, template);
            let size = file.metadata().map_err(&failed)?.len();
            firmware.check(size).map_err(&failed)?;
            (Box::new(file), size)
        }
        (None, Some(own)) => (Box::new(&own[..]), own.len() as u64),
        (None, None) => {
            let text = "it is not there\n  try: `--firmware-vars FILE,template=TEMPLATE`, with the variables that came with the firmware";
            return Err(failed_here(io::Error::new(io::ErrorKind::NotFound, text)));
        }
    };
    let made = make_whole(path, |file| {
        file.set_len(size)?;
        let mut piece = vec![0; 64 << 10];
        let mut offset = 0;
        while offset < size {
            let take = (size - offset).min(piece.len() as u64) as usize;
            let bytes = piece.get_mut(..take).unwrap_or_default();
            source.read_exact(bytes)?;
            // Most of an arm64 template is empty.
            if !bytes.chunks(PAGE_SIZE as usize).all(is_zero) {
                file.seek(SeekFrom::Start(offset))?;
                file.write_all(bytes)?;
            }
            offset += take as u64;
        }
        Ok(())
    });
    match made {
        // One that somebody else has made meanwhile stays.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map(Leftover::keep).map_err(failed_here),
    }
}

/// Makes the file at `path`, at which nothing may be, as a whole or not at all: `fill` writes it under another name beside, which is all that a process leaves
/// that is killed meanwhile. The file goes again with what this answers, unless it is kept.
fn make_whole(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Leftover> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    let _goes = Leftover::file(&new)?;
    fill(&mut file)?;
    file.sync_all()?;
    match renameat_with(CWD, &new, CWD, path, RenameFlags::NOREPLACE) {
        // A file system that can't say so.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => place(&new, path)?,
        renamed => renamed?,
    }
    let made = Leftover::file(path)?;
    sync_name(path)?;
    Ok(made)
}

/// Gives a file the name `path` if it is free, by what any file system can. On one without links, a process that is killed at that moment leaves an empty file.
fn place(new: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(new, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            // It has no links either: the name is taken first.
            File::create_new(path)?;
            let taken = Leftover::file(path)?;
            fs::rename(new, path)?;
            taken.keep();
            Ok(())
        }
        linked => linked,
    }
}

/// Makes a file of variables, at which nothing may be, of what a snapshot holds of them. It goes again with what this answers, unless it is kept.
///
/// # Errors
/// [`Error::File`], and what of the snapshot does not hold.
pub fn make_saved(path: &Path, snapshot: &Snapshot) -> Result<Leftover, Error> {
    make_of(path, &snapshot.records)
}

/// Makes it of what records hold, the same way.
pub(crate) fn make_of(path: &Path, records: &Records) -> Result<Leftover, Error> {
    let flash: FlashState = records.open("board/flash")?;
    let saved = flash.content.ok_or(SnapshotError::NoVariables)?;
    let made = make_whole(path, |file| {
        file.set_len(saved.size)?;
        for BlockState { number, bytes } in &saved.blocks {
            let whole = bytes.repeat(saved.block as usize / bytes.len().max(1));
            file.write_all_at(&whole, u64::from(*number) * u64::from(saved.block))?;
        }
        Ok(())
    });
    made.map_err(failed(VARS, path))
}

fn read_vars(file: &mut File, firmware: &Beside<'_>) -> io::Result<Arc<Backing>> {
    let Flash { bank, most } = flash(firmware.arch);
    let size = file.metadata()?.len();
    let mut start = [0; VOLUME_HEADER];
    let header = (size >= VOLUME_HEADER as u64).then(|| file.read_exact(&mut start)).transpose()?;
    let volume = header.and_then(|()| volume(&start));
    let wanted = match &volume {
        // Empty, or with what firmware has put there.
        _ if bank.is_some() || firmware.image.own_vars.is_some() => size,
        Some(volume) if volume.size > 0 => volume.size,
        _ => return Err(wrong(format!("it holds no variables of UEFI firmware\n  {MEND}"))),
    };
    firmware.check(size)?;
    if size != wanted || !size.is_multiple_of(PAGE_SIZE) || size > most {
        return Err(wrong(format!("it has {size} bytes, and should have {wanted}\n  {MEND}")));
    }
    let content = backing(size)?;
    file.seek(SeekFrom::Start(0))?;
    fill(&content, file, size, |_, _| ())?;
    Ok(content)
}
