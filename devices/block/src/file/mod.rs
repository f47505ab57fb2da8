//! Raw images and block devices.

use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::disk::Releases;
use crate::threads;
use crate::{BlockError, Disk, DiskInfo, DiskQueue, ImageDisk, ResizeListener, ResizeNotices, ResizeSubscription};

pub(crate) mod host;
mod job;
mod lock;
mod open;
mod uring;

pub(crate) use open::{HostFile, open};

#[cfg(test)]
#[path = "file_test.rs"]
mod test;

/// How requests reach the host, where the page cache can't do them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// io_uring, or threads where the host refuses it.
    #[default]
    Auto,
    /// io_uring, or an error.
    IoUring,
    /// A few threads.
    Threads,
}

/// When an image is locked against a second user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Locking {
    /// When it is opened.
    #[default]
    Now,
    /// By [`ImageDisk::hold`]: somebody else still uses it, and lets go of it before.
    Later,
    /// It is for the caller to know that nobody else writes.
    Never,
}

/// How an image is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// Opened for reading only: it is then shared with other readers, and with no writer.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Every write is on the medium when it completes: the guest sees no write cache.
    pub write_through: bool,
    /// Locks the image against a second user.
    pub lock: Locking,
    /// How requests reach the host.
    pub engine: Engine,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self { read_only: false, direct: false, write_through: false, lock: Locking::Now, engine: Engine::Auto }
    }
}

/// What the engines know of an open file.
struct Target {
    file: HostFile,
    path: PathBuf,
    size: AtomicU64,
    block_size: u32,
    preferred_size: u32,
    read_only: bool,
    write_through: bool,
    /// Past the page cache.
    direct: bool,
    /// The alignment of memory that direct I/O asks for; 1 where it asks for none.
    memory_alignment: usize,
    discard: bool,
    /// The host has refused these once.
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
    releases: Releases,
}

impl Target {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            size: self.size.load(Ordering::Acquire),
            block_size: self.block_size,
            preferred_size: self.preferred_size,
            read_only: self.read_only,
            write_cache: !self.write_through,
            discard: self.discard && !self.read_only,
        }
    }
}

/// A raw image or a block device.
pub struct FileDisk {
    target: Arc<Target>,
    engine: Engine,
    pool: OnceLock<Arc<threads::Pool<Target>>>,
    notices: ResizeNotices,
}

impl FileDisk {
    /// Opens the raw image or block device at `path`.
    ///
    /// # Errors
    /// [`BlockError::Host`] where the host refuses, [`BlockError::Locked`] where somebody else uses it, [`BlockError::Unusable`] for what is no
    /// disk, and [`BlockError::Queue`] where io_uring was asked for and is refused.
    pub fn open(path: &Path, options: &FileOptions) -> Result<Arc<Self>, BlockError> {
        let (file, _, geometry) = open(path, options, 0)?;
        let target = Target {
            size: AtomicU64::new(0),
            path: path.to_owned(),
            block_size: geometry.block_size,
            preferred_size: geometry.preferred_size,
            read_only: options.read_only,
            write_through: options.write_through,
            direct: options.direct,
            memory_alignment: geometry.memory_alignment,
            discard: geometry.discard,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
            releases: Releases::default(),
            file,
        };
        let engine = choose(options.engine)?;
        let disk = Self { target: Arc::new(target), engine, pool: OnceLock::new(), notices: ResizeNotices::default() };
        disk.refresh()?;
        Ok(Arc::new(disk))
    }

    /// Which engine it has: never [`Engine::Auto`].
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.engine
    }
}

impl ImageDisk for FileDisk {
    fn refresh(&self) -> Result<u64, BlockError> {
        let failed = |source| BlockError::Host { what: "measure", path: self.target.path.clone(), source };
        // Both kinds tell their size by where they end.
        let end = (&*self.target.file).seek(SeekFrom::End(0)).map_err(failed)?;
        let size = end - end % u64::from(self.target.block_size);
        if self.target.size.swap(size, Ordering::AcqRel) != size {
            self.notices.notify(size);
        }
        Ok(size)
    }

    fn on_release(&self, tell: Box<dyn FnOnce() + Send>) {
        self.target.releases.add(tell);
    }

    fn hold(&self, held: bool) -> Result<(), BlockError> {
        self.target.file.hold(held)
    }
}

/// Finds out whether the host lets us have io_uring.
fn choose(wanted: Engine) -> Result<Engine, BlockError> {
    match (wanted, uring::probe()) {
        (Engine::Threads, _) => Ok(Engine::Threads),
        (_, Ok(())) => Ok(Engine::IoUring),
        (Engine::IoUring, Err(source)) => Err(BlockError::Queue { what: "use io_uring (threads would do)", source }),
        (Engine::Auto, Err(error)) => {
            tracing::info!("disks use threads, since the host refuses io_uring: {error}");
            Ok(Engine::Threads)
        }
    }
}

impl Disk for FileDisk {
    fn info(&self) -> DiskInfo {
        self.target.info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let depth = depth.max(1);
        if self.engine == Engine::IoUring {
            return Ok(Box::new(uring::Queue::new(self.target.clone(), depth)?));
        }
        let pool = self.pool.get_or_init(|| threads::Pool::new(self.target.clone()));
        Ok(Box::new(threads::Queue::new(pool.clone(), depth)?))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.notices.subscribe(listener)
    }
}
