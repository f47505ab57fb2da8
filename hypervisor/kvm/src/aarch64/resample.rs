//! Ends of level interrupts: KVM signals an eventfd, one thread of the VM waits on all of them. It is there only once somebody listens.
//!
//! At each end KVM lowers the line, whoever drives it. So the thread calls the listeners, and then drives the line to its level again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use skep_irq::{EoiListener, EoiSubscription};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::lines::Lines;

/// The event that ends the thread; others carry their line.
const STOP: u64 = u64::MAX;

/// A line that is listened to.
struct Line {
    /// Names the attachment when it is taken away.
    raise: EventFd,
    ended: EventFd,
    listeners: BTreeMap<u64, EoiListener>,
}

struct Shared {
    epoll: Epoll,
    lines: Weak<Lines>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    listened: BTreeMap<u32, Line>,
    next: u64,
}

/// Reports ends of interrupt to listeners.
pub(super) struct Resampler {
    shared: Arc<Shared>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Resampler {
    pub(super) fn new(lines: &Arc<Lines>) -> io::Result<Self> {
        let (epoll, stop) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        epoll.ctl(ControlOperation::Add, stop.as_raw_fd(), EpollEvent::new(EventSet::IN, STOP))?;
        let shared = Arc::new(Shared { epoll, lines: Arc::downgrade(lines), inner: Mutex::default() });
        let waiter = shared.clone();
        let thread = thread::Builder::new().name("resample".to_owned()).spawn(move || waiter.wait())?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Calls `listener` at each end of an interrupt of `line`, until the subscription is dropped.
    pub(super) fn subscribe(&self, line: u32, listener: EoiListener) -> io::Result<EoiSubscription> {
        let mut inner = self.shared.lock();
        let number = inner.next;
        inner.next += 1;
        let listened = match inner.listened.entry(line) {
            Entry::Occupied(listened) => listened.into_mut(),
            Entry::Vacant(place) => {
                let lines = self.shared.lines.upgrade().ok_or(io::ErrorKind::NotConnected)?;
                let (raise, ended) = lines.attach_resample(line)?;
                let event = EpollEvent::new(EventSet::IN, line.into());
                self.shared.epoll.ctl(ControlOperation::Add, ended.as_raw_fd(), event)?;
                place.insert(Line { raise, ended, listeners: BTreeMap::new() })
            }
        };
        listened.listeners.insert(number, listener);
        Ok(Box::new(Subscription { shared: Arc::downgrade(&self.shared), line, number }))
    }
}

impl Drop for Resampler {
    fn drop(&mut self) {
        // A counter of 1 always fits.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return tracing::error!("ends of interrupt are no longer reported: {e}"),
            };
            for event in events.iter().take(count) {
                match u32::try_from(event.data()) {
                    Ok(line) => self.ended(line),
                    Err(_) => return,
                }
            }
            // The VM's last user may have been this thread, in `ended`.
            if self.lines.strong_count() == 0 {
                return;
            }
        }
    }

    fn ended(&self, line: u32) {
        let listeners: Vec<_> = {
            let inner = self.lock();
            let Some(listened) = inner.listened.get(&line) else { return };
            // Another event may have taken the count.
            let _ = listened.ended.read();
            listened.listeners.values().cloned().collect()
        };
        for listener in listeners {
            listener();
        }
        if let Some(lines) = self.lines.upgrade() {
            lines.drive_again(line);
        }
    }
}

struct Subscription {
    shared: Weak<Shared>,
    line: u32,
    number: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let last = {
            let mut inner = shared.lock();
            let Some(listened) = inner.listened.get_mut(&self.line) else { return };
            listened.listeners.remove(&self.number);
            if listened.listeners.is_empty() { inner.listened.remove(&self.line) } else { None }
        };
        if let (Some(listened), Some(lines)) = (last, shared.lines.upgrade()) {
            // Closing the eventfds would end it as well.
            let _ = shared.epoll.ctl(ControlOperation::Delete, listened.ended.as_raw_fd(), EpollEvent::default());
            let _ = lines.detach(self.line, &listened.raise);
            // An end that came meanwhile has lowered the line, and nobody waits for it any more.
            lines.drive_again(self.line);
        }
    }
}
