//! Ends that nobody planned: a signal, a panic, `exit`. What skep has changed on its host is undone first.
//!
//! A signal by which others end a process (SIGTERM, SIGUSR1, ...) is the control loop's once that listens, whichever thread it came to; until
//! then, and for a fault at any time, the handler here undoes what there is and lets the signal do what it would have done. A signal that
//! was ignored when skep began (`nohup`) stays ignored, and one that somebody else handles stays theirs: KVM's kicks are the first
//! real-time signal. SIGKILL can't be caught.
#![allow(unsafe_code)] // Signal handlers and atexit have no safe form.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::panic;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Once, OnceLock};

use crate::console::terminal;
use crate::leftover;

/// Signals by which a user, a terminal, a service manager, a timer or a limit ends a process.
const ENDING: [i32; 13] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGSTKFLT,
    libc::SIGIO,
    libc::SIGPWR,
];

/// Signals of a program that can't go on.
const FAULTS: [i32; 7] =
    [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV, libc::SIGSYS, libc::SIGTRAP];

/// Beyond the last signal of Linux.
const BEYOND: usize = 65;

/// For each signal that is handled here, the action that stood before.
static FORMER: [OnceLock<libc::sigaction>; BEYOND] = [const { OnceLock::new() }; BEYOND];

/// The thread that hears of signals in order, or 0.
static LISTENER: AtomicI32 = AtomicI32::new(0);

/// Real-time signals, but the first, which hypervisors kick their vCPUs by.
fn real_time() -> Range<i32> {
    libc::SIGRTMIN() + 1..libc::SIGRTMAX() + 1
}

/// Makes a write beyond the limit of file sizes (`ulimit -f`) an error, EFBIG, where its signal would end the process without a word.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is involved.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Handles the signals by which others end a process.
pub(crate) fn handle_signals() {
    static DONE: Once = Once::new();
    DONE.call_once(|| handle(ENDING.into_iter()));
}

/// From here on there is something to undo, however the process ends.
pub(crate) fn arm() {
    static DONE: Once = Once::new();
    handle_signals();
    DONE.call_once(|| {
        let former = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // Before the message. Names go as the stack unwinds, or by the signal where a panic aborts.
            terminal::restore();
            former(panic);
        }));
        // SAFETY: the handler is a plain function that lives as long as the program. Where there is no room for it, the other ways remain.
        let _ = unsafe { libc::atexit(on_exit) };
        handle(FAULTS.into_iter().chain(real_time()));
    });
}

/// The signals by which others would end this process, now that they are handled here.
pub(crate) fn handled() -> impl Iterator<Item = i32> {
    ENDING.into_iter().chain(real_time()).filter(|signal| former(*signal).is_some())
}

/// Passes what is [`handled`] on to this thread, which has blocked it and listens.
pub(crate) fn listen() {
    LISTENER.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::SeqCst);
}

/// Nobody listens any more.
pub(crate) fn listen_no_more() {
    LISTENER.store(0, Ordering::SeqCst);
}

fn former(signal: i32) -> Option<&'static libc::sigaction> {
    FORMER.get(usize::try_from(signal).ok()?)?.get()
}

fn undo() {
    terminal::restore();
    leftover::remove_all();
}

extern "C" fn on_exit() {
    undo();
}

/// Handles `signals` here, but those that are ignored, or that somebody handles already. (Of faults Rust has a handler, which tells of a full
/// stack and comes after ours.) They wait meanwhile: one that was ignored must not end the process now.
fn handle(signals: impl Iterator<Item = i32>) {
    // SAFETY: all zero is a valid sigaction, with an empty mask.
    let mut ours: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    ours.sa_sigaction = on_signal as *const () as libc::sighandler_t;
    // A system call goes on where the signal is passed on.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    let (mut all, mut mask) = (MaybeUninit::<libc::sigset_t>::zeroed(), MaybeUninit::<libc::sigset_t>::zeroed());
    // SAFETY: the sets are ours, and filled by the calls.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), mask.as_mut_ptr());
    }
    for signal in signals {
        let Some(slot) = usize::try_from(signal).ok().and_then(|index| FORMER.get(index)) else { continue };
        let mut former = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the handler does only what a handler may: atomics and system calls. `former` is zero and valid if the call fails.
        let former = unsafe {
            libc::sigaction(signal, &raw const ours, former.as_mut_ptr());
            former.assume_init()
        };
        let free = former.sa_sigaction == libc::SIG_DFL || FAULTS.contains(&signal);
        if free && former.sa_sigaction != libc::SIG_IGN {
            // It is the first to be set: each signal is handled once.
            let _ = slot.set(former);
        } else {
            // SAFETY: the action stood before.
            unsafe { libc::sigaction(signal, &raw const former, ptr::null_mut()) };
        }
    }
    // SAFETY: the mask was read above; where that failed, it is empty, as a mask is by default.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut()) };
}

extern "C" fn on_signal(signal: i32, info: *const libc::siginfo_t, _context: *mut libc::c_void) {
    let fault = FAULTS.contains(&signal);
    if !fault && pass_on(signal) {
        return;
    }
    let Some(former) = former(signal) else {
        // Another thread is just finding out whether it is ignored.
        return;
    };
    undo();
    // After these the instruction that faulted is tried again, and tells its former handler, if it was not sent by somebody.
    let comes_again = matches!(signal, libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSEGV);
    // SAFETY: the kernel hands a valid siginfo to a handler that was set up with SA_SIGINFO.
    let by_kernel = unsafe { (*info).si_code } > 0;
    if comes_again && by_kernel {
        // SAFETY: the action was read from this signal.
        unsafe { libc::sigaction(signal, former, ptr::null_mut()) };
    } else {
        // SAFETY: signal(2) with no handler, and raise(3), may be called in a handler.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// Sends a signal that came to a thread which does not block it on to the one that listens.
fn pass_on(signal: i32) -> bool {
    let listener = LISTENER.load(Ordering::SeqCst);
    // SAFETY: two system calls, which touch no memory.
    listener != 0 && unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), listener, signal) == 0 }
}
