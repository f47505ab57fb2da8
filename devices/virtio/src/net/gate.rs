//! A limit before one direction of a queue pair.

use std::io;
use std::sync::Arc;

use skep_worker::{EventSet, LimitTimer, Limiter, Sources};

/// Lets frames through while the limit says so.
pub(super) struct Gate {
    /// Nothing where there is no limit.
    timer: Option<LimitTimer>,
    shut: bool,
}

impl Gate {
    pub(super) fn new(limiter: Option<&Arc<Limiter>>) -> io::Result<Self> {
        Ok(Self { timer: limiter.map(LimitTimer::new).transpose()?, shut: false })
    }

    pub(super) fn register(&self, sources: &Sources, token: u64) -> io::Result<()> {
        self.timer.as_ref().map_or(Ok(()), |timer| sources.add(timer, token, EventSet::IN))
    }

    /// The timer has come.
    pub(super) fn ready(&mut self) {
        self.shut = false;
    }

    /// Whether frames may pass, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        !self.shut
    }

    /// Whether one more frame may pass; if not, the timer tells when.
    pub(super) fn admits(&mut self) -> bool {
        let Some(timer) = &self.timer else { return true };
        let wait = timer.limiter().wait();
        if wait.is_zero() {
            return true;
        }
        match timer.set(wait) {
            Ok(()) => self.shut = true,
            Err(error) => {
                tracing::warn!("a network card's limit can't be kept, since its timer can't be set: {error}");
                return true;
            }
        }
        false
    }

    /// A frame of `bytes` has passed.
    pub(super) fn passed(&self, bytes: u64) {
        if let Some(timer) = &self.timer {
            timer.limiter().take(bytes);
        }
    }
}
