//! What needs no engine: what the page cache can do at once.

use std::time::{Duration, Instant};

/// A write into the page cache that takes longer was held up by the host, which has too much to write back.
const SLOW: Duration = Duration::from_millis(1);
/// For so long writes then go another way.
const AVOID: Duration = Duration::from_millis(100);

/// Whether writes go into the page cache at once: while the host takes them swiftly.
#[derive(Default)]
pub(crate) struct Now {
    avoid_writes_until: Option<Instant>,
}

impl Now {
    /// Runs `write`, which writes to the page cache, unless the host was slow of late.
    pub(crate) fn write<T>(&mut self, write: impl FnOnce() -> T) -> Option<T> {
        if !self.may_write() {
            return None;
        }
        let begun = Instant::now();
        let result = write();
        if begun.elapsed() > SLOW {
            self.avoid_writes_until = Some(Instant::now() + AVOID);
        }
        Some(result)
    }

    fn may_write(&mut self) -> bool {
        if self.avoid_writes_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.avoid_writes_until = None;
        true
    }
}
