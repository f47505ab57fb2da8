//! The way from whoever does what a client asked for back to the client.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::protocol::{Answer, ErrorKind, Failure, response};

/// Responses on their way to the control thread, each with its connection's number.
pub(super) struct Outbox {
    lines: Mutex<Vec<(u32, Vec<u8>)>>,
    event: EventFd,
}

impl Outbox {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { lines: Mutex::default(), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Readable while there is something in it.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    fn put(&self, connection: u32, line: Vec<u8>) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push((connection, line));
        // It fails only when the counter is full, and then the control thread is being woken already.
        let _ = self.event.write(1);
    }

    /// Takes all.
    pub(super) fn take(&self) -> Vec<(u32, Vec<u8>)> {
        let _ = self.event.read();
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Answers one request, from any thread. Of its clones the first that answers does; when all are dropped without an answer, the client is told that the
/// machine has ended.
#[derive(Clone)]
pub struct Reply(Arc<Open>);

struct Open {
    outbox: Arc<Outbox>,
    connection: u32,
    id: Option<u64>,
    answered: AtomicBool,
}

impl Reply {
    pub(super) fn new(outbox: &Arc<Outbox>, connection: u32, id: Option<u64>) -> Self {
        Self(Arc::new(Open { outbox: outbox.clone(), connection, id, answered: AtomicBool::new(false) }))
    }

    /// One that is not heard.
    #[cfg(test)]
    pub(crate) fn to_nobody() -> Self {
        Self::new(&Arc::new(Outbox::new().expect("the host has eventfds")), 0, None)
    }

    /// Tells what came of the request. A client that has gone misses it.
    pub fn send(self, outcome: Result<Answer, Failure>) {
        self.0.answer(&outcome);
    }
}

impl Open {
    fn answer(&self, outcome: &Result<Answer, Failure>) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.outbox.put(self.connection, response(self.id, outcome));
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.answer(&Err(Failure::new(ErrorKind::Ended, "the machine has ended before that was done")));
    }
}
