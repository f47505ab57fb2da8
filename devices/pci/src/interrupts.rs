//! A function's interrupts: MSI-X, MSI or INTx, as the guest has set them up.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bus::{fill, value_of};
use skep_irq::{IrqError, IrqLine, Msi, MsiMessage, MsiTarget, Requester, VectorState};
use skep_state::{StateError, ensure};
use tracing::debug;
use vmm_sys_util::eventfd::EventFd;

use crate::state::InterruptsState;

#[cfg(test)]
#[path = "interrupts_test.rs"]
mod test;

/// Bytes of an entry of the MSI-X table (PCI Local Bus 3.0 section 6.8.2).
pub(crate) const TABLE_ENTRY: u64 = 16;
/// The most vectors of MSI-X.
pub const MAX_VECTORS: u16 = 2048;
/// Vector control: the mask bit.
const MASKED: u32 = 1;
/// Messages are doublewords.
const ADDRESS_MASK: u64 = !0x3;

/// What configuration space says of a function's interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// The command register's Interrupt Disable.
    pub pin_disabled: bool,
    /// The command register's Bus Master Enable: a message is a write to memory.
    pub bus_master: bool,
    /// Which messages are on.
    pub messages: Messages,
}

/// Which messages are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Messages {
    /// None: the pin is.
    #[default]
    Off,
    /// MSI.
    Msi {
        /// Address and data of vector 0.
        message: MsiMessage,
        /// Vectors allocated: a power of two, 1 to 32, by which the data's low bits are the function's.
        count: u16,
        /// The mask bits.
        masked: u32,
    },
    /// MSI-X.
    Msix {
        /// The function mask: all are masked.
        masked: bool,
    },
}

struct Inner {
    control: Control,
    /// The level that the function gives to its pin, whether the pin is on or not.
    pin: bool,
    /// The MSI-X table as the guest has written it.
    table: Vec<(MsiMessage, bool)>,
    /// What each vector was last configured with.
    applied: Vec<(MsiMessage, bool)>,
}

/// A function's interrupts. What the guest has masked stays pending and comes once it is unmasked.
pub struct Interrupts {
    vectors: Vec<Msi>,
    line: IrqLine,
    enabled: AtomicBool,
    inner: Mutex<Inner>,
}

impl Interrupts {
    /// The interrupts of a function with `vectors` messages (at most [`MAX_VECTORS`]) to `target` and a pin on `line`. All are off, until
    /// configuration space says otherwise.
    ///
    /// # Panics
    /// If there are more vectors than a function can have: the device's author decides on their number.
    #[must_use]
    pub fn new(vectors: u16, target: &Arc<dyn MsiTarget>, requester: &Requester, line: IrqLine) -> Self {
        assert!(vectors <= MAX_VECTORS, "a function has at most {MAX_VECTORS} vectors");
        let count = usize::from(vectors);
        let entry = (MsiMessage::default(), true);
        let inner =
            Inner { control: Control::default(), pin: false, table: vec![entry; count], applied: vec![entry; count] };
        let vectors = (0..count).map(|_| Msi::of(target.clone(), Some(requester.clone()))).collect();
        Self { vectors, line, enabled: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many messages there may be.
    #[must_use]
    pub fn vector_count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Signals `vector`: a message, now or when it is no longer masked; nothing where neither MSI nor MSI-X is on.
    pub fn signal(&self, vector: u16) {
        if !self.messages_enabled() {
            return;
        }
        let Some(msi) = self.vectors.get(usize::from(vector)) else {
            debug!(vector, "a function signals a vector that it does not have");
            return;
        };
        if let Err(error) = msi.signal() {
            debug!(%error, vector, "an interrupt message reaches nothing");
        }
    }

    /// The level of the interrupt pin. It is kept, and not seen, while messages are on or the guest has disabled the pin.
    pub fn set_pin(&self, asserted: bool) {
        let mut inner = self.lock();
        inner.pin = asserted;
        self.line.set(inner.line_level());
    }

    /// Whether MSI or MSI-X is on: then there is no pin.
    #[must_use]
    pub fn messages_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// An eventfd, each signal of which is [`Self::signal`], where the backend offers it and the vector exists.
    ///
    /// # Errors
    /// Where the backend has no route left.
    pub fn eventfd(&self, vector: u16) -> Result<Option<EventFd>, IrqError> {
        self.vectors.get(usize::from(vector)).map_or(Ok(None), Msi::eventfd)
    }

    /// The reason for `vector` has gone before the guest has unmasked it.
    pub fn clear_pending(&self, vector: u16) {
        if let Some(msi) = self.vectors.get(usize::from(vector)) {
            msi.clear_pending();
        }
    }

    /// The status register's Interrupt Status.
    #[must_use]
    pub fn pin(&self) -> bool {
        self.lock().pin
    }

    /// Takes on what configuration space says: routes of all vectors that change, change at once.
    pub fn control(&self, control: Control) {
        let mut inner = self.lock();
        let on = control.messages != Messages::Off;
        let was_on = std::mem::replace(&mut inner.control, control).messages != Messages::Off;
        self.enabled.store(on, Ordering::Release);
        self.apply(&mut inner, false);
        if was_on && !on {
            // What was meant for the driver before is nothing to the next one.
            self.vectors.iter().for_each(Msi::clear_pending);
        }
        self.line.set(inner.line_level());
    }

    /// The requester id has changed: the backend is told of every vector anew.
    pub(crate) fn requester_changed(&self) {
        self.apply(&mut self.lock(), true);
    }

    fn apply(&self, inner: &mut Inner, all: bool) {
        let mut changes = Vec::new();
        for (number, msi) in self.vectors.iter().enumerate() {
            let wanted = inner.vector(number);
            if let Some(applied) = inner.applied.get_mut(number)
                && (all || *applied != wanted)
            {
                *applied = wanted;
                changes.push((msi, wanted.0, wanted.1));
            }
        }
        if let Err(error) = Msi::configure_all(&changes) {
            debug!(%error, "interrupt messages are configured to reach nothing");
        }
    }

    /// Reads the MSI-X table at `offset`.
    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        read_words(offset, data, |word| {
            let (entry, field) = (word / TABLE_ENTRY, word % TABLE_ENTRY);
            let Some((message, masked)) = inner.table.get(entry as usize) else { return 0 };
            match field {
                0 => message.address as u32,
                4 => (message.address >> 32) as u32,
                8 => message.data,
                _ => u32::from(*masked),
            }
        });
    }

    /// Writes to the MSI-X table at `offset`, in doublewords or quadwords; what is narrower is undefined by the specification and ignored.
    pub(crate) fn write_table(&self, offset: u64, data: &[u8]) {
        if !offset.is_multiple_of(4) || !data.len().is_multiple_of(4) {
            debug!(offset, length = data.len(), "a write to the MSI-X table that is no doubleword");
            return;
        }
        let mut inner = self.lock();
        for (word, bytes) in (offset..).step_by(4).zip(data.chunks(4)) {
            let value = value_of(bytes) as u32;
            let Some((message, masked)) = inner.table.get_mut((word / TABLE_ENTRY) as usize) else { continue };
            match word % TABLE_ENTRY {
                0 => message.address = (message.address & !0xffff_ffff | u64::from(value)) & ADDRESS_MASK,
                4 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
                8 => message.data = value,
                _ => *masked = value & MASKED != 0,
            }
        }
        self.apply(&mut inner, false);
    }

    /// Reads the pending bit array at `offset`.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        read_words(offset, data, |word| self.pending_bits((word * 8) as usize));
    }

