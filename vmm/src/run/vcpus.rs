//! vCPU threads.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};
use std::time::Instant;

use skep_hypervisor::{Arch, Exit, ExitCounts, Vcpu};

use super::{Gate, Request, Requests};

#[cfg(test)]
#[path = "vcpus_test.rs"]
mod test;

/// What a vCPU calls back into, made once for each.
pub type BoxedIo<A> = Box<<A as Arch>::Io>;

/// A vCPU and what it calls back into. Its thread holds the lock while it is inside the gate; whoever has closed the gate may take it.
pub struct Slot<A: Arch> {
    /// The vCPU.
    pub vcpu: Box<dyn Vcpu<A>>,
    /// What it calls back into.
    pub io: BoxedIo<A>,
    /// It has stood still, and hears of it before it runs.
    stood_still: bool,
}

impl<A: Arch> Slot<A> {
    /// A vCPU that has not run yet.
    pub fn new(vcpu: Box<dyn Vcpu<A>>, io: BoxedIo<A>) -> Self {
        Self { vcpu, io, stood_still: false }
    }

    /// Tells the vCPU that it stood still, where that is so.
    fn tell(&mut self) {
        if mem::take(&mut self.stood_still)
            && let Err(error) = self.vcpu.stood_still()
        {
            tracing::warn!("the guest may tell of lockups that there were none of: {error}");
        }
    }
}

/// The vCPUs of a machine and their threads.
pub struct Vcpus<A: Arch> {
    slots: Vec<Arc<Mutex<Slot<A>>>>,
    threads: Vec<JoinHandle<()>>,
    gate: Arc<Gate>,
    first_run: Arc<Mutex<Option<Instant>>>,
}

impl<A: Arch> Vcpus<A> {
    /// Takes the vCPUs over. Nothing runs yet.
    pub fn new(slots: Vec<Slot<A>>, gate: Arc<Gate>) -> Self {
        gate.set_kickers(slots.iter().map(|slot| slot.vcpu.kicker()).collect());
        let slots = slots.into_iter().map(|slot| Arc::new(Mutex::new(slot))).collect();
        Self { slots, threads: Vec::new(), gate, first_run: Arc::default() }
    }

    /// Starts a thread for each vCPU, which waits at the gate.
    ///
    /// # Errors
    /// Where the host refuses a thread; those that were started end.
    pub fn start(&mut self, requests: &Arc<Requests>) -> io::Result<()> {
        for (index, slot) in self.slots.iter().enumerate() {
            let (slot, gate, requests) = (slot.clone(), self.gate.clone(), requests.clone());
            let first_run = (index == 0).then(|| self.first_run.clone());
            let thread = Builder::new().name(format!("vcpu{index}")).stack_size(THREAD_STACK);
            self.threads.push(thread.spawn(move || thread_main(index, &slot, &gate, &requests, first_run.as_deref()))?);
        }
        Ok(())
    }

    /// Each vCPU in turn, with the gate closed and empty.
    pub fn paused(&self) -> impl Iterator<Item = MutexGuard<'_, Slot<A>>> {
        self.slots.iter().map(|slot| lock(slot))
    }

    /// The vCPUs are about to go on after a standstill, with the gate closed and empty: each hears of it on its own thread, when the gate is open. There
    /// may be hundreds, and it takes a backend a while.
    pub fn stood_still(&self) {
        self.paused().for_each(|mut slot| slot.stood_still = true);
    }

    /// When the first vCPU first ran.
    pub fn first_run(&self) -> Option<Instant> {
        *lock(&self.first_run)
    }

    /// How often vCPUs have left guest code, with the gate closed and empty.
    pub fn exits(&self) -> ExitCounts {
        let mut sum = ExitCounts::default();
        self.paused().for_each(|slot| sum.add(&slot.vcpu.exits()));
        sum
    }
}

impl<A: Arch> Drop for Vcpus<A> {
    fn drop(&mut self) {
        self.gate.end();
        for thread in self.threads.drain(..) {
            // A panic in a vCPU's thread has been reported by the panic hook, and as a request.
            let _ = thread.join();
        }
    }
}

/// What a vCPU's thread needs is known: a run loop, a device's handler, a message.
const THREAD_STACK: usize = 256 << 10;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Being inside the gate, for a vCPU's thread.
struct Inside<'a> {
    index: usize,
    gate: &'a Gate,
    requests: &'a Requests,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // Nobody else would hear of it, and a machine that lacks a vCPU must not run on.
            self.requests.send(Request::Panicked { vcpu: self.index });
        }
        self.gate.leave();
    }
}

fn thread_main<A: Arch>(
    index: usize,
    slot: &Mutex<Slot<A>>,
    gate: &Gate,
    requests: &Requests,
    mut first_run: Option<&Mutex<Option<Instant>>>,
) {
    while gate.enter() {
        let _inside = Inside { index, gate, requests };
        if let Some(first_run) = first_run.take() {
            *lock(first_run) = Some(Instant::now());
        }
        let mut slot = lock(slot);
        slot.tell();
        let Slot { vcpu, io, .. } = &mut *slot;
        while gate.is_open() {
            match vcpu.run(io) {
                Ok(Exit::Kicked) => {}
                Ok(Exit::PowerOff) => requests.send(Request::PowerOff),
                Ok(Exit::Reset) => requests.send(Request::Reset),
                Ok(Exit::GuestPanic) => requests.send(Request::Panic),
                Ok(Exit::TripleFault) => requests.send(Request::TripleFault { vcpu: vcpu.index() }),
                Err(error) => requests.send(Request::Failed(error)),
            }
        }
    }
}
