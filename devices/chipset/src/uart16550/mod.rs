//! The 16550A serial port.
//!
//! Follows National Semiconductor's PC16550D (June 1995): receive FIFO of 16 with trigger levels and character timeout, all registers, loopback,
//! break, modem status, and interrupts with their priorities and ways of clearing. As on a PC, the interrupt output is gated by OUT2.
//!
//! The line has no rate and no format: what the guest writes is with the host at once, so the transmitter is always empty, and each byte
//! crosses whole, whatever the line control register says. Rate and format count only for the character timeout. At the far end a modem is
//! always ready (CTS, DSR and DCD). Outside loopback nothing overruns: what doesn't fit stays with the host. While the port is in loopback, the
//! host's input waits.

use std::sync::{Arc, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_ports, write_ports};
use crate::fifo::Fifo;
use crate::serial::{self, Port, Registers as _, SerialOut, SerialPort};

mod state;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod uart16550_test;

pub use state::Uart16550State;

/// Ports that it takes.
pub const PORT_COUNT: u64 = 8;
/// Characters that the receive FIFO holds.
const FIFO_DEPTH: usize = 16;
/// The baud generator's input; a bit takes 16 times the divisor.
const CLOCK_HZ: u64 = 1_843_200;
/// 9600 bits per second: what the divisor latch holds at power-on, where the datasheet leaves it undefined.
const POWER_ON_DIVISOR: u16 = 12;

/// Interrupt enable register.
mod ier {
    pub(super) const RECEIVED: u8 = 1 << 0;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub(super) const LINE_STATUS: u8 = 1 << 2;
    pub(super) const MODEM_STATUS: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0f;
}

/// Interrupt identification register, in the order of their priorities.
mod iir {
    pub(super) const LINE_STATUS: u8 = 0x06;
    pub(super) const RECEIVED: u8 = 0x04;
    pub(super) const TIMEOUT: u8 = 0x0c;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x02;
    pub(super) const MODEM_STATUS: u8 = 0x00;
    pub(super) const NONE: u8 = 0x01;
    pub(super) const FIFO_ON: u8 = 0xc0;
}

/// FIFO control register.
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVER: u8 = 1 << 1;
    pub(super) const KEPT: u8 = 0xc9;
}

/// Line control register.
mod lcr {
    pub(super) const BREAK: u8 = 1 << 6;
    pub(super) const DIVISOR_LATCH: u8 = 1 << 7;
}

/// Modem control register.
mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOPBACK: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub(super) const DATA_READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const FRAMING: u8 = 1 << 3;
    pub(super) const BREAK: u8 = 1 << 4;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x60;
    pub(super) const FIFO_ERROR: u8 = 1 << 7;
    /// Those that belong to one character.
    pub(super) const CHARACTER_ERRORS: u8 = 0x1c;
    pub(super) const ERRORS: u8 = CHARACTER_ERRORS | OVERRUN;
}

/// Modem status register; the changes stand four bits lower.
mod msr {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
}

/// What a 16550A is made of.
pub struct Uart16550Config {
    /// Its interrupt.
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
    /// Where its output goes.
    pub out: Box<dyn SerialOut>,
}

/// A 16550A.
pub struct Uart16550 {
    port: Port<Registers>,
}

type Inner = serial::Inner<Registers>;

#[derive(Debug, Clone)]
struct Registers {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    line_errors: u8,
    modem_changes: u8,
    scratch: u8,
    divisor: u16,
    received: Fifo<FIFO_DEPTH>,
    transmitter_empty: bool,
    timeout: Timeout,
}

/// The character timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timeout {
    Idle,
    At(GuestNanos),
    Elapsed,
}

impl Registers {
    const POWER_ON: Self = Self {
        ier: 0,
        fcr: 0,
        lcr: 0,
        mcr: 0,
        line_errors: 0,
        modem_changes: 0,
        scratch: 0,
        divisor: POWER_ON_DIVISOR,
        received: Fifo::new(),
        transmitter_empty: false,
        timeout: Timeout::Idle,
    };

    fn fifo_on(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOPBACK != 0
    }

    fn depth(&self) -> usize {
        if self.fifo_on() { FIFO_DEPTH } else { 1 }
    }

    /// Characters at which data is said to be available.
    fn trigger(&self) -> usize {
        match self.fcr {
            fcr if fcr & fcr::ENABLE == 0 => 1,
            fcr => [1, 4, 8, 14][usize::from(fcr >> 6)],
        }
    }

