//! A serial port's way out, which waits for nobody.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skep_chipset::SerialOut;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[cfg(test)]
#[path = "output_test.rs"]
mod test;

/// How much output is kept for an end that doesn't take it.
pub(super) const BACKLOG: usize = 256 << 10;
/// How long the end of the machine waits for an end that doesn't take the rest.
const PATIENCE: Duration = Duration::from_secs(1);
/// How much is written to a descriptor that may block once poll(2) says that it has room: no terminal has less of it then.
const CAREFUL: usize = 64;

/// How a sink is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// A regular file: it may be waited for, and an error (a full disk) may pass.
    Patient,
    /// Its descriptor is our own, and doesn't block.
    Nonblocking,
    /// Its descriptor is shared with other processes, which would be surprised by O_NONBLOCK: ask poll(2) before each write.
    Careful,
}

/// Where output goes.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    manner: Manner,
}

impl Sink {
    pub(super) fn new(file: File, manner: Manner) -> Self {
        Sink { file, manner }
    }

    /// Writes what can be written now.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = match self.manner {
            Manner::Patient | Manner::Nonblocking => bytes,
            Manner::Careful if self.wait(Duration::ZERO)? => &bytes[..bytes.len().min(CAREFUL)],
            Manner::Careful => return Err(ErrorKind::WouldBlock.into()),
        };
        match self.file.write(bytes) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            other => other,
        }
    }

    /// Waits until it can be written to, and says whether it can.
    fn wait(&self, longest: Duration) -> io::Result<bool> {
        let timeout = Timespec::try_from(longest).map_err(io::Error::other)?;
        let ready = poll(&mut [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::OUT)], Some(&timeout))?;
        Ok(ready == 1)
    }
}

#[derive(Debug)]
struct State {
    sink: Option<Sink>,
    /// Output that the sink has not taken yet; it is not empty while the sink is stalled.
    backlog: VecDeque<u8>,
    /// Output is kept while there is no sink, for the next client.
    keeps: bool,
    /// The sink has failed for good: the control thread lets it go.
    broken: bool,
    lost: u64,
    reported: bool,
}

/// What the control thread needs to know of a sink.
pub(super) struct SinkState {
    /// The sink's descriptor, if output waits for it.
    pub(super) stalled: Option<RawFd>,
    /// It has failed for good.
    pub(super) broken: bool,
}

/// The way out, shared by the serial port and the control thread.
#[derive(Debug)]
pub(super) struct Outlet {
    state: Mutex<State>,
    /// Wakes the control thread: the sink's state has changed, or the port has room for input.
    event: EventFd,
}

impl Outlet {
    pub(super) fn new(sink: Option<Sink>, keeps: bool) -> io::Result<Self> {
        let state = State { sink, backlog: VecDeque::new(), keeps, broken: false, lost: 0, reported: false };
        Ok(Outlet { state: Mutex::new(state), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves at worst a byte lost.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn wake(&self) {
        // It fails only when the counter is full, and then the control thread is being woken already.
        let _ = self.event.write(1);
    }

    pub(super) fn clear_wake(&self) {
        let _ = self.event.read();
    }

    pub(super) fn state(&self) -> SinkState {
        let state = self.lock();
        let waiting = state.sink.as_ref().filter(|_| !state.backlog.is_empty());
        SinkState { stalled: waiting.map(|sink| sink.file.as_raw_fd()), broken: state.broken }
    }

    /// Writes, or keeps for later.
    pub(super) fn write(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.backlog.is_empty() || state.sink.is_none() || state.broken {
            state.keep(bytes);
            return;
        }
        let written = state.write(bytes);
        state.keep(bytes.get(written..).unwrap_or_default());
        if state.broken || !state.backlog.is_empty() {
            drop(state);
            self.wake();
        }
    }

    /// Sends what was kept.
    pub(super) fn drain(&self) {
        self.lock().drain();
    }

    /// Forgets what the sink, a regular file, held before.
    pub(super) fn empty(&self) -> io::Result<()> {
        match &self.lock().sink {
            Some(sink) if sink.manner == Manner::Patient => sink.file.set_len(0),
            _ => Ok(()),
        }
    }

    /// A new sink, which first gets what was kept.
    pub(super) fn open(&self, sink: Sink) {
        let mut state = self.lock();
        (state.sink, state.broken, state.reported) = (Some(sink), false, false);
        state.drain();
    }

    /// Lets the sink go. The control thread no longer waits for its descriptor.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        (state.sink, state.broken) = (None, false);
        if !state.keeps {
            state.forget_backlog();
        }
    }

    /// Sends the rest, with bounded patience, and reports what was lost.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        let deadline = Instant::now() + PATIENCE;
        state.drain();
        while let Some(sink) = state.sink.as_ref().filter(|_| !state.backlog.is_empty() && !state.broken) {
            let left = deadline.saturating_duration_since(Instant::now());
            match sink.wait(left) {
                Ok(true) => state.drain(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(false) | Err(_) => break,
            }
        }
        if !state.keeps {
            state.forget_backlog();
        }
        if state.lost > 0 {
            tracing::warn!("console: {} bytes of output were lost", state.lost);
        }
    }
}

impl State {
    /// Writes as much of `bytes` as the sink takes now, and says how much needs no keeping.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while let (Some(sink), Some(rest @ [_, ..])) = (&mut self.sink, bytes.get(written..)) {
            match sink.write(rest) {
                Ok(count) => written += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => break,
                    _ if sink.manner == Manner::Patient => {
                        self.lost += rest.len() as u64;
                        self.report(&error);
                        return bytes.len();
                    }
                    _ => {
                        self.broken = true;
                        self.report(&error);
                        break;
                    }
                },
            }
        }
        written
    }

    fn report(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.reported, true) {
            match self.keeps {
                // A client that goes is no news.
                true => tracing::debug!("console: the client has gone: {error}"),
                false => tracing::warn!("console: output is lost: {error}"),
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if (self.sink.is_none() || self.broken) && !self.keeps {
            // Nobody will ever read it: `--serial none`, or a pipe whose reader has gone.
            return;
        }
        self.backlog.extend(bytes);
        let excess = self.backlog.len().saturating_sub(BACKLOG);
        self.backlog.drain(..excess);
        self.lost += excess as u64;
    }

    fn drain(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        let (first, second) = backlog.as_slices();
        let mut written = self.write(first);
        if written == first.len() {
            written += self.write(second);
        }
        self.backlog = backlog;
        self.backlog.drain(..written);
    }

    fn forget_backlog(&mut self) {
        self.lost += self.backlog.len() as u64;
        self.backlog.clear();
    }
}

/// A serial port's output.
#[derive(Debug)]
pub(super) struct Output(Arc<Outlet>);

impl Output {
    pub(super) fn new(outlet: Arc<Outlet>) -> Self {
        Output(outlet)
    }
}

impl SerialOut for Output {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
}
