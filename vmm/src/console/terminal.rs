//! The terminal's raw mode, which ends whenever skep does.
//!
//! It ends with [`RawTerminal`]; at `exit`; in a panic, before its message is written; and at any signal that kills a process, SIGKILL
//! excepted. While skep is stopped (SIGTSTP) the terminal is in its own mode. A terminal that belongs to another job is left alone.
#![allow(unsafe_code)] // Signal handlers and atexit have no safe form.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

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

/// The signals that kill a process where nobody handles them. Those that the control thread waits for are blocked and never come here.
const DEADLY: [i32; 10] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
    libc::SIGSYS,
];

/// The actions that stood before ours, in the order of [`DEADLY`].
static FORMER: OnceLock<[libc::sigaction; DEADLY.len()]> = OnceLock::new();

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
                restore_at_any_exit();
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

fn restore_at_any_exit() {
    let former = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        restore();
        former(panic);
    }));
    // SAFETY: the handler is a plain function that lives as long as the program. Where there is no room for it, the other ways remain.
    let _ = unsafe { libc::atexit(on_exit) };
    let standing = DEADLY.map(|signal| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: no new action is given, and the old one is written to `action`, which is zero and valid if the call fails.
        unsafe {
            libc::sigaction(signal, ptr::null(), action.as_mut_ptr());
            action.assume_init()
        }
    });
    for (signal, former) in DEADLY.iter().zip(FORMER.get_or_init(|| standing)) {
        if former.sa_sigaction == libc::SIG_IGN {
            // `nohup` and the like.
            continue;
        }
        // SAFETY: all zero is a valid sigaction, with an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_deadly as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler does only what a handler may: atomics and system calls.
        unsafe { libc::sigaction(*signal, &raw const action, ptr::null_mut()) };
    }
}

extern "C" fn on_exit() {
    restore();
}

/// Restores the terminal and lets the signal do what it would have done.
extern "C" fn on_deadly(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::c_void) {
    restore();
    let index = DEADLY.iter().position(|known| *known == signal);
    if let Some(former) = FORMER.get().zip(index).and_then(|(former, index)| former.get(index)) {
        // SAFETY: the action was read from this signal.
        unsafe { libc::sigaction(signal, former, ptr::null_mut()) };
    }
    let may_fault = matches!(signal, libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSEGV);
    // SAFETY: the kernel hands a valid siginfo to a handler that was set up with SA_SIGINFO.
    let by_kernel = unsafe { (*info).si_code } > 0;
    if !(may_fault && by_kernel) {
        // It was sent: send it again. A fault comes again by itself when the handler returns.
        // SAFETY: raise(3) may be called in a handler.
        unsafe { libc::raise(signal) };
    }
}
