//! The guest's clock, and the timers that devices set on it.
//!
//! One [`Clock`] serves every timer of every device of a machine. It counts nanoseconds of *guest time*: it stands while the machine is
//! paused, and can be set, so that a restored machine goes on where the saved one stopped. The guest's CPU counters (TSC, CNTVCT) are the
//! backend's; the machine keeps both in step.
//!
//! Timers run on whichever thread drives the clock ([`Clock::run_due`]): a machine's control thread, or a test by hand.
//!
//! What it does not do: calendar arithmetic (the RTCs have their own), or wake anybody: the driver is told of the next deadline.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(test)]
#[path = "clock_test.rs"]
mod test;

/// A point of guest time, in nanoseconds since the machine's first power-on.
pub type GuestNanos = u64;

/// What a timer does when its deadline has come. It runs on the clock's driver without any lock of the clock held.
pub type Callback = Arc<dyn Fn() + Send + Sync>;

/// What tells the driver that the earliest deadline has changed.
pub type Waker = Box<dyn Fn() + Send + Sync>;

/// Where guest time comes from.
enum Source {
    /// The host's monotonic clock.
    Host,
    /// A number that a test moves.
    Manual(GuestNanos),
}

struct Inner {
    source: Source,
    /// The host's instant and the guest's time of one moment; `None` while paused.
    running_since: Option<Instant>,
    base: GuestNanos,
    /// Wall-clock nanoseconds since the epoch, less guest time.
    wall_offset: i128,
    armed: BTreeMap<(GuestNanos, u64), Callback>,
    next_timer: u64,
}

impl Inner {
    fn now(&self) -> GuestNanos {
        match (&self.source, self.running_since) {
            (Source::Manual(now), _) => *now,
            (Source::Host, Some(since)) => self.base.saturating_add(nanos(since.elapsed())),
            (Source::Host, None) => self.base,
        }
    }

    fn earliest(&self) -> Option<GuestNanos> {
        self.armed.first_key_value().map(|((deadline, _), _)| *deadline)
    }
}

/// A duration in nanoseconds; one that is longer than a clock can tell is as long as it can.
#[must_use]
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

struct Shared {
    inner: Mutex<Inner>,
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the queue whole: each change is one statement.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker();
        }
    }
}

/// The clock of one machine. Clones are handles to the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Shared>);

impl Clock {
    fn new(source: Source, running_since: Option<Instant>, wall_offset: i128) -> Self {
        let inner = Inner { source, running_since, base: 0, wall_offset, armed: BTreeMap::new(), next_timer: 0 };
        Self(Arc::new(Shared { inner: Mutex::new(inner), waker: Mutex::new(None) }))
    }

