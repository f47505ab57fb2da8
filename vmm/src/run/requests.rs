//! What vCPUs and devices ask of the control thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_hypervisor::VcpuError;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Gate;
use crate::ctl::Call;

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
    /// Firmware that can't do without system management mode has started.
    SmmWanted,
    /// What the control thread waits for is done, or was, if it waits no more.
    Done(Ticket),
    /// Memory has been written to a snapshot, or that has failed: the guest can go on.
    Written,
    /// A machine that migrates is to stand still, and its state to be handed over.
    HandOver,
    /// A migration has ended: the machine has gone, or stays.
    Migrated,
    /// A machine that has come is this process's to run (`true`), or will not be.
    Arrived(bool),
    /// A client of the control socket wants something. The guest runs on meanwhile.
    Command(Call),
    /// The user, or a signal, ends the machine.
    Stop(StopReason),
}

impl Request {
    /// Whether the guest stands still until it is taken.
    pub(crate) fn freezes(&self) -> bool {
        !matches!(
            self,
            Request::Done(_)
                | Request::Command(_)
                | Request::Written
                | Request::HandOver
                | Request::Migrated
                | Request::Arrived(_)
        )
    }
}

/// Names one thing that the control thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// Who ended the machine from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The escape key on the console.
    Console,
    /// A command at the control socket.
    Control,
    /// A signal, by its number.
    Signal(i32),
}

/// The way to the control thread. A request freezes the machine at once: the vCPU that made it executes nothing more, and the others leave at their next
/// exit. Only commands leave it running.
pub struct Requests {
    queue: Mutex<VecDeque<Request>>,
    event: EventFd,
    gate: Arc<Gate>,
    tickets: AtomicU64,
}

impl Requests {
    /// A queue that closes `gate`.
    ///
    /// # Errors
    /// Where the host has no file descriptor left.
    pub fn new(gate: Arc<Gate>) -> std::io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            gate,
            tickets: AtomicU64::new(0),
        })
    }

    /// Names something to wait for; whoever has done it says so, on any thread, by what comes with it.
    pub fn ticket(self: &Arc<Self>) -> (Ticket, impl Fn() + Clone + Send + Sync + use<>) {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let requests = self.clone();
        (ticket, move || requests.send(Request::Done(ticket)))
    }

    /// Makes a request, from any thread.
    pub fn send(&self, request: Request) {
        let mut queue = self.lock();
        if request.freezes() {
            self.gate.close();
        }
        queue.push_back(request);
        drop(queue);
        // It fails only when the counter is full, and then the control thread is being woken already.
        let _ = self.event.write(1);
    }

    /// Opens the gate, unless somebody has made a request that closed it and is still to be taken. The control thread's.
    pub fn open_gate(&self) {
        let queue = self.lock();
        if !queue.iter().any(Request::freezes) {
            self.gate.open();
        }
    }

    /// Whether somebody waits to be heard who has closed the gate: the guest is about to end, or to begin anew.
    pub fn is_ending(&self) -> bool {
        self.lock().iter().any(Request::freezes)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The oldest request.
    pub fn take(&self) -> Option<Request> {
        let _ = self.event.read();
        let mut queue = self.lock();
        let request = queue.pop_front();
        if !queue.is_empty() {
            let _ = self.event.write(1);
        }
        request
    }

    /// Forgets what was asked before a restart: two vCPUs may have asked for the same one. What comes from outside is kept.
    pub fn forget(&self) {
        self.lock().retain(|request| matches!(request, Request::Stop(_)) || !request.freezes());
    }

    /// Readable while there are requests.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}
