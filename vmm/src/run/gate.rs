//! The gate that vCPU threads run behind: closing it is pausing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::thread::futex;
use skep_hypervisor::Kick;

#[cfg(test)]
#[path = "gate_test.rs"]
mod test;

/// Nobody goes in, as long as it lasts.
const CLOSED: u32 = 0;
/// vCPUs may run.
const OPEN: u32 = 1;
/// Nobody goes in ever again.
const ENDED: u32 = 2;

/// Lets vCPU threads run guest code while it is open. It starts closed.
///
/// Anybody may close it, a vCPU's own thread from inside a callback too: that vCPU then finishes the access that it is in and leaves. Only the
/// control thread opens it, and waits until nobody is inside.
///
/// Hundreds of threads pass it at the same moment, so there is no lock that they would have to take in turn. Who goes in counts itself before it looks
/// whether the gate is open, and who closes it looks at the count afterwards: all of that is `SeqCst`, and at least one of the two sees the other.
#[derive(Default)]
pub struct Gate {
    /// One of the above. Threads that want to go in wait for it to change.
    state: AtomicU32,
    /// Threads that are inside, or are about to see that they may not be. The control thread waits for 0, which alone wakes it.
    inside: AtomicU32,
    kickers: OnceLock<Vec<Arc<dyn Kick>>>,
}

impl Gate {
    /// Tells the gate whom to kick when it closes.
    pub fn set_kickers(&self, kickers: Vec<Arc<dyn Kick>>) {
        // A machine has one set of vCPUs for its whole life.
        let _ = self.kickers.set(kickers);
    }

    /// Waits until the gate is open, and goes in. `false` when it has ended for good.
    pub fn enter(&self) -> bool {
        loop {
            match self.state.load(Ordering::SeqCst) {
                ENDED => return false,
                CLOSED => wait_while(&self.state, CLOSED),
                _ => {
                    self.inside.fetch_add(1, Ordering::SeqCst);
                    if self.is_open() {
                        return true;
                    }
                    self.leave();
                }
            }
        }
    }

    /// Goes out again.
    pub fn leave(&self) {
        if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
            wake_all(&self.inside);
        }
    }

    /// Whether vCPUs may run.
    pub fn is_open(&self) -> bool {
        self.state.load(Ordering::SeqCst) == OPEN
    }

    /// Closes the gate and kicks everybody out, without waiting for it.
    pub fn close(&self) {
        if self.change(OPEN, CLOSED) {
            self.kick();
        }
    }

    /// Closes the gate and waits until nobody is inside.
    pub fn close_and_wait(&self) {
        self.close();
        loop {
            match self.inside.load(Ordering::SeqCst) {
                0 => return,
                inside => wait_while(&self.inside, inside),
            }
        }
    }

    /// Opens the gate, unless it has ended.
    pub fn open(&self) {
        if self.change(CLOSED, OPEN) {
            wake_all(&self.state);
        }
    }

    /// Closes the gate for good: threads that wait at it, or leave it, end.
    pub fn end(&self) {
        if self.state.swap(ENDED, Ordering::SeqCst) == OPEN {
            self.kick();
        }
        wake_all(&self.state);
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn kick(&self) {
        self.kickers.get().into_iter().flatten().for_each(|kicker| kicker.kick());
    }
}

/// Sleeps while `word` is `value`, or less long: a signal ends it, too.
fn wait_while(word: &AtomicU32, value: u32) {
    // Whoever waits looks again.
    let _ = futex::wait(word, futex::Flags::PRIVATE, value, None);
}

fn wake_all(word: &AtomicU32) {
    // It can't fail for a word of our own.
    let _ = futex::wake(word, futex::Flags::PRIVATE, i32::MAX as u32);
}
