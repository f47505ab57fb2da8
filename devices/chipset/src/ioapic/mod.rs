//! The I/O APIC.
//!
//! Follows Intel's 82093AA (May 1996) with what ICH9 added: version 0x20 and its EOI register. Destinations beyond 255 are given in bits 55:49 of
//! an entry, as KVM and Hyper-V define them.
//!
//! A pin sends a message to the [`ApicBus`]. A level pin awaits the end of its interrupt, which the bus reports by
//! [`IoApic::end_of_interrupt`], or the guest by the EOI register; then those who listen hear of it ([`skep_irq::IrqLine::on_eoi`]), and a pin
//! that is still asserted sends again. An edge on a masked pin is lost, as the datasheet says.
//!
//! The bus learns the messages of all pins when one of them has changed, so that a backend which handles local APICs itself knows whose ends
//! of interrupt to report. The bus is called under the I/O APIC's lock and must not call back.
//!
//! What it does not do: the serial APIC bus and its arbitration, or interrupt remapping.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bus::{Action, Device};
use skep_irq::{ApicBus, EoiListener, EoiSubscription, LineTarget, MsiMessage};
use skep_state::{Persist, State, StateError, ensure};
use tracing::debug;

use self::entry::Entry;
use crate::access::{read_words, write_words};
use crate::eoi::EoiListeners;

mod entry;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod ioapic_test;
mod state;

pub use state::IoApicState;

/// Bytes of address space that it takes.
pub const SIZE: u64 = 0x1000;
/// Pins of the 82093AA and of ICH9.
pub const PINS: usize = 24;
/// The most pins whose entries the 8-bit register index reaches.
pub const MAX_PINS: usize = 120;
/// Version with an EOI register.
const VERSION: u32 = 0x20;
const ID_MASK: u8 = 0x0f;

/// Memory-mapped registers.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

/// Indexed registers.
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;

/// What an I/O APIC is made of.
pub struct IoApicConfig {
    /// The local APICs.
    pub apics: Arc<dyn ApicBus>,
    /// How many pins, 1 to [`MAX_PINS`]; [`PINS`] as a rule.
    pub pins: usize,
    /// APIC id at power-on, 4 bits.
    pub id: u8,
}

/// An I/O APIC.
pub struct IoApic {
    apics: Arc<dyn ApicBus>,
    power_on_id: u8,
    listeners: EoiListeners,
    inner: Mutex<Inner>,
}

struct Inner {
    id: u8,
    select: u8,
    pins: Vec<Pin>,
    /// What the bus was told of last.
    routes: Vec<Option<MsiMessage>>,
}

#[derive(Clone, Copy)]
struct Pin {
    entry: Entry,
    asserted: bool,
}

impl Pin {
    const POWER_ON: Self = Self { entry: Entry::POWER_ON, asserted: false };

    /// What the bus is told of the pin: its message while it may send one, or awaits its end.
    fn route(&self) -> Option<MsiMessage> {
        if self.entry.is_masked() && !self.entry.remote_irr() { None } else { self.entry.message() }
    }

    /// Sends the message, and says whether it was taken.
    fn send(&self, apics: &dyn ApicBus) -> bool {
        let Some(message) = self.entry.message() else { return false };
        match apics.signal(message, None) {
            Ok(()) => true,
            Err(error) => {
                debug!(%error, vector = self.entry.vector(), "the local APICs refused an interrupt of the I/O APIC");
                false
            }
        }
    }

    /// Sends a level interrupt if it is due.
    fn serve_level(&mut self, apics: &dyn ApicBus) {
        let entry = self.entry;
        if self.asserted && entry.is_level() && !entry.is_masked() && !entry.remote_irr() && self.send(apics) {
            self.entry.set_remote_irr(true);
        }
    }
}

impl Inner {
    fn version(&self) -> u32 {
        VERSION | (self.pins.len() as u32 - 1) << 16
    }

    fn entry_of(index: u8) -> Option<(usize, bool)> {
        let offset = index.checked_sub(IOREDTBL)?;
        Some((usize::from(offset / 2), offset & 1 != 0))
    }

    fn read(&self) -> u32 {
        match self.select {
            IOAPICID | IOAPICARB => u32::from(self.id) << 24,
            IOAPICVER => self.version(),
            index => {
                let pin = Self::entry_of(index).and_then(|(pin, high)| Some((self.pins.get(pin)?, high)));
                pin.map_or(0, |(pin, high)| pin.entry.word(high))
            }
        }
    }

