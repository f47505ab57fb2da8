//! qcow2 images, versions 2 and 3, by "The qcow2 image format" (QEMU's docs/interop/qcow2.txt).
//!
//! Read: backing files (raw and qcow2), compressed clusters (deflate), images with internal snapshots, of which the active state is shown.
//! Written: new clusters with copy on write, zeroes and discards, all widths of reference counts. Tables are held in a bounded cache. Counts
//! are never left for later, so that an image is never marked dirty here; one that is must be checked before it is written.
//!
//! Refused by name: encryption, external data files, extended level 2 entries, other compression than deflate, whatever is unknown. Not there:
//! resizing, making or going back to snapshots, persistent bitmaps (which a write makes invalid, by the format's own means).

mod allocate;
mod cache;
mod check;
mod compressed;
mod create;
mod entry;
mod header;
mod image;
mod info;
mod layer;
mod meta;
mod pins;
mod references;
mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use check::{CheckReport, check};
pub use create::CreateOptions;
pub(crate) use create::{CreateError, create};
pub use header::{Backing, ImageFormat};
pub(crate) use image::Image;
pub use info::{ImageInfo, Qcow2Info, behind, info};
pub(crate) use layer::Layer;

use crate::disk::Releases;
use crate::now::Now;
use crate::threads::{self, Pool, Serve};
use crate::{
    BlockError, Completion, Disk, DiskInfo, DiskQueue, FileOptions, ImageDisk, IoError, Operation, Request,
    ResizeListener, ResizeNotices, ResizeSubscription,
};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
mod testing;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "qcow2_test.rs"]
pub(crate) mod test;

/// The smallest block that any disk has.
const SECTOR: u32 = 512;
/// What guests are told is a good size to write in.
const PREFERRED: u32 = 4096;

/// Opens the image at `path` and what is behind it, for reading and writing by calls that wait.
pub(crate) fn open(path: &Path, format: ImageFormat, options: &FileOptions) -> Result<Layer, BlockError> {
    layer::open(path, format, options, layer::Purpose::Use)
}

/// A disk in a qcow2 image.
pub struct Qcow2Disk {
    pool: Arc<Pool<Server>>,
    info: DiskInfo,
    notices: ResizeNotices,
}

struct Server {
    image: Image,
    path: PathBuf,
    info: DiskInfo,
    // After the image, whose locks go first.
    releases: Releases,
}

/// A request, and its end once it has one.
struct Job {
    request: Request,
    result: Option<Result<(), IoError>>,
    /// Its buffer may have been read into.
    begun: bool,
}

impl Qcow2Disk {
    /// Opens the image at `path`. The images behind it are opened for reading, and shared with other readers.
    /// [`FileOptions::engine`] has no say: its requests take several calls of the host, which threads do.
    ///
    /// # Errors
    /// [`BlockError::Host`] where the host refuses, [`BlockError::Locked`] where somebody else uses it or one behind it, and
    /// [`BlockError::Unusable`] for what is no such image, or one that needs what is not here.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Arc<Self>, BlockError> {
        match open(path, ImageFormat::Qcow2, options)? {
            Layer::Qcow2(image) => Ok(Self::new(*image, path, options)),
            // A file of that format is never such a layer.
            Layer::Raw { .. } => Err(BlockError::Unusable { path: path.to_owned(), reason: "it is raw".to_owned() }),
        }
    }

    fn new(image: Image, path: &Path, options: &FileOptions) -> Arc<Self> {
        let block_size = SECTOR.max(image.storage.alignment());
        let info = DiskInfo {
            size: image.size() - image.size() % u64::from(block_size),
            block_size,
            preferred_size: PREFERRED.max(block_size),
            read_only: options.read_only,
            write_cache: !options.write_through,
            discard: image.discards(),
        };
        let pool = Pool::new(Arc::new(Server { image, path: path.to_owned(), info, releases: Releases::default() }));
        Arc::new(Self { pool, info, notices: ResizeNotices::default() })
    }
}

impl Disk for Qcow2Disk {
    fn info(&self) -> DiskInfo {
        self.info
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        Ok(Box::new(threads::Queue::new(self.pool.clone(), depth.max(1))?))
    }

    /// Its size does not change while it is open.
    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.notices.subscribe(listener)
    }
}

impl ImageDisk for Qcow2Disk {
    /// Its size does not change while it is open.
    fn refresh(&self) -> Result<u64, BlockError> {
        Ok(self.info.size)
    }

    fn on_release(&self, tell: Box<dyn FnOnce() + Send>) {
        self.pool.serve().releases.add(tell);
    }

    fn settle(&self) -> Result<(), BlockError> {
        let Server { image, path, .. } = self.pool.serve();
        let reason = |error: IoError| format!("its tables can't be written: {error}");
        image.close().map_err(|error| BlockError::Unusable { path: path.clone(), reason: reason(error) })
    }

    fn hold(&self, held: bool) -> Result<(), BlockError> {
        self.pool.serve().image.hold(held)
    }
}

impl threads::Job for Job {
    fn tag(&self) -> u64 {
        self.request.tag
    }

    fn cancel(&mut self) {
        self.result.get_or_insert(Err(IoError::Cancelled));
    }

    fn complete(self) -> Completion {
        if self.begun && matches!(self.request.operation, Operation::Read { .. }) {
            self.request.buffer.mark_dirty();
        }
        let result = self.result.unwrap_or(Err(IoError::Cancelled));
        Completion { tag: self.request.tag, result, buffer: self.request.buffer }
    }
}

impl Serve for Server {
    type Job = Job;

    fn begin(&self, request: Request) -> Job {
        let len = request.buffer.len() as u64;
        let checked = request.operation.check(len, &self.info);
        let nothing = request.operation.range(len).is_some_and(|(_, len)| len == 0)
            || matches!(request.operation, Operation::Discard { .. }) && !self.info.discard;
        let result = (checked.is_err() || nothing).then_some(checked);
        Job { request, result, begun: false }
    }

    fn try_now(&self, job: &mut Job, now: &mut Now) -> bool {
        if job.result.is_some() {
            return true;
        }
        let (buffer, len) = (&job.request.buffer, job.request.buffer.len());
        let done = match job.request.operation {
            Operation::Read { offset } => {
                job.begun = true;
                self.image.read_now(offset, buffer, 0, len)
            }
            Operation::Write { offset, fua: false } if self.info.write_cache && self.info.block_size == SECTOR => {
                now.write(|| self.image.write_now(offset, buffer, len)).unwrap_or(false)
            }
            _ => false,
        };
        if done {
            job.result = Some(Ok(()));
        }
        done
    }

    fn run(&self, job: &mut Job) {
        if job.result.is_some() {
            return;
        }
        let (buffer, len) = (&job.request.buffer, job.request.buffer.len());
        let (result, through) = match job.request.operation {
            Operation::Read { offset } => {
                job.begun = true;
                (self.image.read(offset, buffer, 0, len), false)
            }
            Operation::Write { offset, fua } => (self.image.write(offset, buffer, 0, len), fua),
            Operation::Flush => (self.image.flush(), false),
            Operation::Discard { offset, len } => (self.image.zero(offset, len, true), false),
            Operation::WriteZeroes { offset, len, may_discard, fua } => {
                (self.image.zero(offset, len, may_discard), fua)
            }
        };
        let last = through || job.request.operation.writes() && !self.info.write_cache;
        job.result = Some(result.and_then(|()| if last { self.image.flush() } else { Ok(()) }));
    }
}
