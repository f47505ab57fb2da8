//! The contract between a disk and the device before it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::{BlockError, Buffer, IoError};

/// What a disk is, now: its size may change while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskInfo {
    /// Bytes.
    pub size: u64,
    /// Offsets and lengths are multiples of this many bytes; a power of two. A device shows blocks of this size or larger.
    pub block_size: u32,
    /// The size in bytes in which the medium likes to be written; a power of two, at least `block_size`.
    pub preferred_size: u32,
    /// Nothing can be written.
    pub read_only: bool,
    /// What is written may be lost until it is flushed.
    pub write_cache: bool,
    /// [`Operation::Discard`] gives space back to the host; what was discarded reads as zeroes.
    pub discard: bool,
}

/// What a request does. Offsets and lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fills the buffer from `offset` on.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Writes the buffer from `offset` on.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Completes only when the medium has it (force unit access).
        fua: bool,
    },
    /// Completes when the medium has all writes that had completed when this was submitted.
    Flush,
    /// The content is no longer needed. It then reads as zeroes where [`DiskInfo::discard`] is so; else nothing happens.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Writes zeroes.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The space behind them may be given back to the host.
        may_discard: bool,
        /// As for a write.
        fua: bool,
    },
}

impl Operation {
    /// The range of the disk that it touches, given its buffer's length.
    #[must_use]
    pub fn range(&self, buffer: u64) -> Option<(u64, u64)> {
        match *self {
            Self::Read { offset } | Self::Write { offset, .. } => Some((offset, buffer)),
            Self::Discard { offset, len } | Self::WriteZeroes { offset, len, .. } => Some((offset, len)),
            Self::Flush => None,
        }
    }

    /// Whether it changes the disk.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. })
    }

    /// Refuses what a disk of this kind could never do.
    ///
    /// # Errors
    /// [`IoError::ReadOnly`], [`IoError::OutOfRange`], and [`IoError::Unsupported`] for what is not made of whole blocks.
    pub fn check(&self, buffer: u64, disk: &DiskInfo) -> Result<(), IoError> {
        if self.writes() && disk.read_only {
            return Err(IoError::ReadOnly);
        }
        let Some((offset, len)) = self.range(buffer) else { return Ok(()) };
        if offset.checked_add(len).is_none_or(|end| end > disk.size) {
            return Err(IoError::OutOfRange);
        }
        if (offset | len) & u64::from(disk.block_size - 1) != 0 {
            return Err(IoError::Unsupported);
        }
        Ok(())
    }
}

/// A request to a disk. The queue owns its buffer until it completes, so that no host thread or ring outlives the memory it was given.
#[derive(Debug)]
pub struct Request {
    /// What the submitter knows it by; no two in flight on a queue have the same.
    pub tag: u64,
    /// What it does.
    pub operation: Operation,
    /// What it reads into or writes from; empty for the others.
    pub buffer: Buffer,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// Whether all of it is done. Of a request that failed, any part may be.
    pub result: Result<(), IoError>,
    /// The request's buffer. What was read into guest memory has been marked dirty.
    pub buffer: Buffer,
}

/// A disk: what all queues of a device share.
pub trait Disk: Send + Sync {
    /// What it is now.
    fn info(&self) -> DiskInfo;

    /// A queue for one worker, with room for `depth` requests in flight.
    ///
    /// # Errors
    /// [`BlockError::Queue`] where the host has no resources left.
    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError>;

    /// Calls `listener` with each new size, until the subscription is dropped.
    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription;
}

/// A [`Disk`] that is an image of the host's.
pub trait ImageDisk: Disk {
    /// Looks at the size again, after somebody has made the image larger or smaller, and tells who listens if it has changed. Says the size
    /// in bytes, of whole blocks.
    ///
    /// # Errors
    /// [`BlockError::Host`].
    fn refresh(&self) -> Result<u64, BlockError>;

