//! The CMOS real-time clock of a PC.
//!
//! Follows Motorola's MC146818A datasheet and the RTC section of Intel's ICH9 datasheet (316972, 5.11 and 13.6): time in BCD or binary, 12 or
//! 24 hours, alarm with don't-care codes, periodic, alarm and update-ended interrupts, two banks of 128 bytes, of which the first's register
//! 32h is the century. Time flows by the machine's wall clock and an offset that the guest sets.
//!
//! Flags are found when somebody looks, or when an interrupt is due: a clock whose interrupts are off costs nothing.
//!
//! What it does not do: daylight saving (as later chips), the square wave output, a day of the week other than the date's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_ports, write_ports};
use crate::alarm::Alarm;
use crate::ports::PortRange;

mod calendar;
mod state;

use calendar::{Format, Moment};
pub use state::RtcState;

#[cfg(test)]
#[path = "rtc_test.rs"]
mod test;

/// Where a PC has its ports: index and data of both banks.
pub const PORTS: [PortRange; 2] =
    [PortRange { base: 0x70, size: 2, region: 0 }, PortRange { base: 0x72, size: 2, region: 1 }];

/// Bytes of both banks.
const CMOS_SIZE: usize = 256;
const SECOND: i128 = 1_000_000_000;
/// How long before an update the update-in-progress bit is set, in nanoseconds.
const UPDATE_NOTICE: i128 = 244_000;

/// Registers of the first bank.
mod register {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const SECONDS_ALARM: u8 = 0x01;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const MINUTES_ALARM: u8 = 0x03;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const HOURS_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    pub(super) const CENTURY: u8 = 0x32;
}

/// Bits of register A.
mod a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    pub(super) const DIVIDER_RESET: u8 = 0x60;
    pub(super) const RATE: u8 = 0x0f;
    pub(super) const POWER_ON: u8 = 0x26;
}

/// Bits of register B. The enable bits stand where their flags do in register C.
mod b {
    pub(super) const SET: u8 = 1 << 7;
    pub(super) const ENABLES: u8 = 0x70;
    pub(super) const SQUARE_WAVE: u8 = 1 << 3;
    pub(super) const BINARY: u8 = 1 << 2;
    pub(super) const HOURS_24: u8 = 1 << 1;
}

/// Bits of register C.
mod c {
    pub(super) const INTERRUPT: u8 = 1 << 7;
    pub(super) const PERIODIC: u8 = 1 << 6;
    pub(super) const ALARM: u8 = 1 << 5;
    pub(super) const UPDATE: u8 = 1 << 4;
}

/// Register D: the battery is good.
const VALID: u8 = 1 << 7;

/// What a clock is made of.
pub struct RtcConfig {
    /// Its interrupt.
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
    /// What CMOS memory holds at first: index (second bank from 80h on) and value.
    pub memory: Vec<(u8, u8)>,
}

/// A CMOS real-time clock.
pub struct Rtc {
    irq: IrqLine,
    clock: Clock,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Index registers of both banks.
    index: [u8; 2],
    /// Alarm registers and memory; time and status stand elsewhere.
    cmos: [u8; CMOS_SIZE],
    a: u8,
    b: u8,
    /// The flags of register C.
    flags: u8,
    /// Nanoseconds that the guest's time is ahead of the wall clock.
    offset: i128,
    /// The time stands at this moment: the guest sets it, or holds the divider.
    held: Option<Moment>,
    /// Flags have been found up to this guest time, in nanoseconds since the Unix epoch.
    seen: i128,
    alarm: Alarm,
}

impl Inner {
    fn time(&self, wall: i128) -> i128 {
        wall + self.offset
    }

    fn format(&self) -> Format {
        Format { binary: self.b & b::BINARY != 0, hours_24: self.b & b::HOURS_24 != 0 }
    }

    fn moment(&self, wall: i128) -> Moment {
        self.held.unwrap_or_else(|| Moment::at(self.time(wall).div_euclid(SECOND) as i64))
    }

    /// Nanoseconds between periodic interrupts.
    fn period(&self) -> Option<i128> {
        match self.a & a::RATE {
            0 => None,
            // The two slowest of the prescaler stand before the fast ones.
            rate @ 1..=2 => Some((SECOND << (rate + 6)) >> 15),
            rate => Some((SECOND << (rate - 1)) >> 15),
        }
    }