    /// The pending bits of 32 vectors from `first` on.
    pub(crate) fn pending_bits(&self, first: usize) -> u32 {
        let vectors = self.vectors.iter().skip(first).take(32).enumerate();
        vectors.fold(0, |bits, (bit, msi)| bits | u32::from(msi.state().pending) << bit)
    }

    /// The power-on state; configuration space says the rest by [`Self::control`].
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.pin = false;
        inner.table.fill((MsiMessage::default(), true));
        inner.control = Control::default();
        self.enabled.store(false, Ordering::Release);
        self.apply(&mut inner, false);
        self.vectors.iter().for_each(Msi::clear_pending);
        self.line.deassert();
    }

    pub(crate) fn save(&self) -> InterruptsState {
        let inner = self.lock();
        let entry = |((message, masked), msi): (&(MsiMessage, bool), &Msi)| VectorState {
            message: *message,
            masked: *masked,
            pending: msi.state().pending,
        };
        InterruptsState { vectors: inner.table.iter().zip(&self.vectors).map(entry).collect(), pin: inner.pin }
    }

    /// Whether a saved state, of a record of type `id`, fits.
    pub(crate) fn check(&self, state: &InterruptsState, id: &'static str) -> Result<(), StateError> {
        let (saved, here) = (state.vectors.len(), self.vectors.len());
        ensure(saved == here, id, "vectors", saved, "this function has another number of them")
    }

    /// Takes on a state that fits, and what configuration space says. The line makes no edge.
    pub(crate) fn restore(&self, state: &InterruptsState, control: Control) {
        let mut inner = self.lock();
        for ((entry, msi), saved) in inner.table.iter_mut().zip(&self.vectors).zip(&state.vectors) {
            *entry = (saved.message, saved.masked);
            if let Err(error) = msi.restore(&VectorState { masked: true, ..*saved }) {
                debug!(%error, "a restored vector has no route");
            }
        }
        inner.pin = state.pin;
        inner.control = control;
        self.enabled.store(control.messages != Messages::Off, Ordering::Release);
        self.apply(&mut inner, true);
        self.line.restore(inner.line_level());
    }
}

impl Inner {
    fn line_level(&self) -> bool {
        self.pin && !self.control.pin_disabled && self.control.messages == Messages::Off
    }

    /// Message and mask of a vector.
    fn vector(&self, number: usize) -> (MsiMessage, bool) {
        let blocked = !self.control.bus_master;
        match self.control.messages {
            Messages::Off => (self.applied.get(number).map_or_else(MsiMessage::default, |(message, _)| *message), true),
            Messages::Msi { message, count, masked } => {
                let low = u32::from(count.max(1)) - 1;
                let vector = number as u32 & low;
                let data = message.data & !low | vector;
                (MsiMessage { data, ..message }, blocked || masked >> (vector & 31) & 1 != 0)
            }
            Messages::Msix { masked: all } => {
                let (message, masked) = self.table.get(number).copied().unwrap_or_default();
                (message, blocked || all || masked)
            }
        }
    }
}

/// Reads 32-bit words, each at a multiple of four, by any access.
fn read_words(offset: u64, data: &mut [u8], word: impl Fn(u64) -> u32) {
    for (at, byte) in (offset..).zip(data) {
        let mut lane = [0];
        fill(&mut lane, u64::from(word(at & !3)) >> (8 * (at & 3)));
        *byte = lane[0];
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("Interrupts")
            .field("vectors", &self.vectors.len())
            .field("control", &inner.control)
            .field("pin", &inner.pin)
            .finish_non_exhaustive()
    }
}
