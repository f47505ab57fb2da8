//! The way from a device to its driver: vectors, the ISR status and the configuration's generation.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::Notifier;

/// `VIRTIO_MSI_NO_VECTOR` (section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (section 4.1.4.5).
pub(super) const ISR_QUEUE: u8 = 1;
pub(super) const ISR_CONFIG: u8 = 2;

/// A function's interrupts, as far as a transport uses them.
pub trait Interrupt: Send + Sync {
    /// Sends the message of a vector.
    fn signal(&self, vector: u16);
    /// Sets the level of the interrupt pin.
    fn set_pin(&self, asserted: bool);
    /// Whether messages are on, so that there is no pin.
    fn messages_enabled(&self) -> bool;
    /// An eventfd, each signal of which sends the message of a vector, where the backend has one left.
    fn eventfd(&self, _vector: u16) -> Option<EventFd> {
        None
    }
}

/// What workers use without the lock of the registers.
pub(super) struct Notifications {
    interrupt: Arc<dyn Interrupt>,
    /// How many vectors the function has.
    vectors: u16,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// The ISR status, and with it the pin.
    isr: Mutex<u8>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    /// The driver is ready: before that it is not told of anything.
    live: AtomicBool,
}

impl Notifications {
    pub(super) fn new(interrupt: Arc<dyn Interrupt>, vectors: u16, queues: usize) -> Self {
        Self {
            interrupt,
            vectors,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: Mutex::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            live: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, bit: u8, vector: u16) {
        if self.interrupt.messages_enabled() {
            if vector != NO_VECTOR {
                self.interrupt.signal(vector);
            }
            return;
        }
        let mut isr = self.lock();
        *isr |= bit;
        self.interrupt.set_pin(true);
    }

    /// Reads the ISR status, which clears it and takes the pin back.
    pub(super) fn read_isr(&self) -> u8 {
        let mut isr = self.lock();
        let value = std::mem::take(&mut *isr);
        self.interrupt.set_pin(false);
        value
    }

    /// The ISR status, which stays.
    pub(super) fn isr(&self) -> u8 {
        *self.lock()
    }

    pub(super) fn restore_isr(&self, value: u8) {
        *self.lock() = value;
    }

    /// A vector that the function has not is none.
    fn sound(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.sound(vector), Ordering::Release);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(queue)) {
            place.store(self.sound(vector), Ordering::Release);
        }
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::Release);
    }

    pub(super) fn set_live(&self, live: bool) {
        self.live.store(live, Ordering::Release);
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn restore_reset_needed(&self, needed: bool) {
        self.needs_reset.store(needed, Ordering::Release);
    }

    /// Forgets all but the generation, which only ever goes on.
    pub(super) fn reset(&self) {
        self.live.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.read_isr();
    }
}

impl Notifier for Notifications {
    fn used(&self, queue: u16) {
        self.raise(ISR_QUEUE, self.queue_vector(queue));
    }

    fn used_eventfd(&self, queue: u16) -> Option<EventFd> {
        // A driver that turns messages off while its queues run hears no more of them.
        if self.interrupt.messages_enabled() { self.interrupt.eventfd(self.queue_vector(queue)) } else { None }
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.live.load(Ordering::Acquire) {
            self.raise(ISR_CONFIG, self.config_vector());
        }
    }

    fn needs_reset(&self) {
        let was = self.needs_reset.swap(true, Ordering::AcqRel);
        if !was && self.live.load(Ordering::Acquire) {
            self.raise(ISR_CONFIG, self.config_vector());
        }
    }
}