    /// The interrupt of the highest priority.
    fn interrupt(&self) -> u8 {
        let enabled = |source| self.ier & source != 0;
        if enabled(ier::LINE_STATUS) && self.line_errors != 0 {
            iir::LINE_STATUS
        } else if enabled(ier::RECEIVED) && self.received.len() >= self.trigger() {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && self.timeout == Timeout::Elapsed {
            iir::TIMEOUT
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.transmitter_empty {
            iir::TRANSMITTER_EMPTY
        } else if enabled(ier::MODEM_STATUS) && self.modem_changes != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn line_status(&self) -> u8 {
        let ready = if self.received.is_empty() { 0 } else { lsr::DATA_READY };
        let in_fifo = self.fifo_on() && self.received.iter().any(|entry| entry >> 8 != 0);
        ready | self.line_errors | lsr::TRANSMITTER_EMPTY | if in_fifo { lsr::FIFO_ERROR } else { 0 }
    }

    /// The modem's four inputs: those of the far end, or in loopback our own outputs.
    fn modem_inputs(&self) -> u8 {
        if !self.loopback() {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        let pairs = [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)];
        pairs.iter().filter(|(output, _)| self.mcr & output != 0).fold(0, |inputs, (_, input)| inputs | input)
    }

    fn set_mcr(&mut self, value: u8) {
        let before = self.modem_inputs();
        self.mcr = value & mcr::ALL;
        let after = self.modem_inputs();
        // Of the ring indicator only the trailing edge counts.
        let changed = (before ^ after) & !msr::RI | before & !after & msr::RI;
        self.modem_changes |= changed >> 4;
    }

    fn set_fcr(&mut self, value: u8) {
        let on = value & fcr::ENABLE != 0;
        // Going into or out of FIFO mode empties both FIFOs.
        if on != self.fifo_on() || (on && value & fcr::CLEAR_RECEIVER != 0) {
            self.received.clear();
            self.timeout = Timeout::Idle;
        }
        // The other bits are written only together with the enable bit.
        self.fcr = if on { value & fcr::KEPT } else { 0 };
    }

    /// A character's errors show when it has come to the front.
    fn front_changed(&mut self) {
        if let Some(entry) = self.received.front() {
            self.line_errors |= (entry >> 8) as u8;
        }
    }

    fn restart_timeout(&mut self, now: GuestNanos) {
        self.timeout = if self.fifo_on() && !self.received.is_empty() {
            Timeout::At(now.saturating_add(4 * self.character_nanos()))
        } else {
            Timeout::Idle
        };
    }

    /// How long a character takes, in nanoseconds: start bit, data, parity and stop bits.
    fn character_nanos(&self) -> u64 {
        let bits = 1 + 5 + u64::from(self.lcr & 3) + u64::from(self.lcr >> 3 & 1) + 1 + u64::from(self.lcr >> 2 & 1);
        let divisor = if self.divisor == 0 { 0x1_0000 } else { u64::from(self.divisor) };
        bits * divisor * 16 * 1_000_000_000 / CLOCK_HZ
    }
}

impl Inner {
    fn read(&mut self, port: u64, clock: &Clock) -> u8 {
        let r = &mut self.registers;
        let latch = r.lcr & lcr::DIVISOR_LATCH != 0;
        match port {
            0 if latch => r.divisor as u8,
            1 if latch => (r.divisor >> 8) as u8,
            0 => {
                let entry = r.received.pop().unwrap_or(0);
                r.front_changed();
                if r.fifo_on() {
                    r.restart_timeout(clock.now());
                }
                entry as u8
            }
            1 => r.ier,
            2 => {
                let source = r.interrupt();
                if source == iir::TRANSMITTER_EMPTY {
                    r.transmitter_empty = false;
                }
                source | if r.fifo_on() { iir::FIFO_ON } else { 0 }
            }
            3 => r.lcr,
            4 => r.mcr,
            5 => {
                let status = r.line_status();
                r.line_errors = 0;
                if let Some(entry) = r.received.front_mut() {
                    *entry &= 0xff;
                }
                status
            }
            6 => {
                let status = r.modem_inputs() | r.modem_changes;
                r.modem_changes = 0;
                status
            }
            7 => r.scratch,
            _ => 0xff,
        }
    }

    fn write(&mut self, port: u64, value: u8, clock: &Clock) {
        let r = &mut self.registers;
        let latch = r.lcr & lcr::DIVISOR_LATCH != 0;
        match port {
            0 if latch => r.divisor = r.divisor & 0xff00 | u16::from(value),
            1 if latch => r.divisor = r.divisor & 0x00ff | u16::from(value) << 8,
            0 => {
                r.transmitter_empty = true;
                if r.loopback() {
                    r.take(u16::from(value), clock.now());
                } else {
                    self.out.write(&[value]);
                }
            }
            1 => {
                // Enabling it while the transmitter is empty, which it always is, raises it.
                if value & !r.ier & ier::TRANSMITTER_EMPTY != 0 {
                    r.transmitter_empty = true;
                }
                r.ier = value & ier::ALL;
            }
            2 => r.set_fcr(value),
            3 => {
                let break_begins = value & !r.lcr & lcr::BREAK != 0;
                r.lcr = value;
                if break_begins && r.loopback() {
                    r.take(u16::from(lsr::BREAK | lsr::FRAMING) << 8, clock.now());
                }
            }
            4 => r.set_mcr(value),
            7 => r.scratch = value,
            // The status registers are for reading; a write to them is for the factory's tests.
            _ => {}
        }
    }
}

impl serial::Registers for Registers {
    fn settle(&mut self, now: GuestNanos) {
        if let Timeout::At(deadline) = self.timeout
            && now >= deadline
        {
            self.timeout = Timeout::Elapsed;
        }
    }

    fn room(&self) -> usize {
        if self.loopback() { 0 } else { self.depth() - self.received.len() }
    }

    fn is_drained(&self) -> bool {
        self.received.is_empty()
    }

    /// A character arrives. One that finds no room overruns: the FIFO keeps what it has, the single register takes the new one.
    fn take(&mut self, entry: u16, now: GuestNanos) {
        if self.received.len() >= self.depth() {
            self.line_errors |= lsr::OVERRUN;
            if self.fifo_on() {
                return;
            }
            self.received.clear();
        }
        self.received.push(entry);
        self.front_changed();
        self.restart_timeout(now);
    }

    fn interrupts(&self) -> bool {
        self.interrupt() != iir::NONE && self.mcr & mcr::OUT2 != 0
    }

    fn deadline(&self) -> Option<GuestNanos> {
        match self.timeout {
            Timeout::At(deadline) if self.ier & ier::RECEIVED != 0 && self.received.len() < self.trigger() => {
                Some(deadline)
            }
            _ => None,
        }
    }
}

impl Uart16550 {
    /// A 16550A in its power-on state.
    #[must_use]
    pub fn new(config: Uart16550Config) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let timer = config.clock.timer(move || {
                if let Some(uart) = this.upgrade() {
                    uart.port.fired();
                }
            });
            Self { port: Port::new(config.irq, config.clock, config.out, timer, Registers::POWER_ON) }
        })
    }
}

