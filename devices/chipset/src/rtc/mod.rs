//! The CMOS real-time clock of a PC.
//!
//! Follows Motorola's MC146818 and the RTC section of the ICH9 datasheet (316972): time in BCD or binary, 12 or 24 hours, with the century at
//! 0x32; alarm, periodic and update-ended interrupts; update in progress; the divider chain and its reset; two banks of 128 bytes.
//!
//! The time follows the machine's wall clock ([`Clock::wall`]), with the difference that the guest has made by setting it; so a
//! restored clock continues or jumps as the wall clock does. An update takes no time, and the update-in-progress bit announces it 244 us
//! before. Flags are set when they are due, but a timer is armed only for one that interrupts and isn't set yet. Where the host is late by
//! several periods, they become one interrupt, and the next ones keep their phase.
//!
//! The chip has a battery: a reset of the machine leaves time and memory, except for the bytes that the machine itself sets.
//!
//! What it does not do: the square-wave output, daylight saving, the day-of-month alarm, the NMI mask in bit 7 of the index.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use self::calendar::{DateTime, Format};
use crate::access::{read_ports, write_ports};
use crate::alarm::Alarm;
use crate::ports::PortRange;

mod calendar;
mod memory_size;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod rtc_test;
mod state;

pub use memory_size::memory_size;
pub use state::RtcState;

/// Where a PC has its ports: index and data of each bank.
pub const PORTS: [PortRange; 2] =
    [PortRange { base: 0x70, size: 2, region: STANDARD }, PortRange { base: 0x72, size: 2, region: EXTENDED }];

/// Regions.
const STANDARD: u32 = 0;
const EXTENDED: u32 = 1;

/// Bytes of both banks.
const MEMORY_SIZE: usize = 0x100;
/// Where the extended bank begins.
const EXTENDED_BANK: u8 = 0x80;

/// Nanoseconds of a second.
const SECOND: i128 = 1_000_000_000;
/// How long before an update UIP is set.
const UPDATE_NOTICE: i128 = 244_000;
/// Frequency of the crystal, which the periodic rates divide.
const CRYSTAL_HZ: i128 = 32_768;

/// Places in the standard bank.
mod place {
    pub(super) const SECOND: u8 = 0x00;
    pub(super) const SECOND_ALARM: u8 = 0x01;
    pub(super) const MINUTE: u8 = 0x02;
    pub(super) const MINUTE_ALARM: u8 = 0x03;
    pub(super) const HOUR: u8 = 0x04;
    pub(super) const HOUR_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const REGISTER_A: u8 = 0x0a;
    pub(super) const REGISTER_B: u8 = 0x0b;
    pub(super) const REGISTER_C: u8 = 0x0c;
    pub(super) const REGISTER_D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// Register A.
mod register_a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    /// Both upper divider bits: the chain is held in reset.
    pub(super) const DIVIDER_RESET: u8 = 0x60;
    pub(super) const RATE: u8 = 0x0f;
    /// 32.768 kHz, 1024 periods a second.
    pub(super) const POWER_ON: u8 = 0x26;
}

/// Register B. Its interrupt enable bits stand where the flags of register C do.
mod register_b {
    pub(super) const HOURS_24: u8 = 1 << 1;
    pub(super) const BINARY: u8 = 1 << 2;
    pub(super) const UPDATE_INTERRUPT: u8 = 1 << 4;
    pub(super) const SET: u8 = 1 << 7;
    /// What a reset clears: the interrupts and the square wave.
    pub(super) const CLEARED: u8 = 0x78;
}

/// Flags of register C.
mod flag {
    pub(super) const UPDATE: u8 = 1 << 4;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const ALL: u8 = UPDATE | ALARM | PERIODIC;
    /// One of them interrupts.
    pub(super) const INTERRUPT: u8 = 1 << 7;
}

