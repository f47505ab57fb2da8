//! A root port with a slot: a bridge to one device, which can be plugged and unplugged while the guest runs.
//!
//! Follows PCI-to-PCI Bridge Architecture 1.2 chapter 3 and PCI Express Base 5.0 sections 6.7 (native hot-plug) and 7.5.3. The slot has an
//! attention button, a power controller, both indicators, and reports its link's state. The button is pressed for a device that comes, since guests
//! listen to it alone, and for one that is to go: that goes when the guest has switched the slot and its power indicator off. A guest that
//! switches a slot off by itself finds the device there when it switches it on again. Commands to the slot complete at once.
//!
//! The port has one vector of MSI, and pin A: a slot's events are all that it tells, and one vector is all that Linux's and Windows's port drivers take for
//! them. MSI-X would add a table, and a BAR for it, to each port, and no vector that anybody uses. It identifies itself as QEMU's (1b36:000c), which firmware knows.

mod slot;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_bus::Action;
use skep_irq::{IrqLine, MsiTarget, Requester};
use skep_state::{Persist, StateError};

use crate::address::Address;
use crate::bar::{Decoded, Space};
use crate::capability::express::{Express, Kind, LINK_CONTROL, SLOT_CONTROL};
use crate::capability::msi::MsiCapability;
use crate::capability::power::PowerManagement;
use crate::capability::subsystem;
use crate::config_space::{Bits, ConfigSpace, command, header, status};
use crate::interrupts::{Control, Interrupts};
use crate::node::{ConfigFunction, Upstream};
use crate::root_port::slot::Slot;
use crate::state::{ROOT_PORT_ID, RootPortState};
use crate::{Endpoint, Identity, Pin};

#[cfg(test)]
#[path = "root_port_test.rs"]
mod test;

/// Offsets of a bridge's header (PCI-to-PCI Bridge Architecture 1.2 section 3.2).
pub(crate) mod bridge {
    pub(crate) const BUSES: u16 = 0x18;
    pub(crate) const IO: u16 = 0x1c;
    pub(crate) const MEMORY: u16 = 0x20;
    pub(crate) const PREFETCHABLE: u16 = 0x24;
    pub(crate) const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
    pub(crate) const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
    pub(crate) const CONTROL: u16 = 0x3e;
    /// Bridge control: the bus behind it is reset.
    pub(crate) const BUS_RESET: u32 = 1 << 6;
    /// Parity and system errors, which are never there, and the reset.
    pub(crate) const CONTROL_WRITABLE: u32 = 1 << 0 | 1 << 1 | BUS_RESET;
    /// The header of a bridge.
    pub(crate) const HEADER: u32 = 1;
}

const IDENTITY: Identity =
    Identity { vendor: 0x1b36, device: 0x000c, subsystem_vendor: 0x1b36, subsystem: 0, class: 0x06_0400, revision: 0 };

/// What became of the wish to unplug a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplug {
    /// The guest has been asked; the device goes when it agrees.
    Asked,
    /// The slot was off: the device has gone.
    Done,
}

/// What is in a slot, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    /// Nothing.
    Empty,
    /// A device without power or link: the guest has not switched it on.
    Off,
    /// A device that the guest can use.
    On,
    /// A device that the guest was asked to let go.
    Leaving,
}

/// Called with a device that has left its slot, under no lock.
pub(crate) type Ejected = Arc<dyn Fn(Arc<Endpoint>) + Send + Sync>;

/// A root port.
pub struct RootPort {
    number: u8,
    device: u8,
    power: PowerManagement,
    express: Express,
    msi: MsiCapability,
    slot: Slot,
    interrupts: Interrupts,
    ejected: Ejected,
    /// Held while the child learns of its bus, so that it learns of the last change last.
    connecting: Mutex<()>,
    inner: Mutex<Inner>,
}

struct Inner {
    space: ConfigSpace,
    child: Option<Arc<Endpoint>>,
    /// The button was pressed for a removal.
    removal_asked: bool,
    /// Whether the hot-plug interrupt's condition holds.
    event: bool,
}

/// What is to be done once the lock is released.
#[derive(Default)]
struct Consequences {
    /// The child has lost its power or its link, or its bus is reset.
    reset: bool,
    ejected: Option<Arc<Endpoint>>,
    /// What is decoded behind the port may have changed.
    decode: bool,
}

