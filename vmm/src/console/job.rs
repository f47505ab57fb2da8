//! Job control: the terminal is handed back while skep is stopped.
#![allow(unsafe_code)] // signalfd and the mask of signals have no safe form.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::FromRawFd;

use rustix::process::{Signal, getpid, kill_process};
use vmm_sys_util::signal::create_sigset;

use super::terminal;

/// Hears of SIGTSTP and SIGCONT, which it blocks for the thread that makes it and those started afterwards.
#[derive(Debug)]
pub(super) struct JobControl {
    file: File,
}

impl JobControl {
    pub(super) fn new() -> io::Result<Self> {
        let signals = create_sigset(&[libc::SIGTSTP, libc::SIGCONT]).map_err(io::Error::from)?;
        change_mask(libc::SIG_BLOCK, &signals)?;
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(JobControl { file: unsafe { File::from_raw_fd(fd) } })
    }

    /// Readable when a signal has come.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn process(&mut self) {
        // struct signalfd_siginfo begins with the signal's number (signalfd(2)).
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while self.file.read_exact(&mut info).is_ok() {
            match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                libc::SIGTSTP => suspend(),
                // After a SIGSTOP as well, of which nobody is told: the shell has set the terminal up for itself since.
                _ => terminal::resume(),
            }
        }
    }
}

/// Stops the process as SIGTSTP would have, with the terminal in its own mode meanwhile.
pub(super) fn suspend() {
    terminal::suspend();
    let stopped = create_sigset(&[libc::SIGTSTP]).map_err(io::Error::from).and_then(|stop| {
        change_mask(libc::SIG_UNBLOCK, &stop)?;
        // This thread alone takes it, so it is delivered before the call returns; the process goes on from here when it is continued.
        let killed = kill_process(getpid(), Signal::TSTP);
        change_mask(libc::SIG_BLOCK, &stop)?;
        Ok(killed?)
    });
    if let Err(error) = stopped {
        tracing::warn!("console: skep can't be stopped: {error}");
    }
    terminal::resume();
}

fn change_mask(how: i32, signals: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised, and no old mask is asked for.
    match unsafe { libc::pthread_sigmask(how, signals, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
