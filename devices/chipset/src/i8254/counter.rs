//! One counter of the 8254.

use skep_clock::GuestNanos;

use super::FREQUENCY_HZ;
use super::state::CounterState;

const NANOS: u128 = 1_000_000_000;

/// Interrupts of a periodic mode come no faster than this (200 us), so that a guest can't keep the clock's driver busy.
const SHORTEST_TICKS: u64 = 239;

/// How far the counter has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It waits for a count, or for a trigger.
    Waiting,
    /// It counts, and was loaded at this time.
    Since(GuestNanos),
    /// Its gate is low; it has come this many ticks.
    Held(u64),
}

/// One counter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counter {
    /// Mode 0 to 5.
    mode: u8,
    bcd: bool,
    /// 1: low byte, 2: high byte, 3: low then high.
    access: u8,
    gate: bool,
    /// The count that is in the counter, as it was written.
    count: u16,
    /// A count that is loaded when the period ends, or at the trigger.
    next: Option<u16>,
    progress: Progress,
    /// The low byte of a count whose high byte has not come.
    low: Option<u8>,
    /// The next read gives the high byte.
    reads_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

fn ticks(nanos: u64) -> u64 {
    (u128::from(nanos) * u128::from(FREQUENCY_HZ) / NANOS) as u64
}

/// The first nanosecond at which `ticks` have passed.
fn nanos(ticks: u64) -> u64 {
    u64::try_from((u128::from(ticks) * NANOS).div_ceil(u128::from(FREQUENCY_HZ))).unwrap_or(u64::MAX)
}

/// Nanoseconds from one time to a later one. Times wrap: a restored counter may have begun before guest time did.
fn passed(from: GuestNanos, to: GuestNanos) -> u64 {
    u64::try_from(to.wrapping_sub(from) as i64).unwrap_or(0)
}

fn from_bcd(value: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(value >> (digit * 4) & 15))
}

fn to_bcd(value: u64) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | ((value / 10_u64.pow(digit) % 10) << (digit * 4)) as u16)
}

impl Counter {
    /// It waits for a count, with its gate high.
    pub(super) const POWER_ON: Self = Self {
        mode: 0,
        bcd: false,
        access: 3,
        gate: true,
        count: 0,
        next: None,
        progress: Progress::Waiting,
        low: None,
        reads_high: false,
        latched_count: None,
        latched_status: None,
    };

    /// The same with its gate low.
    pub(super) const POWER_ON_GATED: Self = Self { gate: false, ..Self::POWER_ON };

    /// Modes 2 and 3 begin again by themselves.
    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Modes 1 and 5 begin when the gate rises.
    fn is_triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// How far the counter goes before it is round: 0 counts as the largest.
    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The ticks of one period, or until the terminal count.
    fn period(&self) -> u64 {
        let count = if self.bcd { from_bcd(self.count) } else { u64::from(self.count) };
        if count == 0 { self.modulus() } else { count }
    }

    /// The ticks between two interrupts of a periodic mode: whole periods, and not too few ticks.
    fn interrupt_period(&self) -> u64 {
        let period = self.period();
        period * SHORTEST_TICKS.div_ceil(period)
    }

    /// The square wave is too fast to show each of its levels.
    fn is_blur(&self) -> bool {
        self.mode == 3 && self.interrupt_period() != self.period()
    }

    fn elapsed(&self, now: GuestNanos) -> Option<u64> {
        match self.progress {
            Progress::Waiting => None,
            Progress::Since(start) => Some(ticks(passed(start, now))),
            Progress::Held(elapsed) => Some(elapsed),
        }
    }

    /// A control word for this counter.
    pub(super) fn control(&mut self, word: u8, now: GuestNanos) {
        // Bit 2 of a mode of 6 or 7 counts for nothing.
        let mode = word >> 1 & 7;
        *self = Self {
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: word & 1 != 0,
            access: word >> 4 & 3,
            gate: self.gate,
            count: self.count,
            latched_count: self.latched_count,
            latched_status: self.latched_status,
            ..Self::POWER_ON
        };
        self.settle(now);
    }

