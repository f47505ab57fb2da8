//! The controller, as the machine has it.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_block::ResizeSubscription;
use skep_clock::Clock;
use skep_memory::Dma;
use skep_state::{Persist, StateError, ensure};
use skep_worker::Worker;
use vmm_sys_util::eventfd::EventFd;

use crate::admin::{self, Admin, AdminOrder};
use crate::config::{ControllerConfig, NamespaceConfig, NvmeError};
use crate::doorbell::Wake;
use crate::namespace::Namespace;
use crate::shared::{Bus, Registers, Shared};
use crate::spec::register::{
    ACQ, AQA, ASQ, CAP, CAPABILITIES, CC, CRTO, CSTS, Configuration, DOORBELLS, INTMC, INTMS, READY_TIMEOUTS, VERSION,
    VS, status,
};
use crate::state::ControllerState;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "controller_test.rs"]
pub(crate) mod test;

/// An NVMe controller.
///
/// Dropping it waits for what is in flight; whoever must not wait calls [`Controller::pause`] first and drops it when that is done.
pub struct Controller {
    shared: Arc<Shared>,
    worker: Worker<AdminOrder>,
    /// The state as of the pause that lasts.
    paused: Arc<Mutex<Option<ControllerState>>>,
    /// By the numbers of their namespaces.
    resizes: Mutex<Vec<(u32, ResizeSubscription)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    /// A controller in its power-on state, without namespaces.
    ///
    /// # Errors
    /// [`NvmeError::Config`] and [`NvmeError::Host`].
    pub fn new(config: ControllerConfig, dma: Dma, bus: Arc<dyn Bus>, clock: Clock) -> Result<Arc<Self>, NvmeError> {
        config.check()?;
        let failed = |what| move |source| NvmeError::Host { what, source };
        let wake = Wake::new().map_err(failed("make an eventfd"))?;
        let poll = config.poll;
        let shared = Arc::new(Shared::new(config, dma, bus, clock, wake));
        let worker = Worker::wait("nvme-admin", poll, Admin::new(shared.clone()));
        let worker = worker.map_err(failed("begin the admin worker"))?;
        Ok(Arc::new(Self { shared, worker, paused: Arc::default(), resizes: Mutex::default() }))
    }

    /// Attaches a namespace as number `id`, 1 to 256, and tells a guest that runs.
    ///
    /// # Errors
    /// [`NvmeError::Namespace`] where the number is taken or the disk does not fit.
    pub fn attach(&self, id: u32, config: &NamespaceConfig) -> Result<(), NvmeError> {
        let namespace = Arc::new(Namespace::new(id, config)?);
        let shared = Arc::downgrade(&self.shared);
        let resized = config.disk.on_resize(Arc::new(move |_| {
            if let Some(shared) = shared.upgrade() {
                shared.happened.note_resize(id);
                shared.wake.force();
            }
        }));
        if self.shared.namespaces.add(namespace).is_err() {
            return Err(NvmeError::Namespace { nsid: id, reason: "there is one of that number".to_owned() });
        }
        locked(&self.resizes).push((id, resized));
        self.worker.leave(AdminOrder::Changed(id));
        Ok(())
    }

    /// Detaches a namespace, and tells the guest. What is in flight on it ends as it may; nothing more is begun. Its disk is let go of when
    /// that has ended. Says whether there was one.
    pub fn detach(&self, id: u32) -> bool {
        let removed = self.shared.namespaces.remove(id).is_some();
        locked(&self.resizes).retain(|(of, _)| *of != id);
        if removed {
            self.worker.leave(AdminOrder::Changed(id));
            self.shared.doorbells.pass_rounds();
        }
        removed
    }

    /// The numbers of the namespaces that are attached.
    #[must_use]
    pub fn namespaces(&self) -> Vec<u32> {
        self.shared.namespaces.load().keys().copied().collect()
    }

    /// Lets time pass, as far as power states go.
    #[cfg(test)]
    pub(crate) fn skip(&self, nanos: u64) {
        self.shared.skipped.fetch_add(nanos, std::sync::atomic::Ordering::Relaxed);
    }

    /// Waits until the admin worker has ended the round that it is in.
    #[cfg(test)]
    pub(crate) fn pass_round(&self) {
        drop(self.shared.wake.round());
    }

    /// Begins to stop: nothing more is taken, and `done` is called, on a thread of the controller's, when nothing is in flight any more and
    /// its state can be saved. vCPUs have stopped before.
    pub fn pause(&self, done: impl FnOnce() + Send + 'static) {
        let paused = self.paused.clone();
        let stopped = Box::new(move |state| {
            *locked(&paused) = Some(state);
            done();
        });
        self.worker.send(AdminOrder::Pause(stopped));
    }

    /// Goes on after [`Controller::pause`], whose `done` may have been called or not, or [`Persist::restore`].
    pub fn resume(&self) {
        *locked(&self.paused) = None;
        self.worker.send(AdminOrder::Resume);
    }

    /// How many bytes its registers take: a power of two.
    #[must_use]
    pub fn registers_size(config: &ControllerConfig) -> u64 {
        (DOORBELLS + (u64::from(config.queues) + 1) * 8).next_power_of_two()
    }

    /// How many interrupt vectors it has: one for each completion queue.
    #[must_use]
    pub fn vectors(config: &ControllerConfig) -> u16 {
        config.queues + 1
    }

    /// Where a write may signal an eventfd in place of [`Controller::write`]: the doorbells of I/O queues, each 4 bytes, while the guest
    /// uses shadow doorbells; without them the value written would be lost.
    #[must_use]
    pub fn doorbells(&self) -> Vec<(u64, Arc<EventFd>)> {
        if !self.shared.shadowed.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let events = self.shared.doorbells.events();
        events.into_iter().map(|(index, event)| (DOORBELLS + 4 * index, event)).collect()
    }

