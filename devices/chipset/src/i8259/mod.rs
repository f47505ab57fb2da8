//! The pair of 8259A interrupt controllers of a PC.
//!
//! Follows Intel's 8259A datasheet (231468) and the 8259 section of the ICH9 datasheet (316972): all command words, automatic ends of
//! interrupt, rotation, special mask and special fully nested mode, polling, and the edge or level control registers (ELCR) in place of the
//! LTIM bit. The slave is wired to input 2 of the master; initialisation command word 3 is taken and can't change that. A request that has gone
//! before it is acknowledged is answered with the spurious interrupt 7 or 15.
//!
//! Two things differ from the chip, both to the guest's good: an edge stays latched when its line falls before the acknowledgement, since
//! a line here may be pulsed; and a chip that was never initialised requests nothing.
//!
//! What it does not do: MCS-80 mode, buffered mode.

use std::sync::{Mutex, MutexGuard, PoisonError};

use skep_bus::{Action, Device};
use skep_irq::{EoiListener, EoiSubscription, IrqLine, LineTarget};
use skep_state::{Persist, StateError};

use self::chip::Chip;
use crate::access::{read_ports, write_ports};
use crate::eoi::EoiListeners;
use crate::ports::PortRange;

mod chip;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod i8259_test;
mod state;

pub use state::{I8259ChipState, I8259State, Initialisation};

/// Where a PC has its ports.
pub const PORTS: [PortRange; 3] = [
    PortRange { base: 0x20, size: 2, region: MASTER },
    PortRange { base: 0xa0, size: 2, region: SLAVE },
    PortRange { base: 0x4d0, size: 2, region: ELCR },
];

/// Regions.
const MASTER: u32 = 0;
const SLAVE: u32 = 1;
const ELCR: u32 = 2;

/// Lines, as its [`LineTarget`] numbers them.
pub const LINES: u32 = 16;
/// The master's input that the slave is wired to.
const CASCADE: u8 = 2;
/// Inputs that can be levels: not the timer, the keyboard, the cascade, the RTC and the coprocessor.
const ELCR_MASTER: u8 = 0xf8;
const ELCR_SLAVE: u8 = 0xde;

/// What the pair is made of.
pub struct I8259Config {
    /// Its output: asserted while a CPU should acknowledge an interrupt. It is called under the pair's lock; what is behind it must not call
    /// back, so it notes the level, and a vCPU calls [`I8259::acknowledge`] when it can take an interrupt.
    pub intr: IrqLine,
}

/// The pair. Its [`LineTarget`] takes the lines 0 to 15, without 2.
pub struct I8259 {
    intr: IrqLine,
    listeners: EoiListeners,
    inner: Mutex<Pair>,
}

struct Pair {
    master: Chip,
    slave: Chip,
}

/// Lines whose interrupts ended, as a bitmap.
type Ended = u16;

impl Pair {
    fn chip(&mut self, region: u32) -> &mut Chip {
        if region == SLAVE { &mut self.slave } else { &mut self.master }
    }

    /// A chip took a request into service, and ended it at once if `ended` says so.
    fn acknowledged(&mut self, region: u32, (input, ended): (u8, bool)) -> Ended {
        if region == SLAVE {
            // The slave's output falls with the acknowledgement, so that its next request is an edge again.
            self.master.set_input(CASCADE, false);
        }
        if ended { line_bit(region, 1 << input) } else { 0 }
    }

    fn acknowledge(&mut self) -> (u8, Ended) {
        let taken = self.master.acknowledge();
        let mut ended = self.acknowledged(MASTER, taken);
        if taken.0 != CASCADE {
            return (self.master.vector(taken.0), ended);
        }
        let taken = self.slave.acknowledge();
        ended |= self.acknowledged(SLAVE, taken);
        (self.slave.vector(taken.0), ended)
    }

    fn read(&mut self, region: u32, port: u64, ended: &mut Ended) -> u8 {
        match (region, port) {
            (ELCR, 0) => self.master.state.elcr,
            (ELCR, 1) => self.slave.state.elcr,
            (_, 1) => self.chip(region).state.imr,
            (_, 0) => {
                let (value, taken) = self.chip(region).read_even();
                if let Some(taken) = taken {
                    *ended |= self.acknowledged(region, taken);
                }
                value
            }
            _ => 0xff,
        }
    }

    fn write(&mut self, region: u32, port: u64, value: u8) -> Ended {
        match (region, port) {
            (ELCR, 0) => self.master.set_elcr(value),
            (ELCR, 1) => self.slave.set_elcr(value),
            (_, 1) => self.chip(region).write_odd(value),
            (_, 0) => return line_bit(region, self.chip(region).write_even(value)),
            _ => {}
        }
        0
    }
}

fn line_bit(region: u32, inputs: u8) -> Ended {
    u16::from(inputs) << if region == SLAVE { 8 } else { 0 }
}

impl I8259 {
    /// The pair in its power-on state.
    #[must_use]
    pub fn new(config: I8259Config) -> Self {
        let pair = Pair { master: Chip::new(ELCR_MASTER, 1 << CASCADE), slave: Chip::new(ELCR_SLAVE, 0) };
        Self { intr: config.intr, listeners: EoiListeners::default(), inner: Mutex::new(pair) }
    }

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the chips, then sets the lines between them and to the CPU, and tells of ended interrupts.
    fn with<R>(&self, act: impl FnOnce(&mut Pair) -> (R, Ended)) -> R {
        let (result, ended) = {
            let mut pair = self.lock();
            let result = act(&mut pair);
            let requests = pair.slave.request().is_some();
            pair.master.set_input(CASCADE, requests);
            self.intr.set(pair.master.request().is_some());
            result
        };
        if ended != 0 {
            self.listeners.call(|line| line < LINES && ended >> line & 1 != 0);
        }
        result
    }

    /// The CPU acknowledges an interrupt: the vector of the one of the highest priority, which is in service from now on.
    pub fn acknowledge(&self) -> u8 {
        self.with(Pair::acknowledge)
    }
}

impl LineTarget for I8259 {
    fn set_level(&self, line: u32, asserted: bool) {
        let input = (line & 7) as u8;
        self.with(|pair| {
            match line {
                0..=7 if input != CASCADE => pair.master.set_input(input, asserted),
                8..=15 => pair.slave.set_input(input, asserted),
                _ => {}
            }
            ((), 0)
        });
    }

    fn on_eoi(&self, line: u32, listener: EoiListener) -> Option<EoiSubscription> {
        Some(self.listeners.subscribe(line, listener))
    }
}

impl Device for I8259 {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        self.with(|pair| {
            let mut ended = 0;
            read_ports(offset, data, |port| pair.read(region, port, &mut ended));
            ((), ended)
        });
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        self.with(|pair| {
            let mut ended = 0;
            write_ports(offset, data, |port, value| ended |= pair.write(region, port, value));
            ((), ended)
        });
        Action::None
    }
}

impl Persist for I8259 {
    type State = I8259State;

    fn save(&self) -> I8259State {
        let pair = self.lock();
        I8259State { master: pair.master.state.clone(), slave: pair.slave.state.clone() }
    }

    fn restore(&self, state: &I8259State) -> Result<(), StateError> {
        let mut pair = self.lock();
        pair.master.state = state.master.clone();
        pair.slave.state = state.slave.clone();
        self.intr.restore(pair.master.request().is_some());
        Ok(())
    }

    fn reset(&self) {
        self.with(|pair| {
            pair.master.reset();
            pair.slave.reset();
            ((), 0)
        });
    }
}
