//! Why a disk can't be had, and why a request failed.

use std::io;
use std::path::PathBuf;

/// Why a disk can't be opened or used.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The host refuses an operation on the image.
    #[error("can't {what} `{}`: {source}", path.display())]
    Host {
        /// What was being done.
        what: &'static str,
        /// To which image.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Somebody else uses the image.
    #[error("`{}` is in use by {holder}: a disk image has one writer, or any number of readers", path.display())]
    Locked {
        /// Which image.
        path: PathBuf,
        /// Who holds it, as far as the host tells.
        holder: String,
    },
    /// The image's size or kind can't be used.
    #[error("`{}` can't be used as a disk: {reason}", path.display())]
    Unusable {
        /// Which image.
        path: PathBuf,
        /// Why not, and what would mend it.
        reason: String,
    },
    /// The host has no resources left for a queue.
    #[error("can't {what}: {source}")]
    Queue {
        /// What was being done.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

/// Why a request failed. The device says it to the guest in its own bus's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// It reaches beyond the end of the disk.
    #[error("the request leaves the disk")]
    OutOfRange,
    /// It would write to a disk that is open for reading.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The disk can't do such a thing.
    #[error("the disk does not support the request")]
    Unsupported,
    /// The host's file system is full.
    #[error("the host has no space left for the disk")]
    NoSpace,
    /// It was cancelled before it was done.
    #[error("the request was cancelled")]
    Cancelled,
    /// The image contradicts itself there.
    #[error("the disk's image is damaged")]
    Damaged,
    /// The host's medium failed: its error number.
    #[error("the host failed: error {0}")]
    Host(i32),
}

impl IoError {
    /// The error that the host's `errno` means.
    #[must_use]
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::Unsupported,
            libc::ECANCELED => Self::Cancelled,
            libc::EROFS | libc::EBADF | libc::EPERM => Self::ReadOnly,
            other => Self::Host(other),
        }
    }
}

impl From<io::Error> for IoError {
    fn from(error: io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EIO))
    }
}