    /// Seconds from `time` until the alarm, if it can ever come.
    fn until_alarm(&self, time: i128) -> Option<i64> {
        let alarm = [register::HOURS_ALARM, register::MINUTES_ALARM, register::SECONDS_ALARM];
        let [hour, minute, second] = alarm.map(|index| self.cmos[usize::from(index)]);
        self.format().until(Moment::at(time.div_euclid(SECOND) as i64), [hour, minute, second])
    }

    /// Finds the flags of what has happened since they were last found.
    fn settle(&mut self, wall: i128) {
        let (before, now) = (self.seen, self.time(wall));
        self.seen = now;
        if self.held.is_some() || now <= before {
            return;
        }
        let passed = now.div_euclid(SECOND) - before.div_euclid(SECOND);
        if passed > 0 {
            self.flags |= c::UPDATE;
            if self.until_alarm(before).is_some_and(|seconds| i128::from(seconds) <= passed) {
                self.flags |= c::ALARM;
            }
        }
        if self.period().is_some_and(|period| now.div_euclid(period) != before.div_euclid(period)) {
            self.flags |= c::PERIODIC;
        }
    }

    fn interrupts(&self) -> bool {
        self.flags & self.b & b::ENABLES != 0
    }

    /// Nanoseconds until the first interrupt that is enabled and not raised.
    fn until_interrupt(&self, wall: i128) -> Option<u64> {
        if self.held.is_some() || self.interrupts() {
            return None;
        }
        let (time, wanted) = (self.time(wall), self.b & b::ENABLES);
        let until_second = SECOND - time.rem_euclid(SECOND);
        let periodic = self.period().filter(|_| wanted & c::PERIODIC != 0);
        let alarm = self.until_alarm(time).filter(|_| wanted & c::ALARM != 0);
        let waits = [
            periodic.map(|period| period - time.rem_euclid(period)),
            alarm.map(|seconds| until_second + (i128::from(seconds) - 1) * SECOND),
            (wanted & c::UPDATE != 0).then_some(until_second),
        ];
        waits.into_iter().flatten().min().and_then(|wait| u64::try_from(wait).ok())
    }

    /// The address of the byte that a bank's data port shows.
    fn address(&self, region: u32) -> u8 {
        let bank = (region & 1) as usize;
        (bank as u8) << 7 | self.index[bank] & 0x7f
    }