    fn write(&mut self, value: u32, apics: &dyn ApicBus) {
        if self.select == IOAPICID {
            self.id = (value >> 24) as u8 & ID_MASK;
        }
        let Some((number, high)) = Self::entry_of(self.select) else { return };
        let Some(pin) = self.pins.get_mut(number) else { return };
        pin.entry.write(high, value);
        self.tell_routes(apics);
        if let Some(pin) = self.pins.get_mut(number) {
            pin.serve_level(apics);
        }
    }

    /// Tells the bus the messages of all pins, if one has changed.
    fn tell_routes(&mut self, apics: &dyn ApicBus) {
        let mut changed = false;
        for (route, pin) in self.routes.iter_mut().zip(&self.pins) {
            let new = pin.route();
            changed |= *route != new;
            *route = new;
        }
        if changed && let Err(error) = apics.set_pin_routes(&self.routes) {
            debug!(%error, "the local APICs refused the routes of the I/O APIC");
        }
    }
}

impl IoApic {
    /// An I/O APIC in its power-on state, all pins masked. A number of pins out of range is brought into it.
    #[must_use]
    pub fn new(config: IoApicConfig) -> Self {
        let pins = config.pins.clamp(1, MAX_PINS);
        let power_on_id = config.id & ID_MASK;
        let inner = Inner { id: power_on_id, select: 0, pins: vec![Pin::POWER_ON; pins], routes: vec![None; pins] };
        Self { apics: config.apics, power_on_id, listeners: EoiListeners::default(), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A local APIC reports the end of the interrupt `vector`. Pins that awaited it, and are still asserted, send again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut ended = 0u128;
        {
            let mut inner = self.lock();
            for (number, pin) in inner.pins.iter_mut().enumerate() {
                if pin.entry.remote_irr() && pin.entry.vector() == vector {
                    pin.entry.set_remote_irr(false);
                    ended |= 1 << number;
                }
            }
            if ended == 0 {
                return;
            }
            inner.tell_routes(&*self.apics);
        }
        let has_ended = |line: u32| line < u128::BITS && ended >> line & 1 != 0;
        self.listeners.call(has_ended);
        let mut inner = self.lock();
        for (number, pin) in inner.pins.iter_mut().enumerate() {
            if ended >> number & 1 != 0 {
                pin.serve_level(&*self.apics);
            }
        }
    }
}

impl LineTarget for IoApic {
    fn set_level(&self, line: u32, asserted: bool) {
        let mut inner = self.lock();
        let Some(pin) = inner.pins.get_mut(line as usize) else { return };
        let edge = asserted && !pin.asserted;
        pin.asserted = asserted;
        if pin.entry.is_level() {
            pin.serve_level(&*self.apics);
        } else if edge && !pin.entry.is_masked() {
            pin.send(&*self.apics);
        }
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        Some(self.listeners.subscribe(line, listener))
    }
}

impl Device for IoApic {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        let inner = self.lock();
        read_words(offset, data, |register| match register {
            IOREGSEL => u32::from(inner.select),
            IOWIN => inner.read(),
            _ => 0,
        });
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        write_words(offset, data, |register, value| match register {
            IOREGSEL => self.lock().select = value as u8,
            IOWIN => self.lock().write(value, &*self.apics),
            EOI => self.end_of_interrupt(value as u8),
            _ => {}
        });
        Action::None
    }
}

impl Persist for IoApic {
    type State = IoApicState;

    fn save(&self) -> IoApicState {
        let inner = self.lock();
        IoApicState {
            id: inner.id,
            select: inner.select,
            entries: inner.pins.iter().map(|pin| pin.entry.0).collect(),
            asserted: inner.pins.iter().map(|pin| pin.asserted).collect(),
        }
    }

    fn restore(&self, state: &IoApicState) -> Result<(), StateError> {
        let mut inner = self.lock();
        let (saved, here) = (state.entries.len(), inner.pins.len());
        ensure(saved == here, IoApicState::ID, "entries", saved, "this machine's I/O APIC has another number of pins")?;
        inner.id = state.id;
        inner.select = state.select;
        for ((pin, entry), asserted) in inner.pins.iter_mut().zip(&state.entries).zip(&state.asserted) {
            *pin = Pin { entry: Entry(*entry), asserted: *asserted };
        }
        inner.tell_routes(&*self.apics);
        Ok(())
    }

    /// What the pins are asserted by is not ours: their levels stay.
    fn reset(&self) {
        let mut inner = self.lock();
        inner.id = self.power_on_id;
        inner.select = 0;
        for pin in &mut inner.pins {
            pin.entry = Entry::POWER_ON;
        }
        inner.tell_routes(&*self.apics);
    }
}
