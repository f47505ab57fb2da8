//! The PCI transport (section 4.1), apart from the device behind it.
//!
//! What the driver writes says which queues ought to run. After each change the transport brings the device there: it starts what ought to
//! run and does not, and begins to stop what runs and ought not to. A reset of the device or of a queue, a pause of the machine and a
//! hot-unplug are all such a change, and each is complete when the last queue has stopped: until then `device_status`, or `queue_reset`,
//! says that it is not. So no vCPU waits, whatever a backend does, and nothing of a queue's former life touches memory in its next one.
//!
//! A queue's registers are open from a reset until the queue is enabled or the driver is ready; after that nothing that is written to them
//! takes effect.

mod notifications;
mod pci;
mod registers;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod transport_test;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_memory::Dma;
use skep_state::{Persist, StateError, ensure};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use notifications::Interrupt;
use notifications::Notifications;
pub use pci::PciDevice;
use registers::{QueueRegisters, Registers, field, status};
pub use state::{TransportQueueState, TransportState};

use crate::{QueueStart, QueueState, VirtioDevice, feature};

/// Where the structures are in the BAR.
pub(crate) mod layout {
    /// The common configuration.
    pub(crate) const COMMON: u64 = 0;
    /// The ISR status.
    pub(crate) const ISR: u64 = 0x1000;
    /// The device's configuration.
    pub(crate) const DEVICE: u64 = 0x2000;
    /// The doorbells: one for each queue.
    pub(crate) const NOTIFY: u64 = 0x3000;
    /// Bytes from one doorbell to the next.
    pub(crate) const NOTIFY_STEP: u64 = 4;
    /// Bytes of the BAR; each structure has 4 KiB.
    pub(crate) const SIZE: u64 = 0x4000;
}

/// Whether a queue runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// It does not, and would go on there.
    Stopped(QueueState),
    Running,
    /// It has been told to stop.
    Stopping,
    /// It has been told to run on, and has not said yet whether it does.
    CallingOff,
}

/// Called once all queues have stopped.
type AllStopped = Box<dyn FnOnce() + Send>;

struct Inner {
    registers: Registers,
    runs: Vec<Run>,
    /// The device is being reset.
    resetting: bool,
    /// No queue runs until [`Transport::resume`].
    paused: bool,
    /// The device knows that the driver is ready.
    activated: bool,
    waiting: Vec<AllStopped>,
}

impl Inner {
    fn wants(&self, queue: &QueueRegisters) -> bool {
        self.activated && !self.paused && !self.resetting && queue.enabled && !queue.resetting
    }

    fn is_still(&self) -> bool {
        self.runs.iter().all(|run| matches!(run, Run::Stopped(_)))
    }
}

/// A device's registers, and the way between driver and device.
pub struct Transport {
    device: Arc<dyn VirtioDevice>,
    /// All that is offered.
    features: u64,
    queue_sizes: Vec<u16>,
    dma: Dma,
    doorbells: Vec<Arc<EventFd>>,
    notifications: Arc<Notifications>,
    inner: Mutex<Inner>,
    this: Weak<Self>,
}

