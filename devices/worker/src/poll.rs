//! How long to poll before sleeping.

use std::time::Duration;

#[cfg(test)]
#[path = "poll_test.rs"]
mod test;

/// The window grows from this share of its bound.
const FIRST_SHARE: u32 = 8;

/// How long a thread polls before it sleeps: between nothing and a bound, by what polling would have earned.
///
/// After a sleep that a poll within the bound would have spared, the window doubles; after a longer one it closes. A steady load keeps it
/// open, and a guest's timer tick does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollWindow {
    bound: Duration,
    length: Duration,
}

impl PollWindow {
    /// A closed window that never opens beyond `bound`; zero turns polling off.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self { bound, length: Duration::ZERO }
    }

    /// How long to poll now.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Tells how long the thread slept until something came, polling not counted.
    pub fn slept(&mut self, time: Duration) {
        self.length = if time > self.bound {
            Duration::ZERO
        } else {
            (self.length * 2).max(self.bound / FIRST_SHARE).min(self.bound)
        };
    }
}
