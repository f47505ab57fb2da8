//! What the vCPUs of a VM under test call back into: it writes every access down and answers as the case wants.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::x86_64::MsrFault;
use crate::{Kick, MemoryIo, aarch64, x86_64};

/// How long anything may take before it counts as hung. No case depends on it otherwise.
pub(super) const DEADLINE: Duration = Duration::from_secs(180);

/// What an access goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Space {
    Memory,
    Port,
    Msr,
    /// The end of an interrupt; the address is the vector.
    End,
}

/// An access that a vCPU has called back with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub cpu: u32,
    pub space: Space,
    pub write: bool,
    pub address: u64,
    /// In bytes; 0 for the end of an interrupt.
    pub width: usize,
    /// What was written, or answered.
    pub value: u64,
}

type Handler = Arc<Mutex<dyn FnMut(&Access) -> u64 + Send>>;

#[derive(Default)]
pub(super) struct Bus {
    log: Mutex<Vec<Access>>,
    changed: Condvar,
    handlers: Mutex<BTreeMap<(Space, u64), Handler>>,
    /// The vector that the PIC would give at INTA, while its output is high.
    external: Mutex<Option<u8>>,
    /// The case has failed: vCPUs stop at the next kick.
    given_up: AtomicBool,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    /// Answers each access to an address by `handler`: for a read its result is what is read. Without one, reads give 0.
    pub(super) fn on(&self, space: Space, address: u64, handler: impl FnMut(&Access) -> u64 + Send + 'static) {
        lock(&self.handlers).insert((space, address), Arc::new(Mutex::new(handler)));
    }

    /// Everything so far.
    pub(super) fn log(&self) -> Vec<Access> {
        lock(&self.log).clone()
    }

    /// The accesses to memory at `address` so far.
    pub(super) fn at(&self, address: u64) -> Vec<Access> {
        self.log().into_iter().filter(|access| access.space == Space::Memory && access.address == address).collect()
    }

    /// Forgets what was written down.
    pub(super) fn forget(&self) {
        lock(&self.log).clear();
    }

    /// Waits until memory at `address` has been accessed `count` times.
    pub(super) fn wait(&self, address: u64, count: usize) {
        let to = |access: &&Access| access.space == Space::Memory && access.address == address;
        self.wait_for(&format!("{address:#x} is accessed {count} times"), |log| log.iter().filter(to).count() >= count);
    }

    /// Waits until the accesses so far are as `what` says.
    pub(super) fn wait_for(&self, what: &str, reached: impl Fn(&[Access]) -> bool) {
        let waited = self.changed.wait_timeout_while(lock(&self.log), DEADLINE, |log| !reached(log));
        let (log, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let log = log.clone();
        assert!(!timeout.timed_out(), "in vain: {what}; all accesses: {log:x?}");
    }

    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Sets the PIC's output, and the vector that it would give.
    pub(super) fn set_external(&self, vector: Option<u8>) {
        *lock(&self.external) = vector;
    }

    fn access(&self, mut access: Access) -> u64 {
        let handler = lock(&self.handlers).get(&(access.space, access.address)).cloned();
        // No lock is held here that another vCPU, or a handler, could want.
        let answer = handler.map_or(0, |handler| lock(&*handler)(&access));
        if !access.write {
            access.value = answer;
        }
        lock(&self.log).push(access);
        self.changed.notify_all();
        answer
    }
}

/// One vCPU's end of the bus.
pub(super) struct Recorder {
    pub cpu: u32,
    pub bus: Arc<Bus>,
    pub kicker: Arc<dyn Kick>,
    /// A write here stops the vCPU.
    pub stop_at: u64,
    /// The address and the value of the write that has stopped it.
    pub stopped: Option<(u64, u64)>,
}

impl Recorder {
    fn read(&mut self, space: Space, address: u64, data: &mut [u8]) {
        let width = data.len();
        let value = self.bus.access(Access { cpu: self.cpu, space, write: false, address, width, value: 0 });
        data.copy_from_slice(&value.to_le_bytes()[..width]);
    }

    fn write(&mut self, space: Space, address: u64, data: &[u8]) {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        self.bus.access(Access { cpu: self.cpu, space, write: true, address, width: data.len(), value });
        if space == Space::Memory && address & !0xfff == self.stop_at {
            self.stopped = Some((address, value));
            self.kicker.kick();
        }
    }
}

impl MemoryIo for Recorder {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.read(Space::Memory, gpa, data);
    }

    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        self.write(Space::Memory, gpa, data);
    }
}

impl x86_64::Io for Recorder {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.read(Space::Port, port.into(), data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.write(Space::Port, port.into(), data);
    }

    fn msr_read(&mut self, msr: u32) -> Result<u64, MsrFault> {
        // An MSR that the case does not know is none.
        lock(&self.bus.handlers).get(&(Space::Msr, msr.into())).ok_or(MsrFault)?;
        let mut data = [0; 8];
        self.read(Space::Msr, msr.into(), &mut data);
        Ok(u64::from_le_bytes(data))
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), MsrFault> {
        lock(&self.bus.handlers).get(&(Space::Msr, msr.into())).ok_or(MsrFault)?;
        self.write(Space::Msr, msr.into(), &value.to_le_bytes());
        Ok(())
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.write(Space::End, vector.into(), &[]);
    }

    fn external_interrupt(&self) -> bool {
        self.cpu == 0 && lock(&self.bus.external).is_some()
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        lock(&self.bus.external).take()
    }
}

impl aarch64::Io for Recorder {}
