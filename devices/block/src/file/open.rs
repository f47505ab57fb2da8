//! Opening images: what a disk is made of, and a lock that goes with it.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::host::{Geometry, geometry};
use super::lock::{lock, unlock};
use crate::{BlockError, FileOptions, Locking};

/// A file or a block device, locked as its user asked for.
pub(crate) struct HostFile {
    file: File,
    lock: Option<Lock>,
}

/// What an image is locked by.
struct Lock {
    own: File,
    path: PathBuf,
    exclusive: bool,
}

impl HostFile {
    /// Takes the lock, or gives it to somebody else, who goes on with the file.
    ///
    /// # Errors
    /// [`BlockError::Locked`] and [`BlockError::Host`].
    pub(crate) fn hold(&self, held: bool) -> Result<(), BlockError> {
        match &self.lock {
            Some(it) if held => lock(&it.own, &it.path, it.exclusive),
            Some(it) => {
                unlock(&it.own);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Deref for HostFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Nobody uses the file any more.
impl Drop for HostFile {
    fn drop(&mut self) {
        // Rather than by closing, which takes effect when a program that is being started, which has the file open for a moment as well, has been
        // executed.
        let _ = self.hold(false);
    }
}

/// The same file by a description of its own, which nobody else has: io_uring lets go of those that it uses some time after a process that was killed
/// has gone, and their locks would last as long.
fn reopen(file: &File, writable: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match OpenOptions::new().read(true).write(writable).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.try_clone(),
        opened => opened,
    }
}

/// Opens what is at `path` as `options` say, with `flags` besides, locks it and measures it.
///
/// # Errors
/// [`BlockError::Host`] where the host refuses, [`BlockError::Locked`] where somebody else uses it, [`BlockError::Unusable`] for what is no disk.
pub(crate) fn open(
    path: &Path,
    options: &FileOptions,
    flags: i32,
) -> Result<(HostFile, Metadata, Geometry), BlockError> {
    let failed = |what| move |source: io::Error| BlockError::Host { what, path: path.to_owned(), source };
    let mut open = OpenOptions::new();
    open.read(true).write(!options.read_only);
    open.custom_flags(flags | if options.direct { libc::O_DIRECT } else { 0 });
    let file = open.open(path).map_err(|source| {
        let what = match (source.raw_os_error(), options.direct) {
            (Some(libc::EINVAL), true) => "open without the page cache (its file system has no direct I/O)",
            _ if options.read_only => "open for reading",
            _ => "open for writing",
        };
        failed(what)(source)
    })?;
    let metadata = file.metadata().map_err(failed("look at"))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let reason = "it is neither a file nor a block device".to_owned();
        return Err(BlockError::Unusable { path: path.to_owned(), reason });
    }
    let lock = match options.lock {
        Locking::Never => None,
        Locking::Now | Locking::Later => {
            let own = reopen(&file, !options.read_only).map_err(failed("open once more, for its lock,"))?;
            Some(Lock { own, path: path.to_owned(), exclusive: !options.read_only })
        }
    };
    let file = HostFile { file, lock };
    if options.lock == Locking::Now {
        file.hold(true)?;
    }
    let geometry = geometry(&file, kind.is_block_device(), options.direct).map_err(failed("measure"))?;
    Ok((file, metadata, geometry))
}