    fn read(&mut self, region: u32, port: u64, wall: i128) -> u8 {
        if port == 0 {
            // The index of the first bank can't be read.
            return if region == 0 { 0xff } else { self.index[1] };
        }
        let address = self.address(region);
        match address {
            register::A => {
                let left = SECOND - self.time(wall).rem_euclid(SECOND);
                let updating = self.held.is_none() && left <= UPDATE_NOTICE;
                self.a | if updating { a::UPDATE_IN_PROGRESS } else { 0 }
            }
            register::B => self.b,
            register::C => {
                let interrupt = if self.interrupts() { c::INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | interrupt
            }
            register::D => VALID,
            _ => self.read_time(address, wall).unwrap_or(self.cmos[usize::from(address)]),
        }
    }

    fn read_time(&self, address: u8, wall: i128) -> Option<u8> {
        let (moment, format) = (self.moment(wall), self.format());
        Some(match address {
            register::SECONDS => format.encode(moment.second),
            register::MINUTES => format.encode(moment.minute),
            register::HOURS => format.encode_hour(moment.hour),
            register::WEEKDAY => format.encode(moment.weekday()),
            register::DAY => format.encode(moment.day),
            register::MONTH => format.encode(moment.month),
            register::YEAR => format.encode((moment.year.rem_euclid(100)) as u8),
            register::CENTURY => format.encode((moment.year.div_euclid(100)).rem_euclid(100) as u8),
            _ => return None,
        })
    }

    fn write(&mut self, region: u32, port: u64, value: u8, wall: i128) {
        if port == 0 {
            // Bit 7 of the first bank's index masks NMI, which nothing here makes.
            self.index[(region & 1) as usize] = value;
            return;
        }
        let address = self.address(region);
        match address {
            register::A => {
                self.a = value & !a::UPDATE_IN_PROGRESS;
                self.hold_or_run(wall);
            }
            register::B => {
                // Setting the time ends the update interrupt.
                let cleared = if value & b::SET != 0 { c::UPDATE } else { 0 };
                self.b = value & !cleared;
                self.hold_or_run(wall);
            }
            // Flags are cleared by reading them; the battery is what it is.
            register::C | register::D => {}
            _ if self.write_time(address, value, wall) => {}
            _ => self.cmos[usize::from(address)] = value,
        }
    }

    /// The guest has held the time, or lets it run again from where it set it.
    fn hold_or_run(&mut self, wall: i128) {
        let hold = self.b & b::SET != 0 || self.a & a::DIVIDER_RESET == a::DIVIDER_RESET;
        match (self.held, hold) {
            (None, true) => self.held = Some(self.moment(wall)),
            (Some(moment), false) => {
                self.held = None;
                self.set(moment, wall);
            }
            _ => {}
        }
    }

    fn set(&mut self, moment: Moment, wall: i128) {
        self.offset = i128::from(moment.epoch_seconds()) * SECOND - wall;
        self.seen = self.time(wall);
    }

    fn write_time(&mut self, address: u8, value: u8, wall: i128) -> bool {
        let (mut moment, format) = (self.moment(wall), self.format());
        let number = format.decode(value);
        match address {
            register::SECONDS => moment.second = number,
            register::MINUTES => moment.minute = number,
            register::HOURS => moment.hour = format.decode_hour(value),
            register::DAY => moment.day = number,
            register::MONTH => moment.month = number,
            register::YEAR => moment.year = moment.year.div_euclid(100) * 100 + i32::from(number),
            register::CENTURY => moment.year = i32::from(number) * 100 + moment.year.rem_euclid(100),
            register::WEEKDAY => {}
            _ => return false,
        }
        match &mut self.held {
            Some(held) => *held = moment,
            // A single register set while the clock runs: the second's fraction goes on.
            None => {
                let fraction = self.time(wall).rem_euclid(SECOND);
                self.set(moment, wall);
                self.offset += fraction;
                self.seen = self.time(wall);
            }
        }
        true
    }
}

impl Rtc {
    /// A clock that shows the wall clock (UTC).
    #[must_use]
    pub fn new(config: RtcConfig) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(rtc) = this.upgrade() {
                    rtc.with(|inner, _| inner.alarm.fired());
                }
            });
            let mut cmos = [0; CMOS_SIZE];
            for (index, value) in config.memory {
                cmos[usize::from(index)] = value;
            }
            let inner = Inner {
                index: [0; 2],
                cmos,
                a: a::POWER_ON,
                b: b::HOURS_24,
                flags: 0,
                offset: 0,
                held: None,
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
        self.irq.set(inner.interrupts());
        inner.watch(now, wall);
        result
    }
}

impl Inner {
    fn watch(&mut self, now: GuestNanos, wall: i128) {
        let wait = self.until_interrupt(wall);
        self.alarm.want(wait.map(|wait| now.saturating_add(wait)));
    }
}

impl Device for Rtc {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, wall| read_ports(offset, data, |port| inner.read(region, port, wall)));
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, wall| write_ports(offset, data, |port, value| inner.write(region, port, value, wall)));
        Action::None
    }
}

impl Persist for Rtc {
    type State = RtcState;

    fn save(&self) -> RtcState {
        let mut inner = self.lock();
        inner.settle(self.clock.wall());
        RtcState {
            index: inner.index,
            cmos: inner.cmos.to_vec(),
            a: inner.a,
            b: inner.b,
            flags: inner.flags,
            offset_seconds: inner.offset.div_euclid(SECOND) as i64,
            offset_nanos: inner.offset.rem_euclid(SECOND) as u32,
            held: inner.held.map(Into::into),
        }
    }

    fn restore(&self, state: &RtcState) -> Result<(), StateError> {
        let mut inner = self.lock();
        let (now, wall) = (self.clock.now(), self.clock.wall());
        inner.index = state.index;
        for (byte, saved) in inner.cmos.iter_mut().zip(&state.cmos) {
            *byte = *saved;
        }
        inner.a = state.a;
        inner.b = state.b;
        inner.flags = state.flags;
        inner.offset = i128::from(state.offset_seconds) * SECOND + i128::from(state.offset_nanos);
        inner.held = state.held.as_ref().map(Into::into);
        inner.seen = inner.time(wall);
        self.irq.restore(inner.interrupts());
        inner.watch(now, wall);
        Ok(())
    }

    /// Interrupts end; time and memory stay, as they do with a battery.
    fn reset(&self) {
        self.with(|inner, wall| {
            inner.b &= !(b::ENABLES | b::SQUARE_WAVE | b::SET);
            inner.flags = 0;
            inner.index = [0; 2];
            inner.hold_or_run(wall);
        });
    }
}
