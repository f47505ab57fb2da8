//! Rate limits: token buckets before what a thread does.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

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

/// What a device is limited to. What is not said is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Requests of any kind, or frames.
    pub requests: Option<Limit>,
    /// Bytes that are moved.
    pub bytes: Option<Limit>,
}

impl Limits {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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
        let more = passed.saturating_mul(i128::from(self.limit.per_second));
        self.level = self.level.saturating_add(more).min(Self::full(self.limit));
    }

    /// How long until something may be taken.
    fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        // One token is enough for a request of any size.
        let lacks = (SECOND as i128).saturating_sub(self.level);
        let nanos = u128::try_from(lacks).unwrap_or(0).div_ceil(u128::from(self.limit.per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, count: u64) {
        self.level = self.level.saturating_sub((u128::from(count) * SECOND) as i128);
    }
}

struct Buckets {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Buckets {
    fn new(limits: Limits, now: Instant) -> Self {
        let bucket = |limit: Option<Limit>| limit.map(|limit| Bucket::new(limit, now));
        Self { requests: bucket(limits.requests), bytes: bucket(limits.bytes) }
    }

    /// How long until a request may pass, one that moves nothing where `moves` is not set.
    fn wait(&mut self, moves: bool, now: Instant) -> Duration {
        let wait = |bucket: Option<&mut Bucket>| bucket.map_or(Duration::ZERO, |bucket| bucket.wait(now));
        wait(self.requests.as_mut()).max(wait(self.bytes.as_mut().filter(|_| moves)))
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
    }
}

/// What limits go by.
enum Time {
    /// The host's time, and not the guest's, which stands while what is under way ends.
    Host,
    /// A test's.
    Hand(Mutex<Hand>),
}

struct Hand {
    now: Instant,
    timers: Vec<(Instant, OwnedFd)>,
}

/// What all queues of a device may do together.
pub struct Limiter {
    buckets: Mutex<Buckets>,
    time: Time,
}

impl Limiter {
    /// A limiter that has rested.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { buckets: Mutex::new(Buckets::new(limits, Instant::now())), time: Time::Host })
    }

    /// One whose time passes by [`Limiter::advance`] alone: for tests.
    #[must_use]
    pub fn by_hand(limits: Limits) -> Arc<Self> {
        let now = Instant::now();
        let time = Time::Hand(Mutex::new(Hand { now, timers: Vec::new() }));
        Arc::new(Self { buckets: Mutex::new(Buckets::new(limits, now)), time })
    }

    /// Lets time pass, and wakes those whose time has come.
    pub fn advance(&self, passed: Duration) {
        if let Time::Hand(hand) = &self.time {
            let mut hand = lock(hand);
            hand.now += passed;
            let now = hand.now;
            for (_, timer) in hand.timers.extract_if(.., |(at, _)| *at <= now) {
                // A counter that is full has woken.
                let _ = rustix::io::write(&timer, &1u64.to_ne_bytes());
            }
        }
    }

    fn now(&self) -> Instant {
        match &self.time {
            Time::Host => Instant::now(),
            Time::Hand(hand) => lock(hand).now,
        }
    }

    /// Takes what a request of `bytes` costs, or says how long to wait first.
    ///
    /// # Errors
    /// How long.
    pub fn admit(&self, bytes: u64) -> Result<(), Duration> {
        let mut buckets = lock(&self.buckets);
        let wait = buckets.wait(bytes > 0, self.now());
        if !wait.is_zero() {
            return Err(wait);
        }
        buckets.take(bytes);
        Ok(())
    }

    /// How long until a request may pass of which nobody knows yet how much it moves; [`Limiter::take`] tells.
    pub fn wait(&self) -> Duration {
        lock(&self.buckets).wait(true, self.now())
    }

    /// Takes what a request of `bytes` costs, which has passed.
    pub fn take(&self, bytes: u64) {
        lock(&self.buckets).take(bytes);
    }
}

fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor that becomes readable when there has been enough waiting for a [`Limiter`].
pub struct LimitTimer {
    limiter: Arc<Limiter>,
    fd: OwnedFd,
}

impl LimitTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// Where the host refuses one.
    pub fn new(limiter: &Arc<Limiter>) -> io::Result<Self> {
        let fd = match limiter.time {
            Time::Host => timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?,
            Time::Hand(_) => eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        };
        Ok(Self { limiter: limiter.clone(), fd })
    }

    /// Whose it is.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// Sets it to become readable after `wait`.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn set(&self, wait: Duration) -> io::Result<()> {
        match &self.limiter.time {
            Time::Host => {
                let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
                let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
                let wait = Timespec { tv_sec: seconds, tv_nsec: wait.subsec_nanos().into() };
                let once = Itimerspec { it_interval: zero, it_value: wait };
                timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
            }
            Time::Hand(hand) => {
                let mut hand = lock(hand);
                let at = hand.now + wait;
                hand.timers.push((at, self.fd.try_clone()?));
            }
        }
        Ok(())
    }

    /// Makes it unreadable, for those who look at it level-triggered.
    pub fn quiet(&self) {
        // What has been counted is of no interest.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for LimitTimer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for LimitTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