    /// A clock on the host's monotonic time, paused at 0; its wall clock is the host's.
    #[must_use]
    pub fn host() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        Self::new(Source::Host, None, i128::try_from(wall).unwrap_or(i128::MAX))
    }

    /// A clock that only [`Clock::advance`] moves, with the wall clock `epoch_seconds` at time 0: for tests.
    #[must_use]
    pub fn manual(epoch_seconds: i64) -> Self {
        Self::new(Source::Manual(0), None, i128::from(epoch_seconds) * 1_000_000_000)
    }

    /// Guest time now, in nanoseconds.
    #[must_use]
    pub fn now(&self) -> GuestNanos {
        self.0.lock().now()
    }

    /// The wall clock as the guest's hardware would tell it (UTC), in nanoseconds since the Unix epoch. It follows guest time from the
    /// offset that was last set, so it stands while the machine does.
    #[must_use]
    pub fn wall(&self) -> i128 {
        let inner = self.0.lock();
        inner.wall_offset + i128::from(inner.now())
    }

    /// Sets the wall clock, in nanoseconds since the Unix epoch: on restore, to continue or to jump with the host's.
    pub fn set_wall(&self, epoch_nanos: i128) {
        let mut inner = self.0.lock();
        inner.wall_offset = epoch_nanos - i128::from(inner.now());
    }

    /// Stops guest time. Without effect on a clock that stands.
    pub fn pause(&self) {
        let mut inner = self.0.lock();
        inner.base = inner.now();
        inner.running_since = None;
    }

    /// Lets guest time go on. Without effect on a clock that runs.
    pub fn resume(&self) {
        {
            let mut inner = self.0.lock();
            if inner.running_since.is_none() && matches!(inner.source, Source::Host) {
                inner.running_since = Some(Instant::now());
            }
        }
        self.0.wake();
    }

    /// Sets guest time, the wall clock staying what it is: on restore. Armed timers keep their deadlines.
    pub fn set(&self, now: GuestNanos) {
        {
            let mut inner = self.0.lock();
            let wall = inner.wall_offset + i128::from(inner.now());
            inner.base = now;
            if let Source::Manual(manual) = &mut inner.source {
                *manual = now;
            }
            inner.running_since = inner.running_since.map(|_| Instant::now());
            inner.wall_offset = wall - i128::from(now);
        }
        self.0.wake();
    }

    /// A timer, not armed, that calls `callback`.
    pub fn timer(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        Timer { clock: Arc::downgrade(&self.0), callback: Arc::new(callback), armed: Mutex::new(None) }
    }

    /// Tells the clock whom to wake when the earliest deadline changes or time goes on. The waker may be called on any thread and must
    /// not call the clock.
    pub fn set_waker(&self, waker: Waker) {
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// How long until the earliest deadline: what the driver sleeps at most. `None` while no timer is armed or time stands.
    #[must_use]
    pub fn until_next(&self) -> Option<Duration> {
        let inner = self.0.lock();
        if matches!(inner.source, Source::Host) {
            inner.running_since?;
        }
        inner.earliest().map(|deadline| Duration::from_nanos(deadline.saturating_sub(inner.now())))
    }

    /// Runs every timer whose deadline has come, in their order, and says how many ran.
    pub fn run_due(&self) -> usize {
        let mut ran = 0;
        while let Some(callback) = self.take_due() {
            callback();
            ran += 1;
        }
        ran
    }

    fn take_due(&self) -> Option<Callback> {
        let mut inner = self.0.lock();
        if matches!(inner.source, Source::Host) {
            inner.running_since?;
        }
        let now = inner.now();
        let first = inner.armed.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Moves a manual clock on by `by` nanoseconds, stopping at each deadline on the way to run its timer.
    pub fn advance(&self, by: u64) {
        let end = self.now().saturating_add(by);
        loop {
            let stop = {
                let mut inner = self.0.lock();
                let stop = inner.earliest().map_or(end, |deadline| deadline.min(end));
                let Source::Manual(now) = &mut inner.source else { return };
                *now = stop.max(*now);
                stop
            };
            if self.run_due() == 0 && stop >= end {
                return;
            }
        }
    }
}

/// A timer on a [`Clock`]: armed with a deadline or not. Dropping it disarms it.
pub struct Timer {
    clock: Weak<Shared>,
    callback: Callback,
    armed: Mutex<Option<(GuestNanos, u64)>>,
}

impl Timer {
    /// Arms it for `deadline`, in place of any deadline it had. A deadline that has passed runs at once, on the driver.
    pub fn arm(&self, deadline: GuestNanos) {
        self.replace(Some(deadline));
    }

    /// Disarms it. A callback that has begun on the driver still ends.
    pub fn disarm(&self) {
        self.replace(None);
    }

    fn replace(&self, deadline: Option<GuestNanos>) {
        let Some(clock) = self.clock.upgrade() else { return };
        let changed = {
            let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
            let mut inner = clock.lock();
            let before = inner.earliest();
            if let Some(key) = armed.take() {
                inner.armed.remove(&key);
            }
            if let Some(deadline) = deadline {
                let key = (deadline, inner.next_timer);
                inner.next_timer += 1;
                inner.armed.insert(key, self.callback.clone());
                *armed = Some(key);
            }
            inner.earliest() != before
        };
        if changed {
            clock.wake();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
    }
}