impl RootPort {
    /// Port `number` at `device` on bus 0, with an empty slot.
    pub(crate) fn new(
        number: u8,
        device: u8,
        messages: &Arc<dyn MsiTarget>,
        line: IrqLine,
        ejected: Ejected,
    ) -> Arc<Self> {
        let mut space = ConfigSpace::new();
        IDENTITY.define(&mut space);
        let writable = command::IO
            | command::MEMORY
            | command::BUS_MASTER
            | command::PARITY
            | command::SERR
            | command::PIN_DISABLED;
        space.define(header::COMMAND, Bits::fixed(0).writable(writable));
        space.define(header::CACHE_LINE, Bits::fixed(0).writable(0xff));
        space.define(header::HEADER_TYPE, Bits::fixed(bridge::HEADER));
        space.define(bridge::BUSES, Bits::fixed(0).writable(0xff_ffff));
        // 16-bit I/O, 32-bit memory, 64-bit prefetchable memory.
        space.define(bridge::IO, Bits::fixed(0).writable(0xf0f0));
        space.define(bridge::MEMORY, Bits::fixed(0).writable(0xfff0_fff0));
        space.define(bridge::PREFETCHABLE, Bits::fixed(0x0001_0001).writable(0xfff0_fff0));
        space.define(bridge::PREFETCHABLE_BASE_UPPER, Bits::fixed(0).writable(u32::MAX));
        space.define(bridge::PREFETCHABLE_LIMIT_UPPER, Bits::fixed(0).writable(u32::MAX));
        space.define(header::INTERRUPT_LINE, Bits::fixed(0).writable(0xff));
        space.define(header::INTERRUPT_PIN, Bits::fixed(Pin::A as u32));
        space.define(bridge::CONTROL, Bits::fixed(0).writable(bridge::CONTROL_WRITABLE));
        let power = PowerManagement::add(&mut space, true);
        let express = Express::add(&mut space, Kind::RootPort { number });
        let slot = Slot::add(&mut space, express, number);
        let msi = MsiCapability::add(&mut space, 1);
        subsystem::add(&mut space, IDENTITY.subsystem_vendor, IDENTITY.subsystem);
        slot.power_on(&mut space, false);
        let requester = Requester::from(Address::new(0, device).requester());
        let interrupts = Interrupts::new(1, messages, &requester, line);
        let inner = Inner { space, child: None, removal_asked: false, event: false };
        let (connecting, inner) = (Mutex::new(()), Mutex::new(inner));
        Arc::new(Self { number, device, power, express, msi, slot, interrupts, ejected, connecting, inner })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number among the root ports, which is its slot's number less one.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its device number on bus 0.
    #[must_use]
    pub fn device(&self) -> u8 {
        self.device
    }

    /// The device in its slot, whether it has power or not.
    #[must_use]
    pub fn child(&self) -> Option<Arc<Endpoint>> {
        self.lock().child.clone()
    }

    /// What is in its slot.
    #[must_use]
    pub fn slot_state(&self) -> SlotState {
        let inner = self.lock();
        match inner.child {
            None => SlotState::Empty,
            Some(_) if inner.removal_asked => SlotState::Leaving,
            Some(_) if self.slot.link_is_up(&inner.space) => SlotState::On,
            Some(_) => SlotState::Off,
        }
    }

    /// The buses behind it, as the guest has numbered them: the first and the last. None while the first is 0.
    #[must_use]
    pub fn buses(&self) -> Option<(u8, u8)> {
        let inner = self.lock();
        let (secondary, subordinate) = inner.buses();
        (secondary != 0 && secondary <= subordinate).then_some((secondary, subordinate))
    }

    /// The device at an address behind the port, if it has a link.
    pub(crate) fn device_at(&self, address: Address) -> Option<Arc<Endpoint>> {
        let inner = self.lock();
        let here = inner.buses().0 == address.bus && address.device == 0 && address.function == 0;
        if here { self.linked(&inner).cloned() } else { None }
    }

    /// The device at the end of the link, if the link is up and the port awake.
    fn linked<'a>(&self, inner: &'a Inner) -> Option<&'a Arc<Endpoint>> {
        let up = self.slot.link_is_up(&inner.space) && self.power.is_on(&inner.space);
        inner.child.as_ref().filter(|_| up)
    }

    fn upstream(&self, space: &ConfigSpace) -> Upstream {
        let is_master = space.register(header::COMMAND) & command::BUS_MASTER != 0 && self.power.is_on(space);
        Upstream { bus: space.byte(bridge::BUSES + 1), bus_master: is_master }
    }

    /// Puts a device into the slot of a machine that does not run, or that is being put together again: the guest finds it there.
    pub(crate) fn insert(&self, child: Arc<Endpoint>) -> bool {
        {
            let mut inner = self.lock();
            if inner.child.is_some() {
                return false;
            }
            inner.child = Some(child);
            self.slot.power_on(&mut inner.space, true);
        }
        self.connect_child();
        true
    }

    /// Plugs a device in while the guest runs.
    pub(crate) fn plug(&self, child: Arc<Endpoint>) -> bool {
        {
            let mut inner = self.lock();
            if inner.child.is_some() {
                return false;
            }
            inner.child = Some(child);
            inner.removal_asked = false;
            self.slot.presence(&mut inner.space, true);
            // Where there is a button, guests listen to it rather than to presence.
            self.slot.press_button(&mut inner.space);
            self.update_event(&mut inner);
        }
        self.connect_child();
        true
    }

    /// Asks the guest to let the device go. `None` if there is none.
    pub(crate) fn unplug(&self) -> Option<Unplug> {
        let consequences = {
            let mut inner = self.lock();
            inner.child.as_ref()?;
            inner.removal_asked = true;
            let mut consequences = Consequences::default();
            self.eject_if_off(&mut inner, &mut consequences);
            if consequences.ejected.is_none() {
                self.slot.press_button(&mut inner.space);
            }
            self.update_event(&mut inner);
            consequences
        };
        let done = consequences.ejected.is_some();
        self.follow(consequences);
        Some(if done { Unplug::Done } else { Unplug::Asked })
    }

    /// Lets a device go for which the guest was asked, once it has switched off power and power indicator.
    fn eject_if_off(&self, inner: &mut Inner, consequences: &mut Consequences) {
        if inner.removal_asked && self.slot.is_off(&inner.space) {
            inner.removal_asked = false;
            consequences.ejected = inner.child.take();
            self.slot.presence(&mut inner.space, false);
            consequences.decode = true;
        }
    }

    /// Interrupts when the condition begins to hold, and keeps the pin at it.
    fn update_event(&self, inner: &mut Inner) {
        let event = self.slot.event(&inner.space);
        let held = std::mem::replace(&mut inner.event, event);
        self.interrupts.set_pin(event);
        if event && !held {
            self.interrupts.signal(0);
        }
    }

    fn control(&self, space: &ConfigSpace) -> Control {
        let enabled = space.register(header::COMMAND);
        Control {
            pin_disabled: enabled & command::PIN_DISABLED != 0,
            bus_master: enabled & command::BUS_MASTER != 0 && self.power.is_on(space),
            messages: self.msi.messages(space),
        }
    }

    fn connect_child(&self) {
        let _order = self.connecting.lock().unwrap_or_else(PoisonError::into_inner);
        let (child, upstream) = {
            let inner = self.lock();
            (inner.child.clone(), self.upstream(&inner.space))
        };
        if let Some(child) = child {
            child.connect(upstream);
        }
    }

    fn follow(&self, consequences: Consequences) {
        let Consequences { reset, ejected, .. } = consequences;
        if let Some(child) = reset.then(|| self.child()).flatten() {
            child.bus_reset();
        }
        if let Some(child) = ejected {
            child.bus_reset();
            (self.ejected)(child);
        }
    }

    /// What the device behind the port decodes, as far as the port forwards it.
    pub(crate) fn forwarded(&self) -> Option<(Arc<Endpoint>, Vec<Decoded>)> {
        let (child, windows) = {
            let inner = self.lock();
            let child = self.linked(&inner)?.clone();
            (child, Windows::of(&inner.space))
        };
        let decoded = child.decoded().into_iter().filter(|range| windows.forward(range)).collect();
        Some((child, decoded))
    }

    /// The prefetchable window, whatever is in the slot: first and last address.
    pub(crate) fn prefetchable(&self) -> Option<(u64, u64)> {
        Windows::of(&self.lock().space).prefetchable
    }
}

