//! How long to poll before sleeping.

use std::time::Duration;

#[cfg(test)]
#[path = "poll_test.rs"]
mod test;

/// The window is never less than this share of its bound.
const LEAST_SHARE: u32 = 8;

/// How long a thread polls before it sleeps: between a small share of a bound and all of it, by what polling would have earned.
///
/// After a sleep that a poll within the bound would have spared, the window doubles; after a longer one it has its least length again. That is
/// not nothing: what a sleep takes includes the thread's wake-up, so that where this is slower than the bound, nothing else would show that a
/// driver's next request comes at once. A steady load keeps the window open, and a guest's timer tick does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollWindow {
    bound: Duration,
    length: Duration,
}

impl PollWindow {
    /// A window of the least length, that never opens beyond `bound`; zero turns polling off.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self { bound, length: bound / LEAST_SHARE }
    }

    /// How long to poll now.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Tells how long the thread slept until something came, polling not counted.
    pub fn slept(&mut self, time: Duration) {
        self.length = if time > self.bound { self.bound / LEAST_SHARE } else { (self.length * 2).min(self.bound) };
    }
}
