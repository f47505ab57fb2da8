//! What needs no engine: what the page cache can do at once.

use std::time::{Duration, Instant};

use super::job::{Job, Step};
use super::{Target, host};

/// A write into the page cache that takes longer was held up by the host, which has too much to write back.
const SLOW: Duration = Duration::from_millis(1);
/// For so long writes then go another way.
const AVOID: Duration = Duration::from_millis(100);

/// Does at once what can be done at once: reads of what is cached, and writes into the cache while the host takes them swiftly.
#[derive(Default)]
pub(super) struct Now {
    avoid_writes_until: Option<Instant>,
}

impl Now {
    /// Runs `job` as far as that goes, and says whether it has ended. `read` says whether reads are tried.
    pub(super) fn try_to_end(&mut self, job: &mut Job, target: &Target, read: bool) -> bool {
        loop {
            // Zeroes may be so many that even the page cache takes its time.
            if target.direct || !job.moves() {
                return job.has_ended();
            }
            let result = match job.step() {
                None => return true,
                Some(Step::Read { iovecs, offset }) if read => {
                    let result = host::read_now(&target.file, iovecs, offset);
                    // Of an end of file, a refusal or a wait the engine finds out.
                    if result <= 0 {
                        return false;
                    }
                    result
                }
                Some(step @ Step::Write { dsync: false, .. }) if self.may_write() => {
                    let begun = Instant::now();
                    let result = host::run(&target.file, &step);
                    if begun.elapsed() > SLOW {
                        self.avoid_writes_until = Some(Instant::now() + AVOID);
                    }
                    result
                }
                Some(_) => return false,
            };
            job.advance(result, target);
        }
    }

    fn may_write(&mut self) -> bool {
        if self.avoid_writes_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.avoid_writes_until = None;
        true
    }
}