/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// What a clock is made of.
pub struct RtcConfig {
    /// Its interrupt.
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
    /// Bytes of memory that the machine sets, by their places (the extended bank from 0x80 on), such as those of [`memory_size()`]. They hold
    /// again after each reset.
    pub memory: Vec<(u8, u8)>,
}

/// A CMOS real-time clock.
pub struct Rtc {
    irq: IrqLine,
    clock: Clock,
    given: Vec<(u8, u8)>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The state, in which the time's registers count only while the clock stands.
    chip: RtcState,
    /// Where the divider chain was when the flags were last brought up to date.
    settled: i128,
    alarm: Alarm,
}

/// One moment.
#[derive(Clone, Copy)]
struct Moment {
    now: GuestNanos,
    wall: i128,
}

impl RtcState {
    /// The divider chain, in nanoseconds: it passes a multiple of a second at each update.
    fn divider(&self, moment: Moment) -> i128 {
        moment.wall + i128::from(self.ahead_nanos)
    }

    fn divider_runs(&self) -> bool {
        self.register_a & register_a::DIVIDER_RESET != register_a::DIVIDER_RESET
    }

    /// Whether the time goes on.
    fn runs(&self) -> bool {
        self.divider_runs() && self.register_b & register_b::SET == 0
    }

    fn format(&self) -> Format {
        Format {
            binary: self.register_b & register_b::BINARY != 0,
            hours24: self.register_b & register_b::HOURS_24 != 0,
        }
    }

    fn byte(&self, place: u8) -> u8 {
        self.memory.get(usize::from(place)).copied().unwrap_or(0xff)
    }

    fn set_byte(&mut self, place: u8, value: u8) {
        if let Some(byte) = self.memory.get_mut(usize::from(place)) {
            *byte = value;
        }
    }

    /// The time while the clock runs, in seconds since the epoch of the guest's calendar.
    fn seconds(&self, divider: i128) -> i64 {
        seconds_of(divider).saturating_add(self.ahead_seconds)
    }

    /// Writes the time into its registers, where the clock runs.
    fn write_time(&mut self, moment: Moment) {
        if !self.runs() {
            return;
        }
        let (time, format) = (DateTime::from_seconds(self.seconds(self.divider(moment))), self.format());
        for (place, byte) in [
            (place::SECOND, format.encode(time.second)),
            (place::MINUTE, format.encode(time.minute)),
            (place::HOUR, format.encode_hour(time.hour)),
            (place::WEEKDAY, format.encode(time.weekday())),
            (place::DAY, format.encode(time.day)),
            (place::MONTH, format.encode(time.month)),
            (place::YEAR, format.encode(time.year)),
            (place::CENTURY, format.encode(time.year.div_euclid(100))),
        ] {
            self.set_byte(place, byte);
        }
    }

    /// Takes the time from its registers, where the clock runs.
    fn take_time(&mut self, moment: Moment) {
        if !self.runs() {
            return;
        }
        let format = self.format();
        let number = |place| format.decode(self.byte(place));
        let time = DateTime {
            year: number(place::CENTURY) * 100 + number(place::YEAR),
            month: number(place::MONTH),
            day: number(place::DAY),
            hour: format.decode_hour(self.byte(place::HOUR)),
            minute: number(place::MINUTE),
            second: number(place::SECOND),
        };
        self.ahead_seconds = time.seconds() - seconds_of(self.divider(moment));
    }

    /// Nanoseconds of the divider chain from one periodic flag to the next, as a fraction; `None` while there are none.
    fn period(&self) -> Option<(i128, i128)> {
        let ticks = match self.register_a & register_a::RATE {
            0 => return None,
            rate @ 1..=2 => 1 << (rate + 6),
            rate => 1 << (rate - 1),
        };
        self.divider_runs().then_some((ticks * SECOND, CRYSTAL_HZ))
    }

    fn alarm(&self) -> calendar::Alarm {
        calendar::Alarm {
            hour: self.byte(place::HOUR_ALARM),
            minute: self.byte(place::MINUTE_ALARM),
            second: self.byte(place::SECOND_ALARM),
            format: self.format(),
        }
    }

