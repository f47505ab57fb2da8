//! What vCPUs and devices ask of the control thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use skep_hypervisor::VcpuError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Gate;

/// What only the control thread can do.
#[derive(Debug)]
pub enum Request {
    /// The guest has powered its machine off.
    PowerOff,
    /// The guest has reset its machine.
    Reset,
    /// The guest says that its kernel has panicked.
    Panic,
    /// A vCPU has shut down.
    TripleFault {
        /// Which.
        vcpu: u32,
    },
    /// A vCPU can't go on.
    Failed(VcpuError),
    /// A vCPU's thread has panicked.
    Panicked {
        /// Which.
        vcpu: usize,
    },
    /// The devices have stopped, as was asked of them.
    Stopped,
    /// The user, or a signal, ends the machine.
    Stop(StopReason),
}

/// Who ended the machine from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The escape key on the console.
    Console,
    /// A signal, by its number.
    Signal(i32),
}

/// The way to the control thread. A request freezes the machine at once: the vCPU that made it executes nothing more, and the others leave at their next
/// exit.
pub struct Requests {
    queue: Mutex<VecDeque<Request>>,
    event: EventFd,
    gate: Arc<Gate>,
}

impl Requests {
    /// A queue that closes `gate`.
    ///
    /// # Errors
    /// Where the host has no file descriptor left.
    pub fn new(gate: Arc<Gate>) -> std::io::Result<Self> {
        Ok(Self { queue: Mutex::default(), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, gate })
    }

    /// Makes a request, from any thread.
    pub fn send(&self, request: Request) {
        self.gate.close();
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(request);
        // It fails only when the counter is full, and then the control thread is being woken already.
        let _ = self.event.write(1);
    }

    /// The oldest request.
    pub fn take(&self) -> Option<Request> {
        let _ = self.event.read();
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let request = queue.pop_front();
        if !queue.is_empty() {
            let _ = self.event.write(1);
        }
        request
    }

    /// Forgets what was asked before a restart: two vCPUs may have asked for the same one. What comes from outside is kept.
    pub fn forget(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|request| matches!(request, Request::Stop(_)));
    }

    /// Readable while there are requests.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
