//! What is given up without waiting for a host that hangs.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

#[cfg(test)]
#[path = "wanted_test.rs"]
mod test;

type Tell = Box<dyn FnOnce() + Send>;

/// Something that happens once. Who waits for it is called, on whatever thread it is, or at once if it has happened.
pub(crate) struct Event(Mutex<Option<Vec<Tell>>>);

impl Default for Event {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Event {
    fn swap(&self, new: Option<Tell>) -> Option<Vec<Tell>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (waiting.as_mut(), new) {
            (Some(waiting), Some(new)) => {
                waiting.push(new);
                None
            }
            (None, Some(new)) => Some(vec![new]),
            (_, None) => waiting.take(),
        }
    }

    /// Calls `tell` when it happens.
    pub(crate) fn on(&self, tell: impl FnOnce() + Send + 'static) {
        self.swap(Some(Box::new(tell))).into_iter().flatten().for_each(|tell| tell());
    }

    /// It happens now.
    pub(crate) fn happen(&self) {
        self.swap(None).into_iter().flatten().for_each(|tell| tell());
    }
}

/// Why something is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Why {
    /// Somebody has cancelled it.
    Cancelled = 1,
    /// The machine ends.
    Ended = 2,
}

const WANTED: u8 = 0;
const PAST: u8 = 3;

/// Whether what is being done is still wanted, for who does it and for who gives it up.
#[derive(Default)]
pub(crate) struct Wanted {
    stage: AtomicU8,
    given_up: Event,
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wanted({:?})", self.stage)
    }
}

impl Wanted {
    /// Gives it up, and says whether it is: it may be past that.
    pub(crate) fn give_up(&self, why: Why) -> bool {
        match self.stage.compare_exchange(WANTED, why as u8, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => self.given_up.happen(),
            Err(PAST) => return false,
            Err(_) => {}
        }
        true
    }

    /// From here on it can't be given up.
    ///
    /// # Errors
    /// Why it was.
    pub(crate) fn pass(&self) -> Result<(), Why> {
        let _ = self.stage.compare_exchange(WANTED, PAST, Ordering::AcqRel, Ordering::Acquire);
        self.check()
    }

    /// # Errors
    /// Why it is not wanted any more.
    pub(crate) fn check(&self) -> Result<(), Why> {
        match self.stage.load(Ordering::Acquire) {
            1 => Err(Why::Cancelled),
            2 => Err(Why::Ended),
            _ => Ok(()),
        }
    }

    /// What comes of `work`, which a host that hangs keeps for as long as it likes: it is done on a thread of its own, and left there when this is
    /// given up. `None` is for that, and for a panic.
    ///
    /// # Errors
    /// Where the host has no thread left.
    pub(crate) fn wait<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
        struct Told<T>(Sender<Option<T>>);
        impl<T> Drop for Told<T> {
            fn drop(&mut self) {
                // Nobody may wait any more.
                let _ = self.0.send(None);
            }
        }
        let (tell, told) = channel();
        let (done, given_up) = (Told(tell.clone()), Told(tell));
        thread::Builder::new().name("flush".to_owned()).spawn(move || {
            let done = done;
            let _ = done.0.send(Some(work()));
        })?;
        self.given_up.on(move || drop(given_up));
        Ok(told.recv().ok().flatten())
    }
}
