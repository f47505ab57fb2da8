//! What an image says of itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::header::{Backing, Header, ImageFormat};
use super::snapshot::Snapshots;
use crate::storage::{FileStorage, Storage};
use crate::{BlockError, FileOptions, Locking};

/// An image, by its header. Names in it are the image's own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// Where it is.
    pub file: PathBuf,
    /// As the caller named it, or the image before it.
    pub format: ImageFormat,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that the host has allocated for the file.
    pub allocated: u64,
    /// What only a qcow2 image has.
    pub qcow2: Option<Qcow2Info>,
}

/// What a qcow2 image has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Bits of a reference count.
    pub refcount_bits: u32,
    /// What the image is a change of.
    pub backing: Option<Backing>,
    /// Names of its internal snapshots.
    pub snapshots: Vec<String>,
    /// It was not closed: its reference counts may be wrong.
    pub dirty: bool,
    /// It contradicts itself.
    pub corrupt: bool,
    /// Its reference counts may be left for later, by who does that.
    pub lazy_refcounts: bool,
    /// It holds bitmaps of what has changed.
    pub bitmaps: bool,
}

/// Looks at the image at `path`, of `format`, and not at what is behind it. It is not locked, since nothing of what it says changes in use but
/// its marks.
///
/// # Errors
/// [`BlockError::Host`] and [`BlockError::Unusable`].
pub fn info(path: &Path, format: ImageFormat) -> Result<ImageInfo, BlockError> {
    let unusable = |reason| BlockError::Unusable { path: path.to_owned(), reason };
    let options = FileOptions { read_only: true, lock: Locking::Never, ..FileOptions::default() };
    let (storage, _) = FileStorage::open(path, &options)?;
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|source| BlockError::Host { what: "look at", path: path.to_owned(), source })?;
    let end = storage.end().map_err(|error| unusable(format!("it can't be measured: {error}")))?;
    let mut info =
        ImageInfo { file: path.to_owned(), format, size: end, allocated: metadata.blocks() * 512, qcow2: None };
    if format == ImageFormat::Qcow2 {
        let header = Header::read(&storage).map_err(unusable)?;
        let mut snapshots = Vec::new();
        let found = Snapshots::new(&storage, &header).try_for_each(|snapshot| {
            snapshots.push(snapshot?.name(&storage)?);
            Ok(())
        });
        found.map_err(|error: crate::IoError| unusable(format!("its snapshots can't be read: {error}")))?;
        info.size = header.size;
        info.qcow2 = Some(Qcow2Info {
            version: header.geometry.version,
            cluster_size: header.geometry.cluster_size(),
            refcount_bits: 1 << header.geometry.refcount_order,
            backing: header.backing,
            snapshots,
            dirty: header.dirty,
            corrupt: header.corrupt,
            lazy_refcounts: header.lazy_refcounts,
            bitmaps: header.bitmaps,
        });
    }
    Ok(info)
}

/// The image behind the one that `info` is of, if there is one.
///
/// # Errors
/// Why it can't be told or used.
pub fn behind(info: &ImageInfo) -> Result<Option<ImageInfo>, BlockError> {
    let Some(backing) = info.qcow2.as_ref().and_then(|qcow2| qcow2.backing.as_ref()) else { return Ok(None) };
    let unusable = |reason| BlockError::Unusable { path: info.file.clone(), reason };
    let format = backing.named_format(&info.file).map_err(unusable)?;
    let path = backing.path(&info.file).map_err(unusable)?;
    super::info(&path, format).map(Some)
}
