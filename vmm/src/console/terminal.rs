//! The terminal's raw mode, which ends whenever skep does.
//!
//! It ends with [`RawTerminal`]; at `exit`; in a panic, before its message is written; and at any signal that kills a process, SIGKILL
//! excepted. While skep is stopped (SIGTSTP) the terminal is in its own mode. A terminal that belongs to another job is left alone.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::emergency;

#[cfg(test)]
#[path = "terminal_test.rs"]
mod test;

/// The process's terminal: there is at most one.
static TERMINAL: OnceLock<Terminal> = OnceLock::new();

struct Terminal {
    fd: OwnedFd,
    /// The mode that it had.
    own: Termios,
    raw: Termios,
    /// Raw mode is wanted; while skep is stopped it is not in force.
    wanted: AtomicBool,
    in_force: AtomicBool,
}

/// Raw mode, until it is dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Turns the process's terminal raw.
    ///
    /// # Errors
    ///
    /// Where `terminal` is none.
    pub fn enter(terminal: &File) -> io::Result<Self> {
        if TERMINAL.get().is_none() {
            let own = tcgetattr(terminal)?;
            let mut raw = own.clone();
            raw.make_raw();
            let fd = terminal.as_fd().try_clone_to_owned()?;
            let first = TERMINAL.set(Terminal {
                fd,
                own,
                raw,
                wanted: AtomicBool::new(false),
                in_force: AtomicBool::new(false),
            });
            if first.is_ok() {
                emergency::arm();
            }
        }
        if let Some(terminal) = TERMINAL.get() {
            terminal.wanted.store(true, Ordering::SeqCst);
            terminal.force();
        }
        Ok(RawTerminal(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether `stream` is a terminal in raw mode, where a new line needs a carriage return.
pub fn is_raw(stream: &impl IsTerminal) -> bool {
    TERMINAL.get().is_some_and(|terminal| terminal.in_force.load(Ordering::SeqCst)) && stream.is_terminal()
}

/// Ends raw mode. Safe to call at any moment, from a signal handler too.
pub fn restore() {
    if let Some(terminal) = TERMINAL.get() {
        terminal.wanted.store(false, Ordering::SeqCst);
        terminal.release();
    }
}

/// The terminal's own mode, until [`resume`].
pub(super) fn suspend() {
    if let Some(terminal) = TERMINAL.get() {
        terminal.release();
    }
}

/// Raw mode again, if it is wanted.
pub(super) fn resume() {
    if let Some(terminal) = TERMINAL.get()
        && terminal.wanted.load(Ordering::SeqCst)
    {
        terminal.force();
    }
}

/// Raw mode again, if it is wanted and was not to be had: a shell tells nobody when it brings a running job back to the foreground.
pub(super) fn insist() {
    if TERMINAL.get().is_some_and(|terminal| !terminal.in_force.load(Ordering::SeqCst)) {
        resume();
    }
}

impl Terminal {
    fn force(&self) {
        if self.is_ours() && tcsetattr(&self.fd, OptionalActions::Now, &self.raw).is_ok() {
            self.in_force.store(true, Ordering::SeqCst);
        }
    }

    fn release(&self) {
        if self.in_force.swap(false, Ordering::SeqCst) && self.is_ours() {
            // A terminal that has gone has no mode to restore.
            let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.own);
        }
    }

    /// Whether this process is in the terminal's foreground, or has nothing to do with its job control.
    fn is_ours(&self) -> bool {
        tcgetpgrp(&self.fd).map_or(true, |foreground| foreground == getpgrp())
    }
}