    /// Calls `tell`, on whatever thread it is, when the disk and all its queues have gone: the image's lock is another's to take then.
    fn on_release(&self, tell: Box<dyn FnOnce() + Send>);

    /// Writes all that the image itself still holds back, while no request is in flight and none comes: after that it is written to by nobody before
    /// the next request.
    ///
    /// # Errors
    /// [`BlockError::Unusable`] where the host refuses.
    fn settle(&self) -> Result<(), BlockError> {
        Ok(())
    }

    /// Takes the locks of the image and of what is behind it, or gives them to another process that goes on with it, after
    /// [`ImageDisk::settle`]. Who has given them away writes nothing before it has taken them again, also at its end.
    ///
    /// # Errors
    /// [`BlockError::Locked`] where somebody else has one: those that were taken before it are kept.
    fn hold(&self, held: bool) -> Result<(), BlockError>;
}

/// Who is told when a disk has gone: a field of what its queues share, dropped after the image.
#[derive(Default)]
pub(crate) struct Releases(Mutex<Vec<Box<dyn FnOnce() + Send>>>);

impl Releases {
    pub(crate) fn add(&self, tell: Box<dyn FnOnce() + Send>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(tell);
    }
}

impl Drop for Releases {
    fn drop(&mut self) {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|tell| tell());
    }
}

/// One worker's way to a disk. No method waits for the medium; [`DiskQueue::kick`] may wait for the page cache.
///
/// Dropping a queue with requests in flight waits for them, since the host may still write to their buffers: a worker that must not wait
/// first reaps until [`DiskQueue::in_flight`] is 0.
pub trait DiskQueue: Send {
    /// Takes a request; the host may see it only at the next [`DiskQueue::kick`]. What a disk could never do completes with its error.
    ///
    /// # Errors
    /// Gives the request back when `depth` requests are in flight.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Hands what was submitted to the host, a batch at once. What the page cache can do at once may have been done when this returns; a
    /// host that throttles writers holds it up for a moment, so that it is called under no lock that anybody else waits for.
    fn kick(&mut self);

    /// Appends what has completed to `done`.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// How many requests are in flight: submitted, and not reaped.
    fn in_flight(&self) -> usize;

    /// Readable while something has completed since the last [`DiskQueue::reap`] (and perhaps when nothing has): what a worker blocks on,
    /// after it has kicked and reaped all there was. When it wakes it kicks and reaps again: a queue may have held requests back.
    fn event(&self) -> BorrowedFd<'_>;

    /// Asks for an early end of the request with that tag. It still completes: with [`IoError::Cancelled`], or, where it could not be
    /// stopped any more, as it would have.
    fn cancel(&mut self, tag: u64);
}

/// Who is told of a disk's new size in bytes. Called on the thread that resizes, with no lock held.
pub type ResizeListener = Arc<dyn Fn(u64) + Send + Sync>;

/// Keeps a [`ResizeListener`] subscribed until it is dropped.
#[must_use = "dropping a subscription ends it"]
pub struct ResizeSubscription(#[expect(dead_code, reason = "what lives is listened to")] ResizeListener);

/// The listeners of one disk: what an implementation of [`Disk`] keeps.
#[derive(Default)]
pub struct ResizeNotices(Mutex<Vec<WeakListener>>);

type WeakListener = Weak<dyn Fn(u64) + Send + Sync>;

impl ResizeNotices {
    /// Adds a listener.
    pub fn subscribe(&self, listener: ResizeListener) -> ResizeSubscription {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|known| known.strong_count() > 0);
        // The closure's own Arc may be held elsewhere too; the subscription's is what counts.
        let listener: ResizeListener = Arc::new(move |size| listener(size));
        listeners.push(Arc::downgrade(&listener));
        ResizeSubscription(listener)
    }

    /// Tells all listeners.
    pub fn notify(&self, size: u64) {
        let listeners: Vec<_> = {
            let listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            listeners.iter().filter_map(Weak::upgrade).collect()
        };
        for listener in listeners {
            listener(size);
        }
    }
}
