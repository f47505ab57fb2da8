//! A disk in memory.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::borrow::borrow;
use crate::{
    BlockError, Completion, Disk, DiskInfo, DiskQueue, IoError, Operation, Request, ResizeListener, ResizeNotices,
    ResizeSubscription,
};

/// How many requests of each kind a [`MemoryDisk`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes, with and without force unit access.
    pub writes: u64,
    /// Writes and writes of zeroes with force unit access.
    pub fua: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Writes of zeroes.
    pub zeroes: u64,
    /// Batches that were handed over with at least one request.
    pub kicks: u64,
}

struct Inner {
    info: DiskInfo,
    data: Vec<u8>,
    durable: Vec<u8>,
    counts: Counts,
}

impl Inner {
    fn run(&mut self, request: &Request) -> Result<(), IoError> {
        let buffer = &request.buffer;
        request.operation.check(buffer.len() as u64, &self.info)?;
        let range = request.operation.range(buffer.len() as u64);
        let range = range.map_or(0..0, |(offset, len)| offset as usize..(offset + len) as usize);
        let mut through = false;
        match request.operation {
            Operation::Read { .. } => {
                self.counts.reads += 1;
                buffer.copy_in(0, &self.data[range.clone()]);
                buffer.mark_dirty();
            }
            Operation::Write { fua, .. } => {
                self.counts.writes += 1;
                through = fua;
                buffer.copy_out(0, &mut self.data[range.clone()]);
            }
            Operation::Flush => {
                self.counts.flushes += 1;
                self.durable.copy_from_slice(&self.data);
            }
            Operation::Discard { .. } => {
                self.counts.discards += 1;
                if self.info.discard {
                    self.data[range.clone()].fill(0);
                }
            }
            Operation::WriteZeroes { fua, .. } => {
                self.counts.zeroes += 1;
                through = fua;
                self.data[range.clone()].fill(0);
            }
        }
        if through || !self.info.write_cache {
            self.counts.fua += u64::from(through);
            self.durable[range.clone()].copy_from_slice(&self.data[range]);
        }
        Ok(())
    }
}

/// A disk in memory, which remembers apart from its content what of it has reached its medium. Requests are done when they are kicked, in
/// their order.
pub struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
    notices: ResizeNotices,
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryDisk {
    /// `size` zero bytes in blocks of `block_size`, with a write cache and discard.
    #[must_use]
    pub fn new(size: u64, block_size: u32) -> Arc<Self> {
        let info = DiskInfo {
            size,
            block_size,
            preferred_size: block_size,
            read_only: false,
            write_cache: true,
            discard: true,
        };
        Self::with_info(info)
    }

    /// Zeroes on a disk of that kind.
    #[must_use]
    pub fn with_info(info: DiskInfo) -> Arc<Self> {
        let zeroes = vec![0; info.size as usize];
        let inner = Inner { info, data: zeroes.clone(), durable: zeroes, counts: Counts::default() };
        Arc::new(Self { inner: Arc::new(Mutex::new(inner)), notices: ResizeNotices::default() })
    }

    /// What has been done.
    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.inner).counts
    }

    /// A copy of its content.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        lock(&self.inner).data.clone()
    }

    /// A copy of what a power failure would leave.
    #[must_use]
    pub fn durable(&self) -> Vec<u8> {
        lock(&self.inner).durable.clone()
    }

    /// Writes `data` at `offset`, as if it had always been there.
    pub fn fill(&self, offset: usize, data: &[u8]) {
        let mut inner = lock(&self.inner);
        inner.data[offset..offset + data.len()].copy_from_slice(data);
        inner.durable[offset..offset + data.len()].copy_from_slice(data);
    }

    /// Makes it larger or smaller, and tells who listens.
    pub fn resize(&self, size: u64) {
        {
            let mut inner = lock(&self.inner);
            inner.info.size = size;
            inner.data.resize(size as usize, 0);
            inner.durable.resize(size as usize, 0);
        }
        self.notices.notify(size);
    }
}

impl Disk for MemoryDisk {
    fn info(&self) -> DiskInfo {
        lock(&self.inner).info
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let event =
            EventFd::new(EFD_NONBLOCK).map_err(|source| BlockError::Queue { what: "make an eventfd", source })?;
        Ok(Box::new(Queue {
            inner: self.inner.clone(),
            depth: depth.into(),
            submitted: VecDeque::new(),
            done: VecDeque::new(),
            event,
        }))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.notices.subscribe(listener)
    }
}

struct Queue {
    inner: Arc<Mutex<Inner>>,
    depth: usize,
    submitted: VecDeque<Request>,
    done: VecDeque<Completion>,
    event: EventFd,
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.depth {
            return Err(request);
        }
        self.submitted.push_back(request);
        Ok(())
    }

    fn kick(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let mut inner = lock(&self.inner);
        inner.counts.kicks += 1;
        for request in self.submitted.drain(..) {
            let result = inner.run(&request);
            self.done.push_back(Completion { tag: request.tag, result, buffer: request.buffer });
        }
        // An eventfd whose count is full is readable all the same.
        let _ = self.event.write(1);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let _ = self.event.read();
        done.extend(self.done.drain(..));
    }

    fn in_flight(&self) -> usize {
        self.submitted.len() + self.done.len()
    }

    fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.event)
    }

    fn cancel(&mut self, tag: u64) {
        if let Some(place) = self.submitted.iter().position(|request| request.tag == tag)
            && let Some(request) = self.submitted.remove(place)
        {
            self.done.push_back(Completion { tag, result: Err(IoError::Cancelled), buffer: request.buffer });
            let _ = self.event.write(1);
        }
    }
}
