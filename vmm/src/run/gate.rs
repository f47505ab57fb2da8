//! The gate that vCPU threads run behind: closing it is pausing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_hypervisor::Kick;

#[cfg(test)]
#[path = "gate_test.rs"]
mod test;

#[derive(Default)]
struct Inner {
    inside: usize,
    ended: bool,
}

/// Lets vCPU threads run guest code while it is open. It starts closed.
///
/// Anybody may close it, a vCPU's own thread from inside a callback too: that vCPU then finishes the access that it is in and leaves. Only the
/// control thread opens it, and waits until nobody is inside.
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    inner: Mutex<Inner>,
    changed: Condvar,
    kickers: OnceLock<Vec<Arc<dyn Kick>>>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the gate whom to kick when it closes.
    pub fn set_kickers(&self, kickers: Vec<Arc<dyn Kick>>) {
        // A machine has one set of vCPUs for its whole life.
        let _ = self.kickers.set(kickers);
    }

    /// Waits until the gate is open, and goes in. `false` when it has ended for good.
    pub fn enter(&self) -> bool {
        let mut inner = self.lock();
        loop {
            if inner.ended {
                return false;
            }
            if self.is_open() {
                inner.inside += 1;
                return true;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Goes out again.
    pub fn leave(&self) {
        let mut inner = self.lock();
        inner.inside -= 1;
        if inner.inside == 0 {
            self.changed.notify_all();
        }
    }

    /// Whether vCPUs may run.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Closes the gate and kicks everybody out, without waiting for it.
    pub fn close(&self) {
        if self.open.swap(false, Ordering::AcqRel) {
            for kicker in self.kickers.get().into_iter().flatten() {
                kicker.kick();
            }
        }
    }

    /// Closes the gate and waits until nobody is inside.
    pub fn close_and_wait(&self) {
        self.close();
        let mut inner = self.lock();
        while inner.inside > 0 {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Opens the gate.
    pub fn open(&self) {
        let _inner = self.lock();
        self.open.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Closes the gate for good: threads that wait at it, or leave it, end.
    pub fn end(&self) {
        self.close();
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
