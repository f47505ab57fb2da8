//! The 8254 programmable interval timer, with the speaker port that gates its third counter.
//!
//! Follows Intel's 82C54 datasheet (October 1994): three counters, all six modes, binary and BCD, count and status latches, read-back. Port
//! 61h is as in the ICH9 datasheet, section 13.7 (NMI_SC): gate and output of counter 2, the refresh toggle.
//!
//! Counter 0's output is an interrupt line. A rate generator's low pulse of one tick is made when it ends, so a period costs one timer of the
//! host. Where the host is late by whole periods, they become one interrupt, and the next ones keep their phase; periods shorter than 200 us become one
//! interrupt as well.
//!
//! Time is taken at the moment of an access: a count written is loaded at once, where the chip waits for the next tick (838 ns). A square
//! wave takes a new count at the end of its period, where the chip does so at the end of a half.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_ports, write_ports};
use crate::alarm::Alarm;
use crate::ports::PortRange;

mod counter;
mod state;

use counter::Counter;
pub use state::{CounterState, I8254State};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "i8254_test.rs"]
pub(crate) mod test;

/// Ticks per second of all counters.
pub const FREQUENCY_HZ: u64 = 1_193_182;
/// Where a PC has its ports: the counters, and the speaker port.
pub const PORTS: [PortRange; 2] =
    [PortRange { base: 0x40, size: 4, region: COUNTERS }, PortRange { base: 0x61, size: 1, region: SPEAKER }];

/// Regions.
const COUNTERS: u32 = 0;
const SPEAKER: u32 = 1;

/// Half a period of the refresh toggle, in nanoseconds.
const REFRESH_NANOS: u64 = 15_085;

/// Port 61h holds the third counter's gate low.
const POWER_ON: [Counter; 3] = [Counter::POWER_ON, Counter::POWER_ON, Counter::POWER_ON_GATED];
/// Bit of port 61h: the third counter's gate.
const GATE: u8 = 1 << 0;

/// What an 8254 needs.
pub struct I8254Config {
    /// Counter 0's output.
    pub irq: IrqLine,
    /// Guest time.
    pub clock: Clock,
}

struct Inner {
    counters: [Counter; 3],
    /// Bits 3:0 of port 61h.
    speaker: u8,
    /// When a period of the refresh toggle began.
    refresh_since: GuestNanos,
    alarm: Alarm,
    /// Up to when counter 0's edges have been made.
    edges_until: GuestNanos,
}

/// An 8254 and its speaker port.
pub struct I8254 {
    irq: IrqLine,
    clock: Clock,
    inner: Mutex<Inner>,
}

impl I8254 {
    /// An 8254 in its power-on state: no counter counts.
    #[must_use]
    pub fn new(config: I8254Config) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(pit) = this.upgrade() {
                    pit.with(|inner, _| inner.alarm.fired());
                }
            });
            let inner = Inner {
                counters: POWER_ON,
                speaker: 0,
                refresh_since: 0,
                alarm: Alarm::new(timer),
                edges_until: config.clock.now(),
            };
            Self { irq: config.irq, clock: config.clock, inner: Mutex::new(inner) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something at one moment, after the edges that were due before it, and sets output and timer by what follows.
    fn with<R>(&self, act: impl FnOnce(&mut Inner, GuestNanos) -> R) -> R {
        let mut inner = self.lock();
        let now = self.clock.now();
        inner.settle(now, &self.irq);
        let result = act(&mut inner, now);
        inner.settle(now, &self.irq);
        self.irq.set(inner.counters[0].output_between_pulses(now));
        inner.watch(now);
        result
    }
}

impl Inner {
    /// Makes counter 0's edge, if there has been one since it was last looked at.
    fn settle(&mut self, now: GuestNanos, irq: &IrqLine) {
        let [first, second, third] = &mut self.counters;
        if first.pulsed_since(self.edges_until, now) {
            irq.deassert();
            irq.assert();
        }
        [first, second, third].into_iter().for_each(|counter| counter.settle(now));
        self.edges_until = now;
    }

    fn watch(&mut self, now: GuestNanos) {
        let next = self.counters[0].next_edge(now);
        self.alarm.want(next);
    }

    fn read(&mut self, port: u64, now: GuestNanos) -> u8 {
        match self.counters.get_mut(port as usize) {
            Some(counter) => counter.read(now),
            // The control port can't be read.
            None => 0xff,
        }
    }

    fn write(&mut self, port: u64, value: u8, now: GuestNanos) {
        if let Some(counter) = self.counters.get_mut(port as usize) {
            counter.write(value, now);
            return;
        }
        match (value >> 6, value >> 4 & 3) {
            (3, _) => {
                for (index, counter) in self.counters.iter_mut().enumerate() {
                    if value >> (index + 1) & 1 != 0 {
                        counter.read_back(value & 0x20 == 0, value & 0x10 == 0, now);
                    }
                }
            }
            (index, access) => {
                if let Some(counter) = self.counters.get_mut(usize::from(index)) {
                    if access == 0 { counter.latch_count(now) } else { counter.control(value & 0x3f, now) }
                }
            }
        }
    }

    fn read_speaker(&self, now: GuestNanos) -> u8 {
        let refresh = ((now.wrapping_sub(self.refresh_since) / REFRESH_NANOS) & 1) as u8;
        self.speaker | refresh << 4 | u8::from(self.counters[2].output(now)) << 5
    }

    fn write_speaker(&mut self, value: u8, now: GuestNanos) {
        self.speaker = value & 0x0f;
        self.counters[2].set_gate(value & GATE != 0, now);
    }
}

impl Device for I8254 {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|inner, now| {
            read_ports(offset, data, |port| match region {
                COUNTERS => inner.read(port, now),
                _ => inner.read_speaker(now),
            });
        });
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|inner, now| {
            write_ports(offset, data, |port, value| match region {
                COUNTERS => inner.write(port, value, now),
                _ => inner.write_speaker(value, now),
            });
        });
        Action::None
    }
}

impl Persist for I8254 {
    type State = I8254State;

    fn catch_up(&self) {
        self.with(|_, _| ());
    }

    fn save(&self) -> I8254State {
        self.with(|inner, now| I8254State {
            counters: inner.counters.iter().map(|counter| counter.save(now)).collect(),
            speaker: inner.speaker,
            refresh: now.wrapping_sub(inner.refresh_since) % (2 * REFRESH_NANOS),
        })
    }

    fn restore(&self, state: &I8254State) -> Result<(), StateError> {
        let mut inner = self.lock();
        let now = self.clock.now();
        let gates = [true, true, state.speaker & GATE != 0];
        for ((counter, saved), gate) in inner.counters.iter_mut().zip(&state.counters).zip(gates) {
            *counter = Counter::restored(saved, gate, now);
        }
        inner.speaker = state.speaker;
        inner.refresh_since = now.wrapping_sub(state.refresh);
        inner.edges_until = now;
        self.irq.restore(inner.counters[0].output_between_pulses(now));
        inner.watch(now);
        Ok(())
    }

    fn reset(&self) {
        self.with(|inner, _| {
            inner.counters = POWER_ON;
            inner.speaker = 0;
        });
    }
}
