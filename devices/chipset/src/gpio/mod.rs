//! The PL061 GPIO controller, which carries the power button of the aarch64 machine.
//!
//! Follows ARM's PrimeCell GPIO (PL061) Technical Reference Manual, DDI 0190B: eight pins, masked data, edge and level interrupts, and the
//! identification registers.
//!
//! The inputs are keys, low at rest. [`Pl061::press`] holds one down for 100 ms of guest time, since drivers look at it again when it has
//! stopped bouncing. What it does not do: show its outputs to anybody, or its pins' alternate functions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_words, write_words};
use crate::alarm::Alarm;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod gpio_test;
mod state;

pub use state::Pl061State;

/// Bytes of address space that it takes.
pub const SIZE: u64 = 0x1000;
/// The pin that the machine's tables name as the power button.
pub const POWER_BUTTON_PIN: u8 = 3;
/// Its peripheral id as one number, as device trees give it.
pub const PERIPHERAL_ID: u32 = 0x0004_1061;
/// How long a key is pressed, in nanoseconds.
const PRESS_NANOS: u64 = 100_000_000;

/// Registers.
mod register {
    /// The end of the data register's 256 addresses, whose bits 9:2 are the mask.
    pub(super) const DATA_END: u64 = 0x400;
    pub(super) const DIRECTION: u64 = 0x400;
    pub(super) const LEVEL_SENSE: u64 = 0x404;
    pub(super) const BOTH_EDGES: u64 = 0x408;
    pub(super) const RISING: u64 = 0x40c;
    pub(super) const ENABLE: u64 = 0x410;
    pub(super) const RAW_STATUS: u64 = 0x414;
    pub(super) const STATUS: u64 = 0x418;
    pub(super) const CLEAR: u64 = 0x41c;
    pub(super) const ALTERNATE: u64 = 0x420;
    pub(super) const IDENTIFICATION: u64 = 0xfe0;
}

/// GPIOPeriphID0 to 3 (part 0x061, designer ARM, revision 0) and GPIOPCellID0 to 3.
const IDENTIFICATION: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// What a PL061 is made of.
pub struct Pl061Config {
    /// Its combined interrupt: a level.
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
}

/// A PL061.
pub struct Pl061 {
    irq: IrqLine,
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    registers: Registers,
    alarm: Alarm,
}

#[derive(Default)]
struct Registers {
    data: u8,
    direction: u8,
    level_sense: u8,
    both_edges: u8,
    rising: u8,
    enable: u8,
    edges: u8,
    alternate: u8,
    /// When each pressed key is let go.
    pressed_until: [Option<GuestNanos>; 8],
}

impl Registers {
    /// Levels of the keys.
    fn inputs(&self) -> u8 {
        let pressed = self.pressed_until.iter().enumerate().filter(|(_, until)| until.is_some());
        pressed.fold(0, |pins, (pin, _)| pins | 1 << pin)
    }

    /// Levels of all pins: outputs as they were set, inputs as they are.
    fn pins(&self) -> u8 {
        self.data & self.direction | self.inputs() & !self.direction
    }

    fn raw_status(&self) -> u8 {
        let levels = !(self.pins() ^ self.rising) & self.level_sense;
        self.edges | levels
    }

