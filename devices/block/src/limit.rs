//! A disk before which requests wait for a limiter.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use skep_worker::{LimitTimer, Limiter};

use crate::gather::Gathered;
use crate::{BlockError, Completion, Disk, DiskInfo, DiskQueue, IoError, Request, ResizeListener, ResizeSubscription};

#[cfg(test)]
#[path = "limit_test.rs"]
mod test;

/// A disk that does no more than its limits say; all its queues together.
pub struct LimitedDisk {
    disk: Arc<dyn Disk>,
    limiter: Arc<Limiter>,
}

impl LimitedDisk {
    /// Limits `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, limiter: Arc<Limiter>) -> Arc<Self> {
        Arc::new(Self { disk, limiter })
    }
}

impl Disk for LimitedDisk {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let queue = self.disk.open_queue(depth)?;
        let timer =
            LimitTimer::new(&self.limiter).map_err(|source| BlockError::Queue { what: "make a timer", source })?;
        let gathered = Gathered::new(&[queue.event(), timer.as_fd()])
            .map_err(|source| BlockError::Queue { what: "make an epoll descriptor", source })?;
        let (waiting, ended) = (VecDeque::new(), Vec::new());
        Ok(Box::new(Queue { queue, depth: depth.into(), waiting, ended, timer, gathered }))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.disk.on_resize(listener)
    }
}

struct Queue {
    queue: Box<dyn DiskQueue>,
    depth: usize,
    waiting: VecDeque<Request>,
    ended: Vec<Completion>,
    timer: LimitTimer,
    gathered: Gathered,
}

impl Queue {
    /// Lets through what may pass, and sets the timer for what may not.
    fn admit(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            let moved = request.buffer.len() as u64;
            if let Err(wait) = self.timer.limiter().admit(moved) {
                self.waiting.push_front(request);
                return self.set_timer(wait);
            }
            if let Err(request) = self.queue.submit(request) {
                // Not more than its depth are ever here.
                self.end(request, IoError::Host(libc::EAGAIN));
            }
        }
    }

    fn set_timer(&mut self, wait: Duration) {
        if let Err(error) = self.timer.set(wait) {
            tracing::warn!("a disk's limit can't be kept, since its timer can't be set: {error}");
            for request in std::mem::take(&mut self.waiting) {
                self.end(request, IoError::Host(error.raw_os_error().unwrap_or(libc::EIO)));
            }
        }
    }

    fn end(&mut self, request: Request, error: IoError) {
        self.ended.push(Completion { tag: request.tag, result: Err(error), buffer: request.buffer });
    }
}

impl DiskQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= self.depth {
            return Err(request);
        }
        self.waiting.push_back(request);
        Ok(())
    }

    fn kick(&mut self) {
        if !self.waiting.is_empty() {
            self.timer.quiet();
            self.admit();
        }
        self.queue.kick();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        self.queue.reap(done);
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.ended.len() + self.queue.in_flight()
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.gathered.event()
    }

    fn cancel(&mut self, tag: u64) {
        match self.waiting.iter().position(|request| request.tag == tag) {
            Some(place) => {
                if let Some(request) = self.waiting.remove(place) {
                    self.end(request, IoError::Cancelled);
                }
            }
            None => self.queue.cancel(tag),
        }
    }
}