impl SerialPort for Uart16550 {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.port.receive(bytes)
    }

    fn on_space(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.port.on_space(listener);
    }

    fn receive_break(&self) {
        self.port.with(|inner| {
            if !inner.registers.loopback() {
                inner.registers.take(u16::from(lsr::BREAK | lsr::FRAMING) << 8, self.port.clock.now());
            }
        });
    }
}

impl Device for Uart16550 {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        self.port.with(|inner| read_ports(offset, data, |port| inner.read(port, &self.port.clock)));
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        self.port.with(|inner| write_ports(offset, data, |port, value| inner.write(port, value, &self.port.clock)));
        Action::None
    }
}

impl Persist for Uart16550 {
    type State = Uart16550State;

    fn catch_up(&self) {
        self.port.with(|_| ());
    }

    fn save(&self) -> Uart16550State {
        let inner = self.port.settled();
        let r = &inner.registers;
        Uart16550State {
            ier: r.ier,
            fcr: r.fcr,
            lcr: r.lcr,
            mcr: r.mcr,
            line_errors: r.line_errors,
            modem_changes: r.modem_changes,
            scratch: r.scratch,
            divisor: r.divisor,
            received: r.received.iter().collect(),
            transmitter_empty: r.transmitter_empty,
            timeout: match r.timeout {
                Timeout::Idle => None,
                Timeout::At(deadline) => Some(deadline.saturating_sub(self.port.clock.now())),
                Timeout::Elapsed => Some(0),
            },
        }
    }

    fn restore(&self, state: &Uart16550State) -> Result<(), StateError> {
        self.port.restore(Registers {
            ier: state.ier,
            fcr: state.fcr,
            lcr: state.lcr,
            mcr: state.mcr,
            line_errors: state.line_errors,
            modem_changes: state.modem_changes,
            scratch: state.scratch,
            divisor: state.divisor,
            received: Fifo::of(&state.received),
            transmitter_empty: state.transmitter_empty,
            timeout: match state.timeout {
                None => Timeout::Idle,
                Some(0) => Timeout::Elapsed,
                Some(nanos) => Timeout::At(self.port.clock.now().saturating_add(nanos)),
            },
        });
        Ok(())
    }

    fn reset(&self) {
        self.port.with(|inner| inner.registers = Registers::POWER_ON);
    }
}
