//! Making images, and looking at them: what `skep image` does.
//!
//! A new image is made beside its place under another name, and renamed once it is whole, so that what stands under its name is whole.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

use crate::qcow2::{self, CreateError, Image, Layer};
pub use crate::qcow2::{Backing, CheckReport, CreateOptions, ImageFormat, ImageInfo, Qcow2Info, behind, check, info};
use crate::storage::{FileStorage, Storage};
use crate::{BlockError, Buffer, FileOptions, IoError};

#[cfg(test)]
#[path = "image_test.rs"]
mod test;

/// Bytes that are converted at once.
const STEP: u64 = 2 << 20;
/// What is known to be zeroes is passed over in steps of this many bytes, so that progress is seen.
const LEAP: u64 = 1 << 30;
/// Zeroes of a raw image that are not worth writing.
const GRAIN: usize = 4096;

/// How a new image is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewImage {
    /// What only a qcow2 image has.
    pub qcow2: CreateOptions,
    /// Takes the place of a file that is there.
    pub force: bool,
}

/// A file that is not yet what its name says.
struct NewFile {
    temporary: PathBuf,
    path: PathBuf,
    force: bool,
}

fn host(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlockError {
    let path = path.to_owned();
    move |source| BlockError::Host { what, path, source }
}

fn unusable(path: &Path, reason: impl Into<String>) -> BlockError {
    BlockError::Unusable { path: path.to_owned(), reason: reason.into() }
}

fn io_failed(path: &Path, what: &str) -> impl Fn(IoError) -> BlockError {
    move |error| unusable(path, format!("{what}: {error}"))
}

impl NewFile {
    fn new(path: &Path, force: bool) -> Result<Self, BlockError> {
        let Some(name) = path.file_name() else { return Err(unusable(path, "it has no name")) };
        if path.symlink_metadata().is_ok() {
            if !force {
                return Err(unusable(path, "it is there already: `--force` puts the new image in its place"));
            }
            if !path.is_file() {
                return Err(unusable(path, "it is no file, and a new image takes the place of files only"));
            }
            // Whoever uses it would go on with what has no name any more.
            FileStorage::open(path, &FileOptions::default())?;
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let temporary = path.with_file_name(hidden);
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o666);
        options.open(&temporary).map_err(host("make", &temporary))?;
        Ok(Self { temporary, path: path.to_owned(), force })
    }

    fn storage(&self) -> Result<FileStorage, BlockError> {
        FileStorage::open(&self.temporary, &FileOptions::default()).map(|(storage, _)| storage)
    }

    fn resize(&self, size: u64) -> Result<(), BlockError> {
        let file = File::options().write(true).open(&self.temporary).map_err(host("open", &self.temporary))?;
        file.set_len(size).map_err(host("make as large as its disk", &self.path))
    }

    /// Gives it its name, once the host has all of it.
    fn finish(self) -> Result<(), BlockError> {
        let failed = || host("write", &self.path);
        File::open(&self.temporary).and_then(|file| file.sync_all()).map_err(failed())?;
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match rustix::fs::renameat_with(CWD, &self.temporary, CWD, &self.path, flags) {
            // A file system that can't see to it itself; nobody was there when this began.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::rename(&self.temporary, &self.path).map_err(failed())?;
            }
            renamed => renamed.map_err(|error| failed()(error.into()))?,
        }
        sync_name(&self.path).map_err(failed())
    }
}

/// Returns once the name that something has just got, or lost, is on stable storage, as far as the file system can tell: it is its folder's, not its own.
///
/// # Errors
/// The host's.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder)?.sync_all() {
        // It can't do so for folders.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After it has been renamed there is none.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Makes an image at `path` that reads as zeroes, or as the image behind it. Without a `size` it is as large as that one. Answers its size in bytes.
///
/// # Errors
/// [`BlockError::Host`], and [`BlockError::Unusable`] for what can't be made, where something is there already, or where what shall be behind it
/// can't be.
pub fn create(path: &Path, format: ImageFormat, size: Option<u64>, new: &NewImage) -> Result<u64, BlockError> {
    let mut size = size;
    if let Some(backing) = &new.qcow2.backing {
        if format == ImageFormat::Raw {
            return Err(unusable(path, "a raw image has nothing behind it: its format would be qcow2"));
        }
        let refused = |reason| unusable(path, reason);
        let behind = backing.path(path).map_err(refused)?;
        let layer = qcow2::open(&behind, backing.named_format(path).map_err(refused)?, &read_only())?;
        size.get_or_insert(layer.size().next_multiple_of(512));
    }
    let Some(size) = size else { return Err(unusable(path, "it needs a size")) };
    let file = NewFile::new(path, new.force)?;
    match format {
        ImageFormat::Raw if size == 0 => return Err(unusable(path, "a disk of 0 bytes")),
        ImageFormat::Raw => file.resize(size)?,
        ImageFormat::Qcow2 => format_qcow2(&file, size, &new.qcow2)?,
    }
    file.finish()?;
    Ok(size)
}

