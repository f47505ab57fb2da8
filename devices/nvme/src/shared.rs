//! What vCPUs, the admin worker and the I/O workers of a controller share. On the way of an I/O command nobody takes a lock of it.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use skep_clock::Clock;
use skep_memory::Dma;

use crate::config::ControllerConfig;
use crate::doorbell::{BadDoorbell, Doorbells, Wake};
use crate::namespace::Namespaces;
use crate::spec::Status;
use crate::spec::register::{Configuration, status};
use crate::state::{ERRORS, ErrorState, HealthState};

/// What a controller knows of the bus that it sits on.
pub trait Bus: Send + Sync {
    /// Signals a message, where messages are on.
    fn signal(&self, vector: u16);
    /// Sets the level of the interrupt pin.
    fn set_pin(&self, asserted: bool);
    /// Whether messages are on; the pin is used otherwise.
    fn messages_enabled(&self) -> bool;
    /// [`crate::Controller::doorbells`] answers something else than before.
    fn doorbells_changed(&self);
}

/// Registers, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Registers {
    pub(crate) configuration: u32,
    pub(crate) status: u32,
    pub(crate) admin_attributes: u32,
    pub(crate) admin_submission_base: u64,
    pub(crate) admin_completion_base: u64,
    pub(crate) interrupt_mask: u32,
}

impl Registers {
    pub(crate) fn configuration(&self) -> Configuration {
        Configuration(self.configuration)
    }
}

/// What an I/O worker counts; nobody else writes it while the worker lives.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) sectors_read: AtomicU64,
    pub(crate) sectors_written: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) media_errors: AtomicU64,
    /// Nanoseconds with commands in flight.
    pub(crate) busy: AtomicU64,
    /// When it last had one in flight, in nanoseconds since the controller was made; 0 for never, and [`Counters::BUSY`] while it has.
    pub(crate) last: AtomicU64,
}

impl Counters {
    pub(crate) const BUSY: u64 = u64::MAX;

    pub(crate) fn add(counter: &AtomicU64, value: u64) {
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
    }

    /// Adds what was counted to `health`.
    pub(crate) fn add_to(&self, health: &mut HealthState) {
        // What was restored may stand anywhere.
        let add = |sum: &mut u64, counter: &AtomicU64| *sum = sum.saturating_add(counter.load(Ordering::Relaxed));
        add(&mut health.sectors_read, &self.sectors_read);
        add(&mut health.sectors_written, &self.sectors_written);
        add(&mut health.reads, &self.reads);
        add(&mut health.writes, &self.writes);
        add(&mut health.media_errors, &self.media_errors);
        add(&mut health.busy, &self.busy);
    }
}

/// The error log: the newest entry first.
#[derive(Default)]
pub(crate) struct ErrorLog {
    pub(crate) entries: VecDeque<ErrorState>,
    pub(crate) count: u64,
}

/// What happened on other threads and is told to the guest by the admin worker.
#[derive(Default)]
pub(crate) struct Happened {
    pub(crate) no_queue: AtomicBool,
    pub(crate) bad_value: AtomicBool,
    pub(crate) keep_alive: AtomicBool,
    resized: Mutex<BTreeSet<u32>>,
}