    /// Flags that become due after `from` and not after `to`, both of the divider chain.
    fn due(&self, from: i128, to: i128) -> u8 {
        let mut due = 0;
        if let Some((nanos, per)) = self.period()
            && (from * per).div_euclid(nanos) != (to * per).div_euclid(nanos)
        {
            due |= flag::PERIODIC;
        }
        let (before, after) = (self.seconds(from), self.seconds(to));
        if self.runs() && before != after {
            due |= flag::UPDATE;
            if self.alarm().next(before).is_some_and(|time| time <= after) {
                due |= flag::ALARM;
            }
        }
        due
    }

    /// When, on the divider chain, the next flag is due that interrupts and isn't set yet.
    fn next_interrupt(&self, divider: i128) -> Option<i128> {
        let awaited = |flag: u8| self.register_b & flag != 0 && self.flags & flag == 0;
        let periodic = self.period().filter(|_| awaited(flag::PERIODIC)).map(|(nanos, per)| {
            let next = (divider * per).div_euclid(nanos) + 1;
            -(-(next * nanos)).div_euclid(per)
        });
        let update = (self.runs() && awaited(flag::UPDATE)).then(|| (divider.div_euclid(SECOND) + 1) * SECOND);
        let now = self.seconds(divider);
        let alarm = (self.runs() && awaited(flag::ALARM)).then(|| self.alarm().next(now)).flatten();
        let alarm = alarm.map(|time| (divider.div_euclid(SECOND) + i128::from(time - now)) * SECOND);
        [periodic, update, alarm].into_iter().flatten().min()
    }

    fn interrupts(&self) -> bool {
        self.flags & self.register_b & flag::ALL != 0
    }

    fn read(&mut self, place: u8, moment: Moment) -> u8 {
        match place {
            place::REGISTER_A => {
                let left = SECOND - self.divider(moment).rem_euclid(SECOND);
                let updates = self.runs() && left <= UPDATE_NOTICE;
                self.register_a | if updates { register_a::UPDATE_IN_PROGRESS } else { 0 }
            }
            place::REGISTER_B => self.register_b,
            place::REGISTER_C => {
                let interrupts = if self.interrupts() { flag::INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupts
            }
            place::REGISTER_D => VALID,
            place::SECOND..=place::YEAR | place::CENTURY => {
                self.write_time(moment);
                self.byte(place)
            }
            _ => self.byte(place),
        }
    }

    fn write(&mut self, place: u8, value: u8, moment: Moment) {
        // What the time's registers hold when the clock stops, or while one of them is set.
        self.write_time(moment);
        match place {
            place::REGISTER_A => {
                let held = !self.divider_runs();
                self.register_a = value & !register_a::UPDATE_IN_PROGRESS;
                if held && self.divider_runs() {
                    // The first update comes half a second after the chain is released.
                    let ahead = (SECOND / 2 - moment.wall).rem_euclid(SECOND);
                    self.ahead_nanos = u32::try_from(ahead).unwrap_or(0);
                    self.take_time(moment);
                }
            }
            place::REGISTER_B => {
                let stood = !self.runs();
                let set = value & register_b::SET != 0;
                self.register_b = if set { value & !register_b::UPDATE_INTERRUPT } else { value };
                if stood {
                    self.take_time(moment);
                }
            }
            place::REGISTER_C | place::REGISTER_D => {}
            place => {
                self.set_byte(place, value);
                self.take_time(moment);
            }
        }
    }
}

/// Whole seconds of the divider chain. It is the wall clock's, so they fit.
fn seconds_of(divider: i128) -> i64 {
    i64::try_from(divider.div_euclid(SECOND)).unwrap_or(0)
}

impl Inner {
    /// Sets the flags that have become due.
    fn settle(&mut self, moment: Moment) {
        let divider = self.chip.divider(moment);
        if divider > self.settled {
            self.chip.flags |= self.chip.due(self.settled, divider);
        }
        self.settled = divider;
    }