fn format_qcow2(file: &NewFile, size: u64, options: &CreateOptions) -> Result<(), BlockError> {
    qcow2::create(&file.storage()?, size, options).map_err(|error| match error {
        CreateError::Refused(reason) => unusable(&file.path, reason),
        CreateError::Io(error) => io_failed(&file.path, "it can't be written")(error),
    })
}

fn read_only() -> FileOptions {
    FileOptions { read_only: true, ..FileOptions::default() }
}

/// Where a conversion writes.
enum Target {
    Raw(FileStorage),
    Qcow2(Box<Image>),
}

impl Target {
    fn open(file: &NewFile, format: ImageFormat, size: u64, options: &CreateOptions) -> Result<Self, BlockError> {
        if format == ImageFormat::Raw {
            file.resize(size)?;
            return Ok(Self::Raw(file.storage()?));
        }
        format_qcow2(file, size.next_multiple_of(512), options)?;
        match qcow2::open(&file.temporary, format, &FileOptions::default())? {
            Layer::Qcow2(image) => Ok(Self::Qcow2(image)),
            Layer::Raw { .. } => Err(unusable(&file.path, "it is raw")),
        }
    }

    fn write(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        match self {
            Self::Raw(storage) => storage.write(offset, buffer, at, len),
            Self::Qcow2(image) => image.write(offset, buffer, at, len),
        }
    }

    /// Zeroes of this many bytes, in their place, are left out.
    fn grain(&self) -> usize {
        match self {
            Self::Raw(_) => GRAIN,
            Self::Qcow2(image) => image.cluster_size() as usize,
        }
    }

    fn close(self) -> Result<(), IoError> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => image.close(),
        }
    }
}

/// Writes what the disk of the image at `from` holds into a new image at `to`, without what is behind it and without zeroes. Calls `progress` with
/// how many bytes of the disk are done, of how many.
///
/// # Errors
/// As for [`create`], and [`BlockError::Locked`] where somebody writes to the image or to one behind it.
pub fn convert(
    from: (&Path, ImageFormat),
    to: (&Path, ImageFormat),
    new: &NewImage,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), BlockError> {
    let source = qcow2::open(from.0, from.1, &read_only())?;
    let size = source.size();
    if size == 0 {
        return Err(unusable(from.0, "a disk of 0 bytes"));
    }
    let file = NewFile::new(to.0, new.force)?;
    let target = Target::open(&file, to.1, size, &new.qcow2)?;
    let unreadable = io_failed(from.0, "it can't be read");
    let unwritable = io_failed(to.0, "it can't be written");
    let grain = target.grain();
    let buffer = Buffer::zeroed(STEP as usize);
    let mut bytes = vec![0; STEP as usize];
    let mut at = 0;
    while at < size {
        progress(at, size);
        let (zeroes, len) = source.zeroes(at, (size - at).min(LEAP)).map_err(&unreadable)?;
        if zeroes {
            at += len;
            continue;
        }
        // Up to where steps end, so that clusters are written whole.
        let len = len.min(STEP - at % STEP) as usize;
        source.read(at, &buffer, 0, len).map_err(&unreadable)?;
        buffer.copy_out(0, &mut bytes[..len]);
        for (begin, end) in data(&bytes[..len], grain - at as usize % grain, grain) {
            target.write(at + begin as u64, &buffer, begin, end - begin).map_err(&unwritable)?;
        }
        at += len as u64;
    }
    target.close().map_err(&unwritable)?;
    file.finish()?;
    progress(size, size);
    Ok(())
}

/// The runs of grains that are not all zeroes; the first grain ends at `first`.
fn data(bytes: &[u8], first: usize, grain: usize) -> Vec<(usize, usize)> {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let (mut begin, mut end) = (0, first.min(bytes.len()));
    while begin < bytes.len() {
        let zero = bytes[begin..end].chunks(ZEROES.len()).all(|part| *part == ZEROES[..part.len()]);
        match runs.last_mut() {
            _ if zero => {}
            Some(last) if last.1 == begin => last.1 = end,
            _ => runs.push((begin, end)),
        }
        (begin, end) = (end, (end + grain).min(bytes.len()));
    }
    runs
}
