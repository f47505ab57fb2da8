//! What can be wrong with a kernel, and with putting one into memory.

use std::io;

use skep_hypervisor::ArchKind;
use skep_memory::vm_memory::GuestMemoryError;
use thiserror::Error;

use crate::layout::MIB;

/// Why a file is no kernel that can be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file can't be read.
    #[error("the file can't be read: {0}")]
    Io(#[from] io::Error),
    /// The file has no content.
    #[error("the file is empty")]
    Empty,
    /// The file is something else.
    #[error("the file is {what}, not a kernel; {mend}")]
    NotAKernel {
        /// What it is.
        what: &'static str,
        /// What would do.
        mend: &'static str,
    },
    /// The file ends before what its own headers say.
    #[error("the kernel is truncated: it has {has} bytes and needs {needs}; copy or build it again")]
    Truncated {
        /// Bytes needed at least.
        needs: u64,
        /// Bytes there are.
        has: u64,
    },
    /// A compressed kernel whose stream is broken or ends early.
    #[error("the kernel's compressed data is broken or truncated ({0}); copy or build it again")]
    Compressed(io::Error),
    /// The file contradicts itself.
    #[error("the kernel is malformed: {0}; copy or build it again")]
    Malformed(&'static str),
    /// A kernel of a kind that is not supported.
    #[error("the kernel is {what}, which is not supported; {mend}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What would do.
        mend: &'static str,
    },
    /// A kernel for another machine.
    #[error("the kernel is for {kernel}, and the machine is {machine}; take a kernel for {machine}")]
    WrongArchitecture {
        /// Whose kernel it is.
        kernel: &'static str,
        /// The machine to boot it.
        machine: ArchKind,
    },
}

impl KernelError {
    /// What would do where the file is nothing known.
    pub(super) const FORMATS: &'static str =
        "x86_64 boots bzImage and ELF, aarch64 boots Image, Image.gz and EFI zboot";

    /// That the kernel is of `kernel`'s architecture, which is not `machine`.
    pub(crate) fn wrong(kernel: ArchKind, machine: ArchKind) -> Self {
        Self::WrongArchitecture { kernel: kernel.name(), machine }
    }
}

/// Why a kernel can't be put into a machine's memory.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel itself.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel needs more memory than the machine has where it must stand.
    #[error(
        "the kernel needs memory up to {}M, and the machine's ends at {}M; give it more memory",
        needs.div_ceil(MIB), has / MIB
    )]
    KernelTooLarge {
        /// First address past the kernel.
        needs: u64,
        /// First address past the memory that it could use.
        has: u64,
    },
    /// A kernel linked to where boot data or no memory is.
    #[error("the kernel is linked to {base:#x}..{end:#x}, which is not free memory; link it to {first:#x} or above")]
    KernelMisplaced {
        /// First address.
        base: u64,
        /// First address past it.
        end: u64,
        /// First address that is free.
        first: u64,
    },
    /// The initramfs can't be read.
    #[error("the initramfs can't be read: {0}")]
    Initrd(io::Error),
    /// The initramfs has no content.
    #[error("the initramfs is empty")]
    InitrdEmpty,
    /// The initramfs does not fit beside the kernel.
    #[error(
        "the initramfs of {}M does not fit: {}M are free beside the kernel; give the machine more memory or take a smaller initramfs",
        size.div_ceil(MIB), room / MIB
    )]
    InitrdTooLarge {
        /// Its bytes.
        size: u64,
        /// Bytes that are free where it may stand.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {length} bytes, and the kernel takes {limit}; shorten it")]
    CmdlineTooLong {
        /// Its bytes.
        length: usize,
        /// Bytes that the kernel takes.
        limit: usize,
    },
    /// The command line contains a zero byte.
    #[error("the command line contains a zero byte, which ends it for the kernel; remove it")]
    CmdlineZero,
    /// A device tree larger than a kernel takes.
    #[error("the device tree has {size} bytes, and kernels take {limit}; take a smaller one")]
    FdtTooLarge {
        /// Its bytes.
        size: usize,
        /// Bytes that kernels take.
        limit: u64,
    },
    /// There is no guest memory where something must stand.
    #[error("there is no guest memory at {base:#x} for {size} bytes; give the machine more memory")]
    NoMemoryAt {
        /// First address.
        base: u64,
        /// Bytes.
        size: u64,
    },
    /// Guest memory can't be written, or the file not be read into it.
    #[error("filling guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl LoadError {
    /// The same with the initramfs' name, where it is about reading a file.
    pub(crate) fn of_initrd(self) -> Self {
        match self {
            Self::Kernel(KernelError::Io(error)) | Self::Memory(GuestMemoryError::IOError(error)) => {
                Self::Initrd(error)
            }
            Self::Kernel(KernelError::Truncated { needs, has }) => {
                let text = format!("it is truncated: it has {has} bytes and had {needs}");
                Self::Initrd(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            other => other,
        }
    }
}