    fn watch(&mut self, moment: Moment) {
        let divider = self.chip.divider(moment);
        // What was due counts from here on: a change of the divider chain's phase makes nothing due.
        self.settled = divider;
        let left = self.chip.next_interrupt(divider).map(|at| at - divider);
        let deadline = left.map(|left| moment.now.saturating_add(u64::try_from(left).unwrap_or(u64::MAX)));
        self.alarm.want(deadline);
    }

    fn read(&mut self, region: u32, port: u64, moment: Moment) -> u8 {
        match (region, port) {
            (STANDARD, 1) => self.chip.read(self.chip.index, moment),
            (EXTENDED, 1) => self.chip.byte(EXTENDED_BANK | self.chip.extended_index),
            (EXTENDED, _) => self.chip.extended_index,
            // The index of the standard bank can't be read.
            _ => 0xff,
        }
    }

    fn write(&mut self, region: u32, port: u64, value: u8, moment: Moment) {
        match (region, port) {
            (STANDARD, 0) => self.chip.index = value & 0x7f,
            (STANDARD, _) => self.chip.write(self.chip.index, value, moment),
            (_, 0) => self.chip.extended_index = value & 0x7f,
            _ => self.chip.set_byte(EXTENDED_BANK | self.chip.extended_index, value),
        }
    }
}

impl Rtc {
    /// A clock that tells the machine's wall time, in BCD and 24 hours.
    #[must_use]
    pub fn new(config: RtcConfig) -> Arc<Self> {
        let chip = RtcState {
            memory: vec![0; MEMORY_SIZE],
            index: 0,
            extended_index: 0,
            register_a: register_a::POWER_ON,
            register_b: register_b::HOURS_24,
            flags: 0,
            ahead_seconds: 0,
            ahead_nanos: 0,
        };
        let rtc = Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(rtc) = this.upgrade() {
                    rtc.with(|inner, _| inner.alarm.fired());
                }
            });
            let settled = config.clock.wall();
            let inner = Inner { chip, settled, alarm: Alarm::new(timer) };
            Self { irq: config.irq, clock: config.clock, given: config.memory, inner: Mutex::new(inner) }
        });
        rtc.reset();
        rtc
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moment(&self) -> Moment {
        Moment { now: self.clock.now(), wall: self.clock.wall() }
    }

    /// Does something with the chip at one moment, and all that follows from it.
    fn with<R>(&self, act: impl FnOnce(&mut Inner, Moment) -> R) -> R {
        let mut inner = self.lock();
        let moment = self.moment();
        inner.settle(moment);
        let result = act(&mut inner, moment);
        self.irq.set(inner.chip.interrupts());
        inner.watch(moment);
        result
    }
}

impl Device for Rtc {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, moment| read_ports(offset, data, |port| inner.read(region, port, moment)));
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, moment| write_ports(offset, data, |port, value| inner.write(region, port, value, moment)));
        Action::None
    }
}

impl Persist for Rtc {
    type State = RtcState;

    fn catch_up(&self) {
        self.with(|_, _| ());
    }

    fn save(&self) -> RtcState {
        self.with(|inner, moment| {
            inner.chip.write_time(moment);
            inner.chip.clone()
        })
    }

    fn restore(&self, state: &RtcState) -> Result<(), StateError> {
        let mut inner = self.lock();
        inner.chip = state.clone();
        self.irq.restore(inner.chip.interrupts());
        inner.watch(self.moment());
        Ok(())
    }

    /// Time and memory have a battery; what the machine sets, it sets again.
    fn reset(&self) {
        self.with(|inner, _| {
            inner.chip.register_b &= !register_b::CLEARED;
            inner.chip.flags = 0;
            for (place, byte) in &self.given {
                inner.chip.set_byte(*place, *byte);
            }
        });
    }
}