impl Transport {
    /// A transport in its power-on state, before `device`. The function behind `interrupt` has `vectors` messages.
    ///
    /// # Errors
    /// Where the host has no descriptor left for a doorbell.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        dma: Dma,
        interrupt: Arc<dyn Interrupt>,
        vectors: u16,
    ) -> io::Result<Arc<Self>> {
        let queue_sizes = device.queue_sizes();
        let bell = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new);
        let doorbells = queue_sizes.iter().map(bell).collect::<io::Result<Vec<_>>>()?;
        let notifications = Arc::new(Notifications::new(interrupt, vectors, queue_sizes.len()));
        device.attach(notifications.clone());
        let inner = Inner {
            registers: Registers::new(&queue_sizes),
            runs: vec![Run::Stopped(QueueState::default()); queue_sizes.len()],
            resetting: false,
            paused: false,
            activated: false,
            waiting: Vec::new(),
        };
        Ok(Arc::new_cyclic(|this| Self {
            features: device.features() | device.transport_features(),
            device,
            queue_sizes,
            dma,
            doorbells,
            notifications,
            inner: Mutex::new(inner),
            this: this.clone(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device behind it.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// Each queue's doorbell, in their order.
    #[must_use]
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// Lets the device be what the registers say.
    fn settle(&self, mut inner: MutexGuard<'_, Inner>) {
        let Inner { registers, resetting, paused, activated, .. } = &mut *inner;
        if registers.has(status::DRIVER_OK) && !*activated && !*resetting && !*paused {
            *activated = true;
            self.device.activate(registers.driver_features);
            self.notifications.set_live(true);
        }
        for index in 0..inner.runs.len() {
            let wanted = inner.registers.queues.get(index).is_some_and(|queue| inner.wants(queue));
            let Some(run) = inner.runs.get(index).copied() else { continue };
            let next = match run {
                Run::Stopped(state) if wanted => {
                    self.start(&inner.registers, index, state);
                    Run::Running
                }
                Run::Running if !wanted => {
                    self.begin_queue_stop(index);
                    Run::Stopping
                }
                // What it has in flight may keep it for as long as its host hangs.
                Run::Stopping if wanted => {
                    self.call_off_queue_stop(index);
                    Run::CallingOff
                }
                run => run,
            };
            if let Some(run) = inner.runs.get_mut(index) {
                *run = next;
            }
        }
        if inner.is_still() {
            if std::mem::take(&mut inner.resetting) {
                self.finish_reset(&mut inner);
            }
            let waiting = std::mem::take(&mut inner.waiting);
            drop(inner);
            waiting.into_iter().for_each(|all_stopped| all_stopped());
        }
    }

    fn start(&self, registers: &Registers, index: usize, state: QueueState) {
        let (Some(queue), Some(doorbell)) = (registers.queues.get(index), self.doorbells.get(index)) else { return };
        self.device.start_queue(QueueStart {
            index: index as u16,
            config: queue.config(registers.driver_features),
            max_size: queue.max_size,
            state,
            dma: self.dma.clone(),
            doorbell: doorbell.clone(),
            notifier: self.notifications.clone(),
        });
    }

    fn begin_queue_stop(&self, index: usize) {
        let this = self.this.clone();
        let stopped = move |state| {
            if let Some(transport) = this.upgrade() {
                transport.queue_stopped(index, state);
            }
        };
        self.device.begin_stop(index as u16, Box::new(stopped));
    }

    fn call_off_queue_stop(&self, index: usize) {
        let this = self.this.clone();
        let runs_on = move || {
            if let Some(transport) = this.upgrade() {
                let mut inner = transport.lock();
                if let Some(run @ Run::CallingOff) = inner.runs.get_mut(index) {
                    *run = Run::Running;
                }
                transport.settle(inner);
            }
        };
        self.device.call_off_stop(index as u16, Box::new(runs_on));
    }

    fn queue_stopped(&self, index: usize, mut state: QueueState) {
        let mut inner = self.lock();
        if let Some(queue) = inner.registers.queues.get_mut(index)
            && queue.resetting
        {
            *queue = QueueRegisters::new(queue.max_size);
            self.notifications.set_queue_vector(index as u16, notifications::NO_VECTOR);
            state = QueueState::default();
        }
        if let Some(run) = inner.runs.get_mut(index) {
            *run = Run::Stopped(state);
        }
        self.settle(inner);
    }

    fn finish_reset(&self, inner: &mut Inner) {
        inner.registers = Registers::new(&self.queue_sizes);
        inner.runs.fill(Run::Stopped(QueueState::default()));
        inner.activated = false;
        self.notifications.reset();
        self.device.reset_component();
    }

    /// Begins to reset the device: it is complete when `device_status` reads 0.
    pub fn begin_reset(&self) {
        let mut inner = self.lock();
        inner.resetting = true;
        self.settle(inner);
    }

    /// Begins to stop all queues, of a machine that pauses or a device that goes, and calls `all_stopped` when they have, perhaps at once.
    /// None runs again before [`Transport::resume`].
    pub fn begin_stop(&self, all_stopped: impl FnOnce() + Send + 'static) {
        let mut inner = self.lock();
        inner.paused = true;
        inner.waiting.push(Box::new(all_stopped));
        self.settle(inner);
    }

    /// Lets the queues go on that [`Transport::begin_stop`] stopped, or that were restored.
    pub fn resume(&self) {
        let mut inner = self.lock();
        inner.paused = false;
        self.settle(inner);
    }

    /// Reads the BAR. What is not there is 0.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            layout::COMMON..layout::ISR => {
                let image = self.lock().registers.image(self.features, &self.notifications);
                for (byte, value) in data.iter_mut().zip(image.iter().skip((offset - layout::COMMON) as usize)) {
                    *byte = *value;
                }
            }
            layout::ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.notifications.read_isr();
                }
            }
            layout::DEVICE..layout::NOTIFY => self.device.read_config(offset - layout::DEVICE, data),
            _ => {}
        }
    }

    /// Writes to the BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match offset {
            layout::COMMON..layout::ISR => self.write_common(offset - layout::COMMON, data),
            // Before the features are known, a write means nothing (section 2.5.1).
            layout::DEVICE..layout::NOTIFY if self.lock().registers.has(status::FEATURES_OK) => {
                self.device.write_config(offset - layout::DEVICE, data);
            }
            layout::NOTIFY..layout::SIZE => {
                let queue = (offset - layout::NOTIFY) / layout::NOTIFY_STEP;
                if let Some(doorbell) = self.doorbells.get(queue as usize) {
                    // A counter that is full has rung already.
                    let _ = doorbell.write(1);
                }
            }
            _ => {}
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let value = data.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let mut inner = self.lock();
        if inner.resetting {
            return;
        }
        let registers = &mut inner.registers;
        let select = registers.queue_select;
        let open = registers.selected().is_some_and(|queue| queue.open);
        match (offset, data.len()) {
            (field::DEVICE_FEATURE_SELECT, 4) => registers.device_feature_select = value as u32,
            (field::DRIVER_FEATURE_SELECT, 4) => registers.driver_feature_select = value as u32,
            (field::DRIVER_FEATURE, 4) if !registers.has(status::FEATURES_OK) => {
                let features = &mut registers.driver_features;
                match registers.driver_feature_select {
                    0 => *features = *features & !0xffff_ffff | value,
                    1 => *features = *features & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            (field::CONFIG_VECTOR, 2) => self.notifications.set_config_vector(value as u16),
            (field::STATUS, 1) => self.write_status(inner, value as u8),
            (field::QUEUE_SELECT, 2) => registers.queue_select = value as u16,
            (field::QUEUE_SIZE, 2) if open => {
                if let Some(queue) = registers.selected() {
                    queue.size = value as u16;
                }
            }
            (field::QUEUE_VECTOR, 2) if open => self.notifications.set_queue_vector(select, value as u16),
            (field::QUEUE_ENABLE, 2) if open && value == 1 => {
                if let Some(queue) = registers.selected() {
                    (queue.enabled, queue.open) = (true, false);
                }
                self.settle(inner);
            }
            (field::DESCRIPTORS..field::QUEUE_RESET, width) if open => registers.write_address(offset, width, value),
            (field::QUEUE_RESET, 2) if value == 1 => self.begin_queue_reset(inner),
            _ => {}
        }
    }

    fn write_status(&self, mut inner: MutexGuard<'_, Inner>, value: u8) {
        if value == 0 {
            inner.resetting = true;
            return self.settle(inner);
        }
        let registers = &mut inner.registers;
        let mut new = (registers.status | value) & status::DRIVERS;
        let accepted =
            registers.driver_features & !self.features == 0 && registers.driver_features & feature::VERSION_1 != 0;
        if !registers.has(status::FEATURES_OK) && !accepted {
            new &= !status::FEATURES_OK;
        }
        if new & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        registers.status = new;
        if new & status::DRIVER_OK != 0 {
            // Those that the driver has left alone are none of its own until the next reset (section 4.1.4.3.2); those that it has reset
            // since it was ready stay open.
            if !inner.activated {
                inner.registers.queues.iter_mut().for_each(|queue| queue.open = false);
            }
            self.settle(inner);
        }
    }

    fn begin_queue_reset(&self, mut inner: MutexGuard<'_, Inner>) {
        if inner.registers.driver_features & feature::RING_RESET == 0 || !inner.registers.has(status::DRIVER_OK) {
            return;
        }
        let index = usize::from(inner.registers.queue_select);
        let still = matches!(inner.runs.get(index), Some(Run::Stopped(_)));
        let Some(queue) = inner.registers.selected() else { return };
        if !queue.enabled {
            return;
        }
        queue.resetting = true;
        if still {
            drop(inner);
            return self.queue_stopped(index, QueueState::default());
        }
        self.settle(inner);
    }
}

