//! The files that a guest boots from: a kernel's; firmware's are in [`crate::firmware`].

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use skep_arch::kernel::{Kernel, KernelError};
use skep_block::Locking;
use skep_config::{ArchKind, BootSource, open_regular};
use skep_memory::vm_memory::bitmap::BitmapSlice;
use skep_memory::vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::Error;
use crate::firmware::FirmwareFiles;

/// Where a kernel's bytes come from.
#[derive(Debug)]
pub enum KernelFile {
    /// A file of the host.
    File(File),
    /// A guest that is built into the program.
    Embedded(Cursor<&'static [u8]>),
}

impl Read for KernelFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Embedded(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for KernelFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::File(file) => file.seek(to),
            Self::Embedded(bytes) => bytes.seek(to),
        }
    }
}

impl ReadVolatile for KernelFile {
    fn read_volatile<B: BitmapSlice>(&mut self, into: &mut VolatileSlice<'_, B>) -> Result<usize, VolatileMemoryError> {
        match self {
            Self::File(file) => file.read_volatile(into),
            Self::Embedded(bytes) => bytes.read_volatile(into),
        }
    }
}

/// What a guest boots from, opened and checked as far as the files alone allow.
#[derive(Debug)]
pub enum BootFiles {
    /// A kernel, without firmware.
    Kernel(Box<KernelFiles>),
    /// Firmware.
    Firmware(FirmwareFiles),
}

/// A kernel and what it is given.
#[derive(Debug)]
pub struct KernelFiles {
    /// The kernel's path, or what stands for it.
    pub path: PathBuf,
    /// The kernel's headers.
    pub kernel: Kernel,
    /// The kernel's bytes.
    pub file: KernelFile,
    /// The initramfs.
    pub initrd: Option<File>,
    /// The kernel's command line.
    pub cmdline: Vec<u8>,
    /// A device tree in place of the machine's own (aarch64).
    pub dtb: Option<Vec<u8>>,
}

/// Larger files are no device trees.
const DTB_MAX: u64 = 2 << 20;

impl BootFiles {
    /// Opens the files that the configuration of a guest of architecture `arch` names. A file of firmware's variables is made where it is not there,
    /// and locked; or not looked at ([`Locking::Never`]).
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Kernel`].
    pub fn open(source: &BootSource<'_>, arch: ArchKind, lock: Locking) -> Result<Self, Error> {
        match *source {
            BootSource::Kernel { kernel, initrd, cmdline, dtb } => {
                KernelFiles::open(kernel, initrd, cmdline, dtb).map(|files| Self::Kernel(Box::new(files)))
            }
            BootSource::Firmware { code, vars, kernel, initrd, cmdline } => {
                let kernel = kernel.map(|path| open_for_firmware(path, arch)).transpose()?;
                let mut files = FirmwareFiles::open(code, vars, arch, lock, kernel)?;
                files.initrd = initrd.map(|path| open("initramfs", path)).transpose()?;
                files.cmdline = cmdline.as_bytes().to_vec();
                Ok(Self::Firmware(files))
            }
        }
    }

    /// A guest that is built into the program.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn embedded(name: &'static str, image: &'static [u8], cmdline: &str) -> Result<Self, Error> {
        KernelFiles::embedded(name, image, cmdline).map(|files| Self::Kernel(Box::new(files)))
    }

    /// The kernel's files, or the firmware's.
    pub(crate) fn split(self) -> (Option<Box<KernelFiles>>, Option<FirmwareFiles>) {
        match self {
            Self::Kernel(files) => (Some(files), None),
            Self::Firmware(files) => (None, Some(files)),
        }
    }
}

impl KernelFiles {
    fn open(kernel: &Path, initrd: Option<&Path>, cmdline: &str, dtb: Option<&Path>) -> Result<Self, Error> {
        let (path, initrd) = (kernel.to_path_buf(), initrd.map(|path| open("initramfs", path)).transpose()?);
        let mut file = KernelFile::File(open("kernel", kernel)?);
        let kernel = Kernel::probe(&mut file).map_err(|source| Error::Kernel { path: path.clone(), source })?;
        let dtb = dtb.map(read_dtb).transpose()?;
        Ok(Self { path, kernel, file, initrd, cmdline: cmdline.as_bytes().to_vec(), dtb })
    }

    fn embedded(name: &'static str, image: &'static [u8], cmdline: &str) -> Result<Self, Error> {
        let path = PathBuf::from(name);
        let mut file = KernelFile::Embedded(Cursor::new(image));
        let kernel = Kernel::probe(&mut file).map_err(|source| Error::Kernel { path: path.clone(), source })?;
        Ok(Self { path, kernel, file, initrd: None, cmdline: cmdline.as_bytes().to_vec(), dtb: None })
    }
}

/// A kernel that firmware is to boot: whatever is an EFI application to it, but no kernel that is known to be for the other architecture.
fn open_for_firmware(path: &Path, arch: ArchKind) -> Result<File, Error> {
    let mut file = open("kernel", path)?;
    let failed = |source| Error::Kernel { path: path.to_path_buf(), source };
    match Kernel::probe(&mut file) {
        Ok(kernel) if kernel.info().architecture != arch => {
            Err(failed(KernelError::WrongArchitecture { kernel: kernel.info().architecture.name(), machine: arch }))
        }
        Err(source @ (KernelError::Io(_) | KernelError::Empty)) => Err(failed(source)),
        _ => Ok(file),
    }
}

pub(crate) fn open(role: &'static str, path: &Path) -> Result<File, Error> {
    open_regular(path).map_err(|source| Error::File { role, path: path.to_path_buf(), source })
}

fn read_dtb(path: &Path) -> Result<Vec<u8>, Error> {
    const FDT_MAGIC: &[u8] = &[0xd0, 0x0d, 0xfe, 0xed];
    let failed = |source| Error::File { role: "device tree", path: path.to_path_buf(), source };
    let mut bytes = Vec::new();
    open("device tree", path)?.take(DTB_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if !bytes.starts_with(FDT_MAGIC) || bytes.len() as u64 > DTB_MAX {
        let text = "it is no flattened device tree of at most 2 MiB (compile it with dtc -O dtb)";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
    }
    Ok(bytes)
}
