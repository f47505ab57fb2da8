//! The time stamp counters of vCPUs that are stopped.
#![allow(unsafe_code)] // RDTSC.

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
#[path = "tsc_test.rs"]
mod test;

/// The moment, by the host's TSC, for which states are saved and restored while no vCPU runs: one for all vCPUs, so that their counters keep
/// what they are apart to the tick, however long it takes to save the last one.
#[derive(Default)]
pub(super) struct Standstill(AtomicU64);

impl Standstill {
    /// The moment: now, if none has been taken since a vCPU ran, or since it was to be another.
    pub(super) fn moment(&self) -> u64 {
        match self.0.load(Ordering::SeqCst) {
            0 => {
                let now = host_tsc().max(1);
                self.0.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst).map_or_else(|taken| taken, |_| now)
            }
            taken => taken,
        }
    }

    /// It is now from here on, though no vCPU has run: the counters have.
    pub(super) fn renew(&self) {
        self.0.store(host_tsc().max(1), Ordering::SeqCst);
    }

    /// A vCPU is about to run.
    pub(super) fn end(&self) {
        // A line that all vCPUs share is written only if it must be.
        if self.0.load(Ordering::Relaxed) != 0 {
            self.0.store(0, Ordering::SeqCst);
        }
    }
}

fn host_tsc() -> u64 {
    // SAFETY: every CPU that KVM runs on has a TSC, and Linux lets processes read it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