impl Persist for Transport {
    type State = TransportState;

    fn save(&self) -> TransportState {
        let inner = self.lock();
        let registers = &inner.registers;
        let queue = |(index, (queue, run)): (u16, (&QueueRegisters, &Run))| TransportQueueState {
            size: queue.size,
            vector: self.notifications.queue_vector(index),
            enabled: queue.enabled,
            open: queue.open,
            descriptors: queue.descriptors,
            available: queue.available,
            used: queue.used,
            queue: if let Run::Stopped(state) = run { *state } else { QueueState::default() },
        };
        TransportState {
            device_feature_select: registers.device_feature_select,
            driver_feature_select: registers.driver_feature_select,
            driver_features: registers.driver_features,
            config_vector: self.notifications.config_vector(),
            status: registers.status,
            needs_reset: self.notifications.is_reset_needed(),
            generation: self.notifications.generation(),
            queue_select: registers.queue_select,
            isr: self.notifications.isr(),
            queues: (0..).zip(registers.queues.iter().zip(&inner.runs)).map(queue).collect(),
        }
    }

    /// The transport must be stopped ([`Transport::begin_stop`]); it goes on at [`Transport::resume`], when the device has its state as well.
    fn restore(&self, state: &TransportState) -> Result<(), StateError> {
        let id = <TransportState as skep_state::State>::ID;
        let (saved, here) = (state.queues.len(), self.queue_sizes.len());
        ensure(saved == here, id, "queues", saved, "this device has another number of queues")?;
        let unknown = state.driver_features & !self.features;
        let accepted = state.status & status::FEATURES_OK != 0;
        ensure(!accepted || unknown == 0, id, "driver_features", unknown, "this device does not offer them")?;
        let mut inner = self.lock();
        ensure(inner.paused && inner.is_still(), id, "queues", saved, "the device's queues have not been stopped")?;
        let queue = |(saved, max_size): (&TransportQueueState, &u16)| QueueRegisters {
            max_size: *max_size,
            size: saved.size,
            enabled: saved.enabled,
            open: saved.open,
            resetting: false,
            descriptors: saved.descriptors,
            available: saved.available,
            used: saved.used,
        };
        inner.registers = Registers {
            device_feature_select: state.device_feature_select,
            driver_feature_select: state.driver_feature_select,
            driver_features: state.driver_features,
            status: state.status,
            queue_select: state.queue_select,
            queues: state.queues.iter().zip(&self.queue_sizes).map(queue).collect(),
        };
        inner.runs = state.queues.iter().map(|queue| Run::Stopped(queue.queue)).collect();
        inner.activated = false;
        self.notifications.set_live(false);
        self.notifications.set_config_vector(state.config_vector);
        for (index, queue) in (0..).zip(&state.queues) {
            self.notifications.set_queue_vector(index, queue.vector);
        }
        self.notifications.set_generation(state.generation);
        self.notifications.restore_reset_needed(state.needs_reset);
        self.notifications.restore_isr(state.isr);
        Ok(())
    }

    fn reset(&self) {
        self.begin_reset();
    }
}
