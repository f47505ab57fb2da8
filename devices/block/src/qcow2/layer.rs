//! What is read through an image: the images behind it, one behind the other.

use std::path::Path;
use std::sync::Arc;

use super::header::{Header, ImageFormat};
use super::image::Image;
use crate::storage::{FileStorage, Identity, Storage};
use crate::{BlockError, Buffer, FileOptions, IoError, Locking};

/// Images behind one another at most.
const MOST_LAYERS: usize = 64;

/// An image of either format.
pub(crate) enum Layer {
    Raw { storage: Arc<dyn Storage>, size: u64 },
    Qcow2(Box<Image>),
}

impl Layer {
    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Raw { size, .. } => *size,
            Self::Qcow2(image) => image.size(),
        }
    }

    /// Takes or gives the locks of it and of what is behind it.
    pub(super) fn hold(&self, held: bool) -> Result<(), BlockError> {
        match self {
            Self::Raw { storage, .. } => storage.hold(held),
            Self::Qcow2(image) => image.hold(held),
        }
    }

    /// Fills `len` bytes of `buffer` from `at` on. What is behind the end is zeroes.
    pub(crate) fn read(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        match self {
            Self::Raw { storage, .. } => storage.read(offset, buffer, at, len),
            Self::Qcow2(image) => {
                let (exact, aligned) = inside(image, offset, len);
                image.read(offset, buffer, at, aligned)?;
                buffer.clear_part(at + exact, len - exact);
                Ok(())
            }
        }
    }

    /// The same if it can be done without waiting; says whether it was.
    pub(crate) fn read_now(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> bool {
        match self {
            Self::Raw { storage, .. } => storage.read_now(offset, buffer, at, len),
            Self::Qcow2(image) => inside(image, offset, len).0 == len && image.read_now(offset, buffer, at, len),
        }
    }

    /// Whether the bytes from `offset` on are known to be zeroes without reading them, and how many of up to `most` are alike.
    pub(crate) fn zeroes(&self, offset: u64, most: u64) -> Result<(bool, u64), IoError> {
        let left = self.size().saturating_sub(offset);
        if left == 0 {
            return Ok((true, most));
        }
        match self {
            Self::Raw { storage, .. } => match storage.hole(offset, most) {
                0 => Ok((false, most.min(RAW_DATA))),
                hole => Ok((true, hole)),
            },
            Self::Qcow2(image) => image.zeroes(offset, most.min(left)),
        }
    }
}

/// Data of a raw image is looked at for holes so often.
const RAW_DATA: u64 = 1 << 20;

/// How many of `len` bytes from `offset` on are of the disk, and the same in what direct I/O takes.
fn inside(image: &Image, offset: u64, len: usize) -> (usize, usize) {
    let left = usize::try_from(image.size().saturating_sub(offset)).unwrap_or(usize::MAX);
    let exact = left.min(len);
    (exact, exact.next_multiple_of(image.storage.alignment() as usize).min(len))
}

/// How the image in front is opened, and what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// For a guest.
    Use,
    /// Its tables are to be looked at, and perhaps mended: nothing is read through it.
    Check,
}

/// Opens the image at `path` and all that is behind it, which is locked against writers if `options` say so.
pub(super) fn open(
    path: &Path,
    format: ImageFormat,
    options: &FileOptions,
    purpose: Purpose,
) -> Result<Layer, BlockError> {
    open_layer(path, format, options, purpose, &mut Vec::new())
}

fn open_layer(
    path: &Path,
    format: ImageFormat,
    options: &FileOptions,
    purpose: Purpose,
    front: &mut Vec<Identity>,
) -> Result<Layer, BlockError> {
    let unusable = |reason: String| BlockError::Unusable { path: path.to_owned(), reason };
    let failed = |error: IoError| unusable(format!("its tables can't be read: {error}"));
    let (storage, identity) = FileStorage::open(path, options)?;
    if front.contains(&identity) {
        return Err(unusable("it is, through its backing files, behind itself".to_owned()));
    }
    front.push(identity);
    if front.len() > MOST_LAYERS {
        return Err(unusable(format!(
            "more than {MOST_LAYERS} images are behind one another: `qemu-img commit` makes them fewer"
        )));
    }
    let storage: Arc<dyn Storage> = Arc::new(storage);
    if format == ImageFormat::Raw {
        let size = storage.end().map_err(failed)?;
        return Ok(Layer::Raw { storage, size });
    }
    let header = Header::read(&*storage).map_err(unusable)?;
    if !options.read_only && purpose == Purpose::Use {
        let state = match (header.corrupt, header.dirty) {
            (true, _) => Some("it is marked as damaged"),
            (false, true) => Some("it was not closed, and its reference counts may be wrong"),
            _ => None,
        };
        if let Some(state) = state {
            let name = path.display();
            return Err(unusable(format!(
                "{state}: `skep image check --format qcow2 --repair {name}` mends what can be mended"
            )));
        }
    }
    let backing = match &header.backing {
        Some(backing) if purpose == Purpose::Use => {
            let format = backing.named_format(path).map_err(unusable)?;
            let behind = backing.path(path).map_err(unusable)?;
            let options = FileOptions { read_only: true, ..options.clone() };
            Some(Arc::new(open_layer(&behind, format, &options, purpose, front)?))
        }
        _ => None,
    };
    let read_only = options.read_only || purpose == Purpose::Check;
    let image = Image::new(storage, header, backing, read_only, options.lock != Locking::Later).map_err(failed)?;
    Ok(Layer::Qcow2(Box::new(image)))
}