    /// Latches the edges of a change of the pins.
    fn sense(&mut self, before: u8) {
        let (after, rising) = (self.pins(), self.rising);
        let changed = before ^ after;
        let wanted = self.both_edges | !(after ^ rising);
        self.edges |= changed & wanted & !self.level_sense;
    }

    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let before = self.pins();
        change(self);
        self.sense(before);
    }

    fn read(&self, register: u64) -> u32 {
        let value = match register {
            0..register::DATA_END => self.pins() & (register >> 2) as u8,
            register::DIRECTION => self.direction,
            register::LEVEL_SENSE => self.level_sense,
            register::BOTH_EDGES => self.both_edges,
            register::RISING => self.rising,
            register::ENABLE => self.enable,
            register::RAW_STATUS => self.raw_status(),
            register::STATUS => self.raw_status() & self.enable,
            register::ALTERNATE => self.alternate,
            register::IDENTIFICATION.. => {
                let index = ((register - register::IDENTIFICATION) / 4) as usize;
                IDENTIFICATION.get(index).copied().unwrap_or(0)
            }
            _ => 0,
        };
        value.into()
    }

    fn write(&mut self, register: u64, value: u32) {
        let value = value as u8;
        match register {
            0..register::DATA_END => {
                let mask = (register >> 2) as u8 & self.direction;
                self.change(|r| r.data = r.data & !mask | value & mask);
            }
            register::DIRECTION => self.change(|r| r.direction = value),
            register::LEVEL_SENSE => {
                self.level_sense = value;
                self.edges &= !value;
            }
            register::BOTH_EDGES => self.both_edges = value,
            register::RISING => self.rising = value,
            register::ENABLE => self.enable = value,
            register::CLEAR => self.edges &= !value,
            register::ALTERNATE => self.alternate = value,
            _ => {}
        }
    }

    fn interrupts(&self) -> bool {
        self.raw_status() & self.enable != 0
    }

    /// Lets go the keys whose time has come.
    fn settle(&mut self, now: GuestNanos) {
        self.change(|r| {
            for until in &mut r.pressed_until {
                *until = until.filter(|until| *until > now);
            }
        });
    }
}

impl Inner {
    fn watch(&mut self) {
        let next = self.registers.pressed_until.iter().flatten().min().copied();
        self.alarm.want(next);
    }
}

impl Pl061 {
    /// A PL061 in its power-on state.
    #[must_use]
    pub fn new(config: Pl061Config) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(gpio) = this.upgrade() {
                    gpio.with(|inner, _| inner.alarm.fired());
                }
            });
            let inner = Inner { registers: Registers::default(), alarm: Alarm::new(timer) };
            Self { irq: config.irq, clock: config.clock, inner: Mutex::new(inner) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inner, GuestNanos) -> R) -> R {
        let mut inner = self.lock();
        let now = self.clock.now();
        inner.registers.settle(now);
        let result = act(&mut inner, now);
        self.irq.set(inner.registers.interrupts());
        inner.watch();
        result
    }

    /// Presses the key at `pin`, 0 to 7, and lets it go 100 ms later. Says whether the guest listens to it.
    pub fn press(&self, pin: u8) -> bool {
        self.with(|inner, now| {
            let r = &mut inner.registers;
            r.change(|r| {
                if let Some(until) = r.pressed_until.get_mut(usize::from(pin)) {
                    *until = Some(now.saturating_add(PRESS_NANOS));
                }
            });
            r.enable & !r.direction & 1u8.checked_shl(pin.into()).unwrap_or(0) != 0
        })
    }
}

impl Device for Pl061 {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, _| read_words(offset, data, |register| inner.registers.read(register)));
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, _| write_words(offset, data, |register, value| inner.registers.write(register, value)));
        Action::None
    }
}

impl Persist for Pl061 {
    type State = Pl061State;

    fn catch_up(&self) {
        self.with(|_, _| ());
    }

    fn save(&self) -> Pl061State {
        self.with(|inner, now| {
            let r = &inner.registers;
            Pl061State {
                data: r.data,
                direction: r.direction,
                level_sense: r.level_sense,
                both_edges: r.both_edges,
                rising: r.rising,
                enable: r.enable,
                edges: r.edges,
                alternate: r.alternate,
                presses: r.pressed_until.map(|until| until.map_or(0, |until| until.saturating_sub(now))),
            }
        })
    }

    fn restore(&self, state: &Pl061State) -> Result<(), StateError> {
        let mut inner = self.lock();
        let now = self.clock.now();
        inner.registers = Registers {
            data: state.data,
            direction: state.direction,
            level_sense: state.level_sense,
            both_edges: state.both_edges,
            rising: state.rising,
            enable: state.enable,
            edges: state.edges,
            alternate: state.alternate,
            pressed_until: state.presses.map(|left| (left != 0).then(|| now.saturating_add(left))),
        };
        self.irq.restore(inner.registers.interrupts());
        inner.watch();
        Ok(())
    }

    fn reset(&self) {
        self.with(|inner, _| inner.registers = Registers::default());
    }
}