    /// Loads what waits for the end of a period, if that has come.
    pub(super) fn settle(&mut self, now: GuestNanos) {
        if let (Some(next), Progress::Since(start), true) = (self.next, self.progress, self.is_periodic()) {
            let whole = nanos(self.period());
            if passed(start, now) >= whole {
                (self.count, self.next, self.progress) = (next, None, Progress::Since(start.wrapping_add(whole)));
            }
        }
    }

    /// Keeps a count for the end of the period that is under way, or for the trigger.
    fn load_later(&mut self, count: u16, now: GuestNanos) {
        if let (None, Progress::Since(start), true) = (self.next, self.progress, self.is_periodic()) {
            let whole = ticks(passed(start, now)) / self.period() * self.period();
            self.progress = Progress::Since(start.wrapping_add(nanos(whole).min(passed(start, now))));
        }
        self.next = Some(count);
    }

    /// A byte written to the counter's port.
    pub(super) fn write(&mut self, value: u8, now: GuestNanos) {
        let count = match (self.access, self.low.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, Some(low)) => u16::from(value) << 8 | u16::from(low),
            (_, None) => {
                self.low = Some(value);
                if self.mode == 0 {
                    // The first byte stops the count.
                    self.progress = Progress::Waiting;
                }
                return;
            }
        };
        if self.is_triggered() || (self.is_periodic() && self.progress != Progress::Waiting) {
            self.load_later(count, now);
            return;
        }
        self.count = count;
        self.next = None;
        self.progress = match (self.gate, self.is_periodic()) {
            (true, _) => Progress::Since(now),
            (false, false) => Progress::Held(0),
            (false, true) => {
                self.next = Some(count);
                Progress::Waiting
            }
        };
    }

    /// Moves the gate.
    pub(super) fn set_gate(&mut self, gate: bool, now: GuestNanos) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match (self.progress, rises, falls) {
            (Progress::Since(_), _, true) if self.is_periodic() => {
                self.next = Some(self.next.unwrap_or(self.count));
                self.progress = Progress::Waiting;
            }
            (Progress::Since(_), _, true) if !self.is_triggered() => {
                self.progress = Progress::Held(self.elapsed(now).unwrap_or(0));
            }
            (Progress::Held(elapsed), true, _) => {
                self.progress = Progress::Since(now.wrapping_sub(nanos(elapsed)));
            }
            (progress, true, _) if self.is_periodic() || self.is_triggered() => {
                let again = self.is_triggered() && progress != Progress::Waiting;
                if let Some(next) = self.next.take() {
                    self.count = next;
                    self.progress = Progress::Since(now);
                } else if again {
                    self.progress = Progress::Since(now);
                }
            }
            _ => {}
        }
    }

    /// The counting element's value.
    fn value(&self, now: GuestNanos) -> u16 {
        let (period, modulus) = (self.period(), self.modulus());
        let left = match (self.elapsed(now), self.mode) {
            (None, _) => period,
            (Some(elapsed), 2) => period - elapsed % period,
            // It goes by twos, twice in a period.
            (Some(elapsed), 3) => (period - 2 * elapsed % period.max(2)) & !1,
            // After the terminal count it goes on, round and round.
            (Some(elapsed), _) => (period % modulus + modulus - elapsed % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(left) } else { left as u16 }
    }

    /// The OUT pin.
    pub(super) fn output(&self, now: GuestNanos) -> bool {
        let (period, elapsed) = (self.period(), self.elapsed(now));
        match (self.mode, elapsed) {
            (0, None) => false,
            (0, Some(elapsed)) => elapsed >= period,
            (1, Some(elapsed)) => elapsed >= period,
            (2, Some(elapsed)) => elapsed % period != period - 1,
            (3, Some(elapsed)) => elapsed % period < period.div_ceil(2),
            (4 | 5, Some(elapsed)) => elapsed != period,
            _ => true,
        }
    }

    /// The OUT pin but for pulses of one tick, which are made as a whole when they end.
    pub(super) fn output_between_pulses(&self, now: GuestNanos) -> bool {
        matches!(self.mode, 2 | 4 | 5) || self.is_blur() || self.output(now)
    }

    /// When the next pulse ends or the level changes, after `now`.
    pub(super) fn next_edge(&self, now: GuestNanos) -> Option<GuestNanos> {
        let Progress::Since(start) = self.progress else { return None };
        let (elapsed, period) = (ticks(passed(start, now)), self.period());
        let at = match self.mode {
            mode if mode == 2 || self.is_blur() => {
                let period = self.interrupt_period();
                (elapsed / period + 1) * period
            }
            3 => {
                let (whole, half) = (elapsed / period * period, period.div_ceil(2));
                if elapsed - whole < half { whole + half } else { whole + period }
            }
            4 | 5 if elapsed <= period => period + 1,
            0 | 1 if elapsed < period => period,
            _ => return None,
        };
        // A count that waits is loaded when the period ends, and what follows has its phase.
        let at = if self.next.is_some() && self.is_periodic() { at.min((elapsed / period + 1) * period) } else { at };
        Some(now.saturating_add(nanos(at).saturating_sub(passed(start, now))))
    }

    /// Whether a pulse, or a period of the square wave, has ended after `since` and not after `now`.
    pub(super) fn pulsed_since(&self, since: GuestNanos, now: GuestNanos) -> bool {
        let Progress::Since(start) = self.progress else { return false };
        let (from, to) = (ticks(passed(start, since)), ticks(passed(start, now)));
        let period = self.period();
        match self.mode {
            2 | 3 => from / self.interrupt_period() != to / self.interrupt_period(),
            4 | 5 => from <= period && to > period,
            _ => false,
        }
    }

    /// Latches the count, unless one waits to be read.
    pub(super) fn latch_count(&mut self, now: GuestNanos) {
        let value = self.value(now);
        self.latched_count.get_or_insert(value);
    }

    /// The read-back command.
    pub(super) fn read_back(&mut self, count: bool, status: bool, now: GuestNanos) {
        if status {
            let null_count = self.next.is_some() || self.progress == Progress::Waiting;
            let value = u8::from(self.output(now)) << 7
                | u8::from(null_count) << 6
                | self.access << 4
                | self.mode << 1
                | u8::from(self.bcd);
            self.latched_status.get_or_insert(value);
        }
        if count {
            self.latch_count(now);
        }
    }

    /// A byte read from the counter's port.
    pub(super) fn read(&mut self, now: GuestNanos) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched_count.unwrap_or_else(|| self.value(now));
        let (low, high) = (value as u8, (value >> 8) as u8);
        let (byte, last) = match (self.access, self.reads_high) {
            (1, _) => (low, true),
            (2, _) => (high, true),
            (_, false) => (low, false),
            (_, true) => (high, true),
        };
        self.reads_high = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn save(&self, now: GuestNanos) -> CounterState {
        CounterState {
            mode: self.mode,
            bcd: self.bcd,
            access: self.access,
            count: self.count,
            next: self.next,
            running: match self.progress {
                Progress::Since(start) => Some(passed(start, now)),
                _ => None,
            },
            held: match self.progress {
                Progress::Held(elapsed) => Some(elapsed),
                _ => None,
            },
            low: self.low,
            reads_high: self.reads_high,
            latched_count: self.latched_count,
            latched_status: self.latched_status,
        }
    }

    pub(super) fn restored(state: &CounterState, gate: bool, now: GuestNanos) -> Self {
        Self {
            mode: state.mode,
            bcd: state.bcd,
            access: state.access,
            gate,
            count: state.count,
            next: state.next,
            progress: match (state.running, state.held) {
                (Some(nanos), _) => Progress::Since(now.wrapping_sub(nanos)),
                (None, Some(elapsed)) => Progress::Held(elapsed),
                (None, None) => Progress::Waiting,
            },
            low: state.low,
            reads_high: state.reads_high,
            latched_count: state.latched_count,
            latched_status: state.latched_status,
        }
    }
}