    /// Reads registers. Doorbells and what is reserved read as 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = *self.shared.registers();
        for (byte, at) in data.iter_mut().zip(offset..) {
            let value = register(&registers, at & !3);
            *byte = value.to_le_bytes()[(at & 3) as usize];
        }
    }

    /// Writes registers: doublewords and quadwords that are aligned. What is narrower is undefined by the specification, and ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let (words, rest) = data.as_chunks::<4>();
        if !rest.is_empty() || !offset.is_multiple_of(4) {
            return;
        }
        for (word, at) in words.iter().zip((offset..).step_by(4)) {
            let value = u32::from_le_bytes(*word);
            match at.checked_sub(DOORBELLS) {
                Some(at) => self.shared.ring(at / 4, value & 0xffff),
                None => self.write_register(at, value),
            }
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        const ASQ_HIGH: u64 = ASQ + 4;
        const ACQ_HIGH: u64 = ACQ + 4;
        let mut registers = self.shared.registers();
        let low = |register: u64| register & !0xffff_ffff | u64::from(value & !0xfff);
        let high = |register: u64| register & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            INTMS => registers.interrupt_mask |= value,
            INTMC => registers.interrupt_mask &= !value,
            CC => {
                self.configure(&mut registers, value);
                drop(registers);
                self.shared.wake.force();
                return self.worker.begin();
            }
            AQA => registers.admin_attributes = value & 0x0fff_0fff,
            ASQ => registers.admin_submission_base = low(registers.admin_submission_base),
            ASQ_HIGH => registers.admin_submission_base = high(registers.admin_submission_base),
            ACQ => registers.admin_completion_base = low(registers.admin_completion_base),
            ACQ_HIGH => registers.admin_completion_base = high(registers.admin_completion_base),
            _ => {}
        }
        drop(registers);
        if matches!(offset, INTMS | INTMC) {
            self.shared.update_pin();
        }
    }

    fn configure(&self, registers: &mut Registers, value: u32) {
        let (old, new) = (registers.configuration(), Configuration(value & Configuration::MASK));
        registers.configuration = new.0;
        if old.is_enabled() && !new.is_enabled() {
            self.shared.end_epoch();
        }
        if old.is_enabled() && new.is_enabled() {
            // What it was enabled with stays.
            const FIXED: u32 = 0x3ff0;
            registers.configuration = new.0 & !FIXED | old.0 & FIXED;
        }
        if new.shutdown() != 0 && registers.status & status::SHUTDOWN_MASK == 0 {
            registers.status |= status::SHUTDOWN_RUNS;
        }
    }
}

fn register(registers: &Registers, offset: u64) -> u32 {
    const CAP_HIGH: u64 = CAP + 4;
    const ASQ_HIGH: u64 = ASQ + 4;
    const ACQ_HIGH: u64 = ACQ + 4;
    match offset {
        CAP => CAPABILITIES as u32,
        CAP_HIGH => (CAPABILITIES >> 32) as u32,
        VS => VERSION,
        INTMS | INTMC => registers.interrupt_mask,
        CC => registers.configuration,
        CSTS => registers.status,
        AQA => registers.admin_attributes,
        ASQ => registers.admin_submission_base as u32,
        ASQ_HIGH => (registers.admin_submission_base >> 32) as u32,
        ACQ => registers.admin_completion_base as u32,
        ACQ_HIGH => (registers.admin_completion_base >> 32) as u32,
        CRTO => READY_TIMEOUTS,
        _ => 0,
    }
}

impl Persist for Controller {
    type State = ControllerState;

    /// The state of a controller that is paused; of one that is not, the power-on state.
    fn save(&self) -> ControllerState {
        locked(&self.paused).clone().unwrap_or_else(admin::power_on)
    }

    /// Takes on the state; the controller is then paused, until [`Controller::resume`].
    fn restore(&self, state: &ControllerState) -> Result<(), StateError> {
        let most = self.shared.config.queues;
        let numbers = |unit: &crate::state::UnitState| {
            let submission = unit.submission.iter().map(|queue| queue.id).max().unwrap_or(0);
            unit.completion.id.max(submission).max(unit.completion.vector.unwrap_or(0))
        };
        let highest = state.units.iter().map(numbers).max().unwrap_or(0);
        ensure(highest <= most, "nvme", "units", highest, "the controller is configured with fewer queues")?;
        let states = self.shared.config.power_states.len();
        let asked = state.features.power_state.max(state.features.operational);
        ensure(
            usize::from(asked) < states,
            "nvme",
            "features.power_state",
            asked,
            "the controller is configured with fewer",
        )?;
        let (done, wait) = channel();
        self.worker.send(AdminOrder::Restore(Box::new(state.clone()), done));
        let refused =
            |_| StateError::Backend { what: "restore NVMe".to_owned(), reason: "its worker has ended".to_owned() };
        wait.recv().map_err(refused)?;
        *locked(&self.paused) = Some(state.clone());
        Ok(())
    }

    /// The registers are as after power-on when this returns, and nothing more is taken. What is in flight ends without the guest being
    /// told, though a disk may still fill the memory that a read was given; until it has ended, a controller that is enabled is not ready.
    /// Whoever resets a whole machine pauses the controller first, and then nothing is in flight.
    fn reset(&self) {
        *locked(&self.paused) = None;
        {
            let mut registers = self.shared.registers();
            *registers = Registers::default();
            self.shared.end_epoch();
        }
        self.shared.doorbells.pass_rounds();
        drop(self.shared.wake.round());
        self.shared.wake.force();
        self.shared.bus.set_pin(false);
    }
}
