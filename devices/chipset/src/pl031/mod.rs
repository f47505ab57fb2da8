//! The PL031 real-time clock.
//!
//! Follows Arm's PrimeCell Real Time Clock (PL031) Technical Reference Manual, DDI 0224C: counts seconds, compares them with a match register, and
//! interrupts when they are equal. The count at power-on is the wall clock's seconds since the Unix epoch, as guests expect it. The clock always runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_words, write_words};
use crate::alarm::Alarm;

mod state;

pub use state::Pl031State;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "pl031_test.rs"]
pub(crate) mod test;

/// The size of its registers in bytes.
pub const SIZE: u64 = 0x1000;

/// Its peripheral id as one number, as device trees give it.
pub const PERIPHERAL_ID: u32 = 0x00041031;

const SECOND: u64 = 1_000_000_000;
/// PeriphID0 to 3 and PCellID0 to 3: part 031, designer Arm, revision 0.
const IDENTIFICATION: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Register offsets.
mod register {
    pub(super) const DR: u64 = 0x00;
    pub(super) const MR: u64 = 0x04;
    pub(super) const LR: u64 = 0x08;
    pub(super) const CR: u64 = 0x0c;
    pub(super) const IMSC: u64 = 0x10;
    pub(super) const RIS: u64 = 0x14;
    pub(super) const MIS: u64 = 0x18;
    pub(super) const ICR: u64 = 0x1c;
    pub(super) const IDENTIFICATION: u64 = 0xfe0;
}

/// What a PL031 is made of.
pub struct Pl031Config {
    /// Its interrupt.
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
}

/// A PL031.
pub struct Pl031 {
    irq: IrqLine,
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Seconds that are added to the wall clock's, modulo 2^32.
    offset: u32,
    matched: u32,
    loaded: u32,
    masked_in: bool,
    raised: bool,
    /// The match is found up to here; afterwards it is looked for.
    seen: i128,
    alarm: Alarm,
}

/// The wall clock's whole seconds.
fn seconds(wall: i128) -> i128 {
    wall.div_euclid(i128::from(SECOND))
}

impl Inner {
    fn count(&self, wall: i128) -> u32 {
        (seconds(wall) as u32).wrapping_add(self.offset)
    }

    /// Seconds from `wall` until the count equals the match register: never 0.
    fn until_match(&self, wall: i128) -> u64 {
        match self.matched.wrapping_sub(self.count(wall)) {
            0 => 1 << 32,
            more => more.into(),
        }
    }

    /// Raises the interrupt if the count has come to the match register since it was last looked at.
    fn settle(&mut self, wall: i128) {
        let passed = seconds(wall) - seconds(self.seen);
        if passed > 0 && passed >= i128::from(self.until_match(self.seen)) {
            self.raised = true;
        }
        self.seen = wall;
    }

    /// The count or the match register has been set: they may be equal now.
    fn compare(&mut self, wall: i128) {
        self.raised |= self.count(wall) == self.matched;
    }

    fn watch(&mut self, now: GuestNanos, wall: i128) {
        let into_second = wall.rem_euclid(i128::from(SECOND)) as u64;
        let wait = self.until_match(wall) * SECOND - into_second;
        self.alarm.want(self.masked_in.then(|| now.saturating_add(wait)));
    }

    fn read(&self, offset: u64, wall: i128) -> u32 {
        match offset {
            register::DR => self.count(wall),
            register::MR => self.matched,
            register::LR => self.loaded,
            register::CR => 1,
            register::IMSC => self.masked_in.into(),
            register::RIS => self.raised.into(),
            register::MIS => (self.raised && self.masked_in).into(),
            register::IDENTIFICATION.. => {
                let index = (offset - register::IDENTIFICATION) / 4;
                IDENTIFICATION.get(index as usize).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, wall: i128) {
        match offset {
            register::MR => {
                self.matched = value;
                self.compare(wall);
            }
            register::LR => {
                self.loaded = value;
                self.offset = value.wrapping_sub(seconds(wall) as u32);
                self.compare(wall);
            }
            register::IMSC => self.masked_in = value & 1 != 0,
            register::ICR if value & 1 != 0 => self.raised = false,
            // The clock can't be stopped, and the others are for reading.
            _ => {}
        }
    }
}

impl Pl031 {
    /// A PL031 that shows the wall clock.
    #[must_use]
    pub fn new(config: Pl031Config) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(rtc) = this.upgrade() {
                    rtc.with(|inner, _| inner.alarm.fired());
                }
            });
            let inner = Inner {
                offset: 0,
                matched: 0,
                loaded: 0,
                masked_in: false,
                raised: false,
                seen: config.clock.wall(),
                alarm: Alarm::new(timer),
            };
            Self { irq: config.irq, clock: config.clock, inner: Mutex::new(inner) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inner, i128) -> R) -> R {
        let mut inner = self.lock();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        inner.settle(wall);
        let result = act(&mut inner, wall);
        self.irq.set(inner.raised && inner.masked_in);
        inner.watch(now, wall);
        result
    }
}

impl Device for Pl031 {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, wall| read_words(offset, data, |register| inner.read(register, wall)));
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, wall| write_words(offset, data, |register, value| inner.write(register, value, wall)));
        Action::None
    }
}

impl Persist for Pl031 {
    type State = Pl031State;

    fn catch_up(&self) {
        self.with(|_, _| ());
    }

    fn save(&self) -> Pl031State {
        let mut inner = self.lock();
        inner.settle(self.clock.wall());
        Pl031State {
            offset: inner.offset,
            matched: inner.matched,
            loaded: inner.loaded,
            masked_in: inner.masked_in,
            raised: inner.raised,
        }
    }

    fn restore(&self, state: &Pl031State) -> Result<(), StateError> {
        let mut inner = self.lock();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        inner.offset = state.offset;
        inner.matched = state.matched;
        inner.loaded = state.loaded;
        inner.masked_in = state.masked_in;
        inner.raised = state.raised;
        inner.seen = wall;
        self.irq.restore(inner.raised && inner.masked_in);
        inner.watch(now, wall);
        Ok(())
    }

    /// The clock goes on, as one with a battery does; only the interrupt is reset.
    fn reset(&self) {
        self.with(|inner, _| {
            inner.matched = 0;
            inner.masked_in = false;
            inner.raised = false;
        });
    }
}
