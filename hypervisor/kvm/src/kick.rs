//! Stopping a vCPU from another thread.
#![allow(unsafe_code)] // Signals, and a flag in memory that is shared with the kernel.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use skep_hypervisor::Kick;

#[cfg(test)]
#[path = "kick_test.rs"]
mod test;

/// The signal that makes `KVM_RUN` return.
pub(crate) fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the handler, once in a process. It does nothing: the signal's arrival is what ends `KVM_RUN`.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn handler(_: libc::c_int) {}
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: zeroes are a valid `sigaction`: no flags, an empty mask, the default handler.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = handler as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // A system call of a device's, on the vCPU's thread, goes on; KVM_RUN returns all the same.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the structure is whole, and the handler touches nothing.
        match unsafe { libc::sigaction(signal(), action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// The thread that is inside [`Kicker::running`], and its vCPU's `immediate_exit`, which makes `KVM_RUN` return before guest code.
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is followed only under the kicker's lock, where it is known to be valid.
unsafe impl Send for Target {}

/// Stops one vCPU.
#[derive(Default)]
pub(crate) struct Kicker {
    requested: AtomicBool,
    target: Mutex<Option<Target>>,
}

impl Kicker {
    fn lock(&self) -> MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this thread is about to run the vCPU, until the guard is dropped. A kick that came before makes the first `KVM_RUN`
    /// return at once.
    ///
    /// # Safety
    /// `immediate_exit` stays valid until the guard is dropped.
    pub(crate) unsafe fn running(self: &Arc<Self>, immediate_exit: *const AtomicU8) -> Running {
        // SAFETY: this thread exists.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target { thread, immediate_exit });
        // After the target is known: a kick from now on finds it, one from before is seen here.
        if self.requested.load(Ordering::SeqCst) {
            // SAFETY: the caller's promise.
            unsafe { &*immediate_exit }.store(1, Ordering::SeqCst);
        }
        Running(self.clone())
    }

    /// Takes the request, if there is one. The flag in the vCPU's page has been cleared before: a kick that comes between sets it again.
    pub(crate) fn take(&self) -> bool {
        self.requested.swap(false, Ordering::SeqCst)
    }
}

impl Kick for Kicker {
    fn kick(&self) {
        self.requested.store(true, Ordering::SeqCst);
        // The lock keeps the thread inside its run: neither its id nor the page can go meanwhile.
        if let Some(target) = &*self.lock() {
            // SAFETY: `running`'s caller promises that the flag is valid while the guard lives, and its drop takes the target away.
            unsafe { &*target.immediate_exit }.store(1, Ordering::SeqCst);
            // SAFETY: the thread lives, as above; a full queue of signals (EAGAIN) can only mean that one is pending already.
            unsafe { libc::pthread_kill(target.thread, signal()) };
        }
    }
}

/// While it lives, its vCPU's thread may be signalled.
pub(crate) struct Running(Arc<Kicker>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}