impl Inner {
    fn buses(&self) -> (u8, u8) {
        (self.space.byte(bridge::BUSES + 1), self.space.byte(bridge::BUSES + 2))
    }
}

/// What a bridge forwards: first and last addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Windows {
    io: Option<(u64, u64)>,
    memory: Option<(u64, u64)>,
    prefetchable: Option<(u64, u64)>,
}

impl Windows {
    fn of(space: &ConfigSpace) -> Self {
        let enabled = space.register(header::COMMAND);
        let window =
            |enable: u32, base: u64, last: u64| (enabled & enable != 0 && base <= last).then_some((base, last));
        let io = u64::from(space.register(bridge::IO));
        let io = window(command::IO, (io & 0xf0) << 8, (io & 0xf000) | 0xfff);
        // Bits 15:4 of each half are bits 31:20 of the address.
        let halves = |offset| {
            let register = u64::from(space.register(offset));
            ((register & 0xfff0) << 16, register & 0xfff0_0000 | 0xf_ffff)
        };
        let (base, last) = halves(bridge::MEMORY);
        let memory = window(command::MEMORY, base, last);
        let (base, last) = halves(bridge::PREFETCHABLE);
        let upper = |offset| u64::from(space.register(offset)) << 32;
        let (base, last) =
            (base | upper(bridge::PREFETCHABLE_BASE_UPPER), last | upper(bridge::PREFETCHABLE_LIMIT_UPPER));
        let prefetchable = window(command::MEMORY, base, last);
        Self { io, memory, prefetchable }
    }

