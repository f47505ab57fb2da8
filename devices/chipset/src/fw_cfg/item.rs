//! What firmware can read, by numbers and by names.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Numbers of items that are no files.
pub mod key {
    /// `QEMU`.
    pub const SIGNATURE: u16 = 0x00;
    /// What the interface can do.
    pub const ID: u16 = 0x01;
    /// 16 bytes of UUID, in the order in which it is written.
    pub const UUID: u16 = 0x02;
    /// 64 bits: bytes of RAM.
    pub const RAM_SIZE: u16 = 0x03;
    /// 16 bits: the console is serial.
    pub const NO_GRAPHIC: u16 = 0x04;
    /// 16 bits: vCPUs that are there at power-on.
    pub const CPU_COUNT: u16 = 0x05;
    /// 32 bits: bytes of the kernel.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// 32 bits: bytes of the initramfs.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// 16 bits: vCPUs that there may ever be (x86_64: one more than the largest APIC id).
    pub const MAX_CPUS: u16 = 0x0f;
    /// The kernel.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initramfs.
    pub const INITRD_DATA: u16 = 0x12;
    /// 32 bits: bytes of the command line with its terminating zero.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line with its terminating zero.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// The directory of files.
    pub const FILE_DIRECTORY: u16 = 0x19;
    /// The first file.
    pub const FIRST_FILE: u16 = 0x20;
}

/// A file's name has so many bytes at most.
pub const NAME_MAX: usize = 55;

/// What an item holds.
#[derive(Debug)]
pub enum Content {
    /// Bytes that never change.
    Bytes(Vec<u8>),
    /// A file of the host, read as it is asked for.
    File {
        /// The file.
        file: File,
        /// Its size in bytes, as it was when the machine was made.
        size: u64,
    },
    /// So many bytes, zero at power-on, that the guest writes.
    Written(usize),
    /// So many bytes that the machine makes when the guest selects the first such item, and that stay until it is reset: they tell of what
    /// firmware has placed by then. They come from [`super::FwCfg::set_late`], in the order of these items; what is shorter is followed by zeroes.
    Late(usize),
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

/// An item with a name.
#[derive(Debug)]
pub struct NamedItem {
    /// Its name, [`NAME_MAX`] bytes at most.
    pub name: String,
    /// Its content.
    pub content: Content,
}

impl NamedItem {
    /// The file `name`.
    #[must_use]
    pub fn new(name: &str, content: impl Into<Content>) -> Self {
        Self { name: name.to_owned(), content: content.into() }
    }
}

/// Where an item's bytes are.
#[derive(Clone)]
pub(super) enum Place {
    Bytes(Arc<[u8]>),
    File {
        file: Arc<File>,
        size: u64,
    },
    /// Number among the written ones.
    Written(usize),
    /// Number among the late ones.
    Late(usize),
}

impl Place {
    /// Bytes that there are of it by itself: what the guest writes and what is made late is taken from the state first.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
            Self::Written(_) | Self::Late(_) => 0,
        }
    }

    /// Reads at `offset`; what is beyond its end, or can't be read, is zero.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => copy(bytes, offset, into),
            Self::File { file, size } => read_file(file, *size, offset, into),
            Self::Written(_) | Self::Late(_) => into.fill(0),
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File { size, .. } => write!(f, "file of {size} bytes"),
            Self::Written(number) => write!(f, "written {number}"),
            Self::Late(number) => write!(f, "late {number}"),
        }
    }
}

/// Copies what is at `offset` of `bytes`; what lies beyond is zero.
fn copy(bytes: &[u8], offset: u64, into: &mut [u8]) {
    into.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    into.iter_mut().zip(rest).for_each(|(byte, value)| *byte = *value);
}

/// Reads a file at `offset`; what is beyond its end, or can't be read, is zero.
fn read_file(file: &File, size: u64, offset: u64, into: &mut [u8]) {
    into.fill(0);
    let wanted = size.saturating_sub(offset).min(into.len() as u64) as usize;
    let Some(part) = into.get_mut(..wanted) else { return };
    let mut done = 0;
    while let Some(rest) = part.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + done as u64) {
            Ok(0) => return,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!("a file that firmware reads can't be read: {error}");
                return;
            }
        }
    }
}
