//! Opening images: what a disk is made of, and a lock that goes with it.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::host::{Geometry, geometry};
use super::lock::{lock, unlock};
use crate::{BlockError, FileOptions};

/// A file or a block device, locked as its user asked for.
pub(crate) struct HostFile {
    file: File,
    locked: bool,
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
        if self.locked {
            // Rather than by closing, which takes effect when the last of the kernel's own references has gone, and when a program that is
            // being started, which has the file open for a moment as well, has been executed.
            unlock(&self.file);
        }
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
    if options.lock {
        lock(&file, path, !options.read_only)?;
    }
    let file = HostFile { file, locked: options.lock };
    let geometry = geometry(&file, kind.is_block_device(), options.direct).map_err(failed("measure"))?;
    Ok((file, metadata, geometry))
}