impl Happened {
    /// A namespace has another size.
    pub(crate) fn note_resize(&self, namespace: u32) {
        self.resized.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace);
    }

    /// The namespaces of another size since this was last asked.
    pub(crate) fn resized(&self) -> BTreeSet<u32> {
        std::mem::take(&mut *self.resized.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(crate) struct Shared {
    pub(crate) config: ControllerConfig,
    pub(crate) dma: Dma,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Clock,
    pub(crate) registers: Mutex<Registers>,
    /// Goes up when the guest disables or resets the controller: queues of before are dead from that moment.
    epoch: AtomicU64,
    pub(crate) doorbells: Doorbells,
    /// The admin worker's.
    pub(crate) wake: Arc<Wake>,
    pub(crate) namespaces: Namespaces,
    pub(crate) write_cache: AtomicBool,
    /// How many commands a submission queue is served before the next one is.
    pub(crate) burst: AtomicU64,
    pub(crate) shadowed: AtomicBool,
    pub(crate) errors: Mutex<ErrorLog>,
    pub(crate) happened: Happened,
    pub(crate) begun: Instant,
    /// Nanoseconds that a test has let pass.
    #[cfg(test)]
    pub(crate) skipped: AtomicU64,
    pin: Mutex<()>,
}

impl Shared {
    pub(crate) fn new(config: ControllerConfig, dma: Dma, bus: Arc<dyn Bus>, clock: Clock, wake: Arc<Wake>) -> Self {
        Self {
            doorbells: Doorbells::new(config.queues),
            config,
            dma,
            bus,
            clock,
            registers: Mutex::default(),
            epoch: AtomicU64::new(0),
            wake,
            namespaces: Namespaces::default(),
            write_cache: AtomicBool::new(true),
            burst: AtomicU64::new(u64::MAX),
            shadowed: AtomicBool::new(false),
            errors: Mutex::default(),
            happened: Happened::default(),
            begun: Instant::now(),
            #[cfg(test)]
            skipped: AtomicU64::new(0),
            pin: Mutex::new(()),
        }
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// All queues are dead from now on.
    pub(crate) fn end_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// The controller can't go on until it is reset (Base 9.5).
    pub(crate) fn fail(&self, why: &str) {
        tracing::warn!("NVMe {}: fatal: {why}", self.config.serial);
        self.registers().status |= status::FATAL;
    }

    /// Nanoseconds since the controller was made.
    pub(crate) fn nanos(&self) -> u64 {
        let passed = skep_clock::nanos(self.begun.elapsed());
        #[cfg(test)]
        let passed = passed + self.skipped.load(Ordering::Relaxed);
        passed
    }

    /// Sets the pin by what the completion queues hold and the mask lets through. Where messages are on there is no pin.
    pub(crate) fn update_pin(&self) {
        if self.bus.messages_enabled() {
            return;
        }
        let _one_at_a_time = self.pin.lock().unwrap_or_else(PoisonError::into_inner);
        let mask = self.registers().interrupt_mask;
        let unmasked = |vector: u32| 1u32.checked_shl(vector).is_none_or(|bit| mask & bit == 0);
        let level = self.doorbells.all_completion().any(|doorbell| doorbell.interrupts().is_some_and(unmasked));
        self.bus.set_pin(level);
    }

    /// Tells the host of new entries: by a message, or by the pin.
    pub(crate) fn interrupt(&self, vector: u16) {
        if self.bus.messages_enabled() {
            self.bus.signal(vector);
        } else {
            self.update_pin();
        }
    }

    /// A guest's write to the doorbell at `index`.
    pub(crate) fn ring(&self, index: u64, value: u32) {
        let rung = match self.doorbells.at(index) {
            Some((doorbell, completion)) => doorbell.ring(value).map(|()| completion),
            None => Err(BadDoorbell::NoQueue),
        };
        let event = match rung {
            Ok(true) => return self.update_pin(),
            Ok(false) => return,
            Err(BadDoorbell::NoQueue) => &self.happened.no_queue,
            Err(BadDoorbell::Value) => &self.happened.bad_value,
        };
        // Before the controller is ready there is nobody to tell.
        if self.registers().status & status::READY != 0 && !event.swap(true, Ordering::SeqCst) {
            self.wake.force();
        }
    }

    /// Notes a command that failed.
    pub(crate) fn note_error(&self, queue: u16, command: u16, status: Status, block: u64, namespace: u32) {
        let mut log = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        log.count = log.count.saturating_add(1).min(HealthState::MOST);
        let number = log.count;
        log.entries.truncate(ERRORS - 1);
        log.entries.push_front(ErrorState { number, queue, command, status: status.0, block, namespace });
    }
}
