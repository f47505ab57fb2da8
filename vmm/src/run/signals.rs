//! Signals that would end the process end the machine in order instead.
#![allow(unsafe_code)] // signalfd has no safe form.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::signal::create_sigset;

use super::control::watch;
use super::{Request, Requests, StopReason};
use crate::emergency;

/// Takes the signals by which others end a process, in the thread that makes it and in those that it starts afterwards. What was ignored
/// stays ignored.
pub(super) struct Signals {
    file: File,
    requests: Arc<Requests>,
}

impl Signals {
    pub(super) fn new(requests: Arc<Requests>) -> io::Result<Self> {
        emergency::handle_signals();
        let signals: Vec<i32> = emergency::handled().collect();
        let set = create_sigset(&signals).map_err(io::Error::from)?;
        // SAFETY: the set is initialised, and no old mask is asked for.
        let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if blocked != 0 {
            return Err(io::Error::from_raw_os_error(blocked));
        }
        emergency::listen();
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Self { file: unsafe { File::from_raw_fd(fd) }, requests })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        emergency::listen_no_more();
    }
}

impl MutEventSubscriber for Signals {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::new(&self.file, EventSet::IN), "signals");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // struct signalfd_siginfo begins with the signal's number (signalfd(2)).
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while self.file.read_exact(&mut info).is_ok() {
            let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            self.requests.send(Request::Stop(StopReason::Signal(number)));
        }
    }
}