    fn forward(&self, range: &Decoded) -> bool {
        let within = |window: Option<(u64, u64)>| {
            window.is_some_and(|(base, last)| range.base >= base && range.base + (range.size - 1) <= last)
        };
        match range.space {
            Space::Io => within(self.io),
            Space::Memory => within(self.memory) || within(self.prefetchable),
        }
    }
}

impl ConfigFunction for RootPort {
    fn config_read(&self, offset: u16) -> u32 {
        let value = self.lock().space.register(offset);
        if offset == header::COMMAND && self.interrupts.pin() {
            return value | status::INTERRUPT;
        }
        if self.msi.is_pending_register(offset) {
            return self.interrupts.pending_bits(0);
        }
        value
    }

    fn config_write(&self, offset: u16, lanes: u32, value: u32) -> Action {
        let (consequences, upstream_changed) = {
            let mut inner = self.lock();
            let (upstream, windows) = (self.upstream(&inner.space), Windows::of(&inner.space));
            let was_linked = self.linked(&inner).is_some();
            let change = inner.space.write(offset, lanes, value);
            let mut consequences = Consequences::default();
            if self.power.contains(offset) {
                self.power.written(&mut inner.space, change);
            }
            if offset == self.express.at(SLOT_CONTROL) || offset == self.express.at(LINK_CONTROL) {
                let occupied = inner.child.is_some();
                consequences.reset |= self.slot.written(&mut inner.space, occupied, offset, lanes);
                self.eject_if_off(&mut inner, &mut consequences);
            }
            let bus_reset = bridge::BUS_RESET << 16;
            if offset == header::INTERRUPT_LINE && !change.before & change.after & bus_reset != 0 {
                consequences.reset = true;
            }
            if offset == header::COMMAND || self.power.contains(offset) || self.msi.contains(offset) {
                self.interrupts.control(self.control(&inner.space));
            }
            self.update_event(&mut inner);
            consequences.decode |= consequences.reset
                || windows != Windows::of(&inner.space)
                || was_linked != self.linked(&inner).is_some();
            let has_child = inner.child.is_some();
            (consequences, has_child && upstream != self.upstream(&inner.space))
        };
        if upstream_changed {
            self.connect_child();
        }
        let action = if consequences.decode { Action::Relocate } else { Action::None };
        self.follow(consequences);
        action
    }

    fn bus_reset(&self) {
        self.reset();
    }
}

impl Persist for RootPort {
    type State = RootPortState;

    fn save(&self) -> RootPortState {
        let inner = self.lock();
        RootPortState {
            config: inner.space.save(),
            interrupts: self.interrupts.save(),
            removal_asked: inner.removal_asked,
        }
    }

    fn restore(&self, state: &RootPortState) -> Result<(), StateError> {
        self.interrupts.check(&state.interrupts, ROOT_PORT_ID)?;
        {
            let mut inner = self.lock();
            let mut space = inner.space.clone();
            space.restore(&state.config, ROOT_PORT_ID)?;
            self.slot.check(&space, inner.child.is_some())?;
            inner.space = space;
            inner.removal_asked = state.removal_asked && inner.child.is_some();
            inner.event = self.slot.event(&inner.space);
            self.interrupts.restore(&state.interrupts, self.control(&inner.space));
        }
        self.connect_child();
        Ok(())
    }

    /// The device in the slot stays, and has power; a removal that was asked for must be asked for again.
    fn reset(&self) {
        {
            let mut inner = self.lock();
            inner.space.reset(0..0);
            inner.removal_asked = false;
            let occupied = inner.child.is_some();
            self.slot.power_on(&mut inner.space, occupied);
            inner.event = false;
            self.interrupts.reset();
            self.interrupts.control(self.control(&inner.space));
        }
        self.connect_child();
    }
}

impl fmt::Debug for RootPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootPort").field("number", &self.number).field("device", &self.device).finish_non_exhaustive()
    }
}
