//! Rate limits: token buckets before a disk.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::gather::Gathered;
use crate::{BlockError, Completion, Disk, DiskInfo, DiskQueue, IoError, Request, ResizeListener, ResizeSubscription};

#[cfg(test)]
#[path = "limit_test.rs"]
mod test;

/// So many in a second, and so many at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many in a second, in the long run; at least 1.
    pub per_second: u64,
    /// How many at once after a rest; at least 1.
    pub burst: u64,
}

/// What a disk is limited to. What is not said is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests of any kind.
    pub requests: Option<Limit>,
    /// Bytes that are read or written.
    pub bytes: Option<Limit>,
}

const SECOND: u128 = 1_000_000_000;

/// A token bucket. A request may take more than there is: those after it then wait until that is made up for, so that large ones pass
/// whatever the burst.
struct Bucket {
    limit: Limit,
    /// Tokens, in units of one that falls in a nanosecond at one per second; negative while in debt.
    level: i128,
    at: Instant,
}

impl Bucket {
    fn new(limit: Limit, now: Instant) -> Self {
        let limit = Limit { per_second: limit.per_second.max(1), burst: limit.burst.max(1) };
        Self { limit, level: Self::full(limit), at: now }
    }

    fn full(limit: Limit) -> i128 {
        (u128::from(limit.burst) * SECOND) as i128
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos().min(u128::from(u64::MAX)) as i128;
        self.at = self.at.max(now);
        self.level = (self.level + passed * i128::from(self.limit.per_second)).min(Self::full(self.limit));
    }

    /// How long until something may be taken.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        if self.level > 0 {
            return Duration::ZERO;
        }
        let nanos = self.level.unsigned_abs() / u128::from(self.limit.per_second) + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, count: u64) {
        self.level -= (u128::from(count) * SECOND) as i128;
    }
}

struct Buckets {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Buckets {
    /// Takes what a request of `bytes` costs, or says how long to wait first.
    fn admit(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let mut bucket_of_bytes = self.bytes.as_mut().filter(|_| bytes > 0);
        let wait = |bucket: Option<&mut Bucket>| bucket.map_or(Duration::ZERO, |bucket| bucket.wait(now));
        let wait = wait(self.requests.as_mut()).max(wait(bucket_of_bytes.as_deref_mut()));
        if !wait.is_zero() {
            return Err(wait);
        }
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = bucket_of_bytes {
            bucket.take(bytes);
        }
        Ok(())
    }
}

/// A disk that does no more than its limits say; all its queues together.
pub struct LimitedDisk {
    disk: Arc<dyn Disk>,
    buckets: Arc<Mutex<Buckets>>,
}

impl LimitedDisk {
    /// Limits `disk`.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, limits: Limits) -> Arc<Self> {
        let now = Instant::now();
        let bucket = |limit: Option<Limit>| limit.map(|limit| Bucket::new(limit, now));
        let buckets = Buckets { requests: bucket(limits.requests), bytes: bucket(limits.bytes) };
        Arc::new(Self { disk, buckets: Arc::new(Mutex::new(buckets)) })
    }
}

impl Disk for LimitedDisk {
    fn info(&self) -> DiskInfo {
        self.disk.info()
    }

    fn open_queue(&self, depth: u16) -> Result<Box<dyn DiskQueue>, BlockError> {
        let queue = self.disk.open_queue(depth)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| BlockError::Queue { what: "make a timer", source: error.into() })?;
        let gathered = Gathered::new(&[queue.event(), timer.as_fd()])
            .map_err(|source| BlockError::Queue { what: "make an epoll descriptor", source })?;
        let (buckets, depth) = (self.buckets.clone(), depth.into());
        let (waiting, ended) = (VecDeque::new(), Vec::new());
        Ok(Box::new(Queue { queue, buckets, depth, waiting, ended, timer, gathered }))
    }

    fn on_resize(&self, listener: ResizeListener) -> ResizeSubscription {
        self.disk.on_resize(listener)
    }
}

struct Queue {
    queue: Box<dyn DiskQueue>,
    buckets: Arc<Mutex<Buckets>>,
    depth: usize,
    waiting: VecDeque<Request>,
    ended: Vec<Completion>,
    timer: OwnedFd,
    gathered: Gathered,
}

impl Queue {
    /// Lets through what may pass, and sets the timer for what may not.
    fn admit(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            let moved = request.buffer.len() as u64;
            let admitted = self.buckets.lock().unwrap_or_else(PoisonError::into_inner).admit(moved, Instant::now());
            if let Err(wait) = admitted {
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
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: zero, it_value: wait };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once) {
            tracing::warn!("a disk's limit can't be kept, since its timer can't be set: {error}");
            for request in std::mem::take(&mut self.waiting) {
                self.end(request, IoError::Host(error.raw_os_error()));
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
            // The timer's count is of no interest; reading it makes the descriptor quiet.
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
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
