//! The PL011 serial port.
//!
//! Follows Arm's PrimeCell UART (PL011) Technical Reference Manual, DDI 0183G (r1p5): FIFOs of 32, trigger levels, receive timeout, all
//! registers and interrupts, loopback, break, identification registers. DMA has nobody to talk to, infrared is not there.
//!
//! As in the 16550 here, the line has no rate: what the guest writes is with the host at once, so the transmit FIFO is always empty, and the
//! rate counts only for the receive timeout. Output needs no enabling, so that an early console works where no firmware has set the port
//! up; input waits with the host until the guest has enabled port and receiver. The modem at the far end is always ready.

use std::sync::{Arc, Weak};

use skep_bus::{Action, Device};
use skep_clock::{Clock, GuestNanos};
use skep_irq::IrqLine;
use skep_state::{Persist, StateError};

use crate::access::{read_words, write_words};
use crate::fifo::Fifo;
use crate::serial::{self, Port, Registers as _, SerialOut, SerialPort};

mod state;

pub use state::Pl011State;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "pl011_test.rs"]
pub(crate) mod test;

/// The size of its registers in bytes.
pub const SIZE: u64 = 0x1000;
/// The frequency of its clock, which tables tell the guest.
pub const CLOCK_HZ: u64 = 24_000_000;
/// Its peripheral id as one number, as device trees give it.
pub const PERIPHERAL_ID: u32 = 0x00341011;
/// Characters that the receive FIFO holds.
const FIFO_DEPTH: usize = 32;
/// PeriphID0 to 3 and PCellID0 to 3: part 011, designer Arm, revision 3 (r1p5).
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Register offsets.
mod register {
    pub(super) const DR: u64 = 0x000;
    pub(super) const RSR_ECR: u64 = 0x004;
    pub(super) const FR: u64 = 0x018;
    pub(super) const ILPR: u64 = 0x020;
    pub(super) const IBRD: u64 = 0x024;
    pub(super) const FBRD: u64 = 0x028;
    pub(super) const LCR_H: u64 = 0x02c;
    pub(super) const CR: u64 = 0x030;
    pub(super) const IFLS: u64 = 0x034;
    pub(super) const IMSC: u64 = 0x038;
    pub(super) const RIS: u64 = 0x03c;
    pub(super) const MIS: u64 = 0x040;
    pub(super) const ICR: u64 = 0x044;
    pub(super) const DMACR: u64 = 0x048;
    pub(super) const IDENTIFICATION: u64 = 0xfe0;
}

/// Errors of a character, as in bits 11:8 of the data register.
mod error {
    pub(super) const FRAMING: u8 = 1 << 0;
    pub(super) const BREAK: u8 = 1 << 2;
    pub(super) const OVERRUN: u8 = 1 << 3;
    /// Those that belong to one character.
    pub(super) const CHARACTER: u8 = 0x7;
}

/// Flag register.
mod fr {
    pub(super) const CTS: u32 = 1 << 0;
    pub(super) const DSR: u32 = 1 << 1;
    pub(super) const DCD: u32 = 1 << 2;
    pub(super) const RX_EMPTY: u32 = 1 << 4;
    pub(super) const RX_FULL: u32 = 1 << 6;
    pub(super) const TX_EMPTY: u32 = 1 << 7;
    pub(super) const RI: u32 = 1 << 8;
}

/// Line control register.
mod lcr {
    pub(super) const BREAK: u8 = 1 << 0;
    pub(super) const FIFO_ENABLE: u8 = 1 << 4;
}

/// Control register.
mod cr {
    pub(super) const ENABLE: u16 = 1 << 0;
    pub(super) const LOOPBACK: u16 = 1 << 7;
    pub(super) const RECEIVE: u16 = 1 << 9;
    pub(super) const DTR: u16 = 1 << 10;
    pub(super) const RTS: u16 = 1 << 11;
    pub(super) const OUT1: u16 = 1 << 12;
    pub(super) const OUT2: u16 = 1 << 13;
    pub(super) const ALL: u16 = 0xff87;
    pub(super) const POWER_ON: u16 = 0x0300;
}

/// Interrupts, in all four interrupt registers.
mod int {
    pub(super) const RI: u16 = 1 << 0;
    pub(super) const CTS: u16 = 1 << 1;
    pub(super) const DCD: u16 = 1 << 2;
    pub(super) const DSR: u16 = 1 << 3;
    pub(super) const RECEIVE: u16 = 1 << 4;
    pub(super) const TRANSMIT: u16 = 1 << 5;
    pub(super) const RECEIVE_TIMEOUT: u16 = 1 << 6;
    pub(super) const FRAMING: u16 = 1 << 7;
    pub(super) const BREAK: u16 = 1 << 9;
    pub(super) const OVERRUN: u16 = 1 << 10;
    pub(super) const ALL: u16 = 0x7ff;
}

/// What a PL011 is made of.
pub struct Pl011Config {
    /// Its interrupt: all eleven together (UARTINTR).
    pub irq: IrqLine,
    /// The machine's clock.
    pub clock: Clock,
    /// Where its output goes.
    pub out: Box<dyn SerialOut>,
}

/// A PL011.
pub struct Pl011 {
    port: Port<Registers>,
}

type Inner = serial::Inner<Registers>;

#[derive(Debug, Clone)]
struct Registers {
    errors: u8,
    ilpr: u8,
    ibrd: u16,
    fbrd: u8,
    lcr: u8,
    cr: u16,
    ifls: u8,
    imsc: u16,
    ris: u16,
    dmacr: u8,
    received: Fifo<FIFO_DEPTH>,
    /// When the receive timeout comes.
    timeout: Option<GuestNanos>,
}

impl Registers {
    const POWER_ON: Self = Self {
        errors: 0,
        ilpr: 0,
        ibrd: 0,
        fbrd: 0,
        lcr: 0,
        cr: cr::POWER_ON,
        ifls: 0x12,
        imsc: 0,
        ris: 0,
        dmacr: 0,
        received: Fifo::new(),
        timeout: None,
    };

    fn fifo_on(&self) -> bool {
        self.lcr & lcr::FIFO_ENABLE != 0
    }

    fn depth(&self) -> usize {
        if self.fifo_on() { FIFO_DEPTH } else { 1 }
    }

    /// How many characters raise the receive interrupt.
    fn trigger(&self) -> usize {
        match (self.fifo_on(), self.ifls >> 3 & 7) {
            (false, _) => 1,
            (true, 0) => FIFO_DEPTH / 8,
            (true, 1) => FIFO_DEPTH / 4,
            (true, 2) => FIFO_DEPTH / 2,
            (true, 3) => FIFO_DEPTH * 3 / 4,
            (true, _) => FIFO_DEPTH * 7 / 8,
        }
    }

    fn loopback(&self) -> bool {
        self.cr & cr::LOOPBACK != 0
    }

    fn read_data(&mut self, now: GuestNanos) -> u32 {
        let overrun = u16::from(self.errors & error::OVERRUN) << 8;
        let entry = self.received.pop().unwrap_or(0);
        self.errors = self.errors & error::OVERRUN | (entry >> 8) as u8 & error::CHARACTER;
        if self.received.len() < self.trigger() {
            self.ris &= !int::RECEIVE;
        }
        if self.received.is_empty() {
            self.ris &= !int::RECEIVE_TIMEOUT;
        }
        self.restart_timeout(now);
        u32::from(entry | overrun)
    }

    fn restart_timeout(&mut self, now: GuestNanos) {
        self.timeout = (!self.received.is_empty()).then(|| now.saturating_add(self.timeout_nanos()));
    }

    /// 32 bit periods, in nanoseconds.
    fn timeout_nanos(&self) -> u64 {
        // The divisor has 6 bits behind the point; before the guest has set one, it is that of 115200 bits per second.
        let divisor = match u64::from(self.ibrd) << 6 | u64::from(self.fbrd) {
            0 => 833,
            divisor => divisor,
        };
        32 * 16 * divisor * 1_000_000_000 / 64 / CLOCK_HZ
    }

    fn flags(&self) -> u32 {
        let modem = if self.loopback() {
            let wire = |output: u16, input: u32| if self.cr & output != 0 { input } else { 0 };
            wire(cr::RTS, fr::CTS) | wire(cr::DTR, fr::DSR) | wire(cr::OUT1, fr::DCD) | wire(cr::OUT2, fr::RI)
        } else {
            fr::CTS | fr::DSR | fr::DCD
        };
        let empty = if self.received.is_empty() { fr::RX_EMPTY } else { 0 };
        let full = if self.received.len() >= self.depth() { fr::RX_FULL } else { 0 };
        modem | fr::TX_EMPTY | empty | full
    }

    /// UARTMIS: the interrupts that are raised and not masked.
    fn masked_status(&self) -> u16 {
        self.ris & self.imsc
    }
}

impl Inner {
    fn read(&mut self, offset: u64, clock: &Clock) -> u32 {
        let r = &mut self.registers;
        match offset {
            register::DR => r.read_data(clock.now()),
            register::RSR_ECR => r.errors.into(),
            register::FR => r.flags(),
            register::ILPR => r.ilpr.into(),
            register::IBRD => r.ibrd.into(),
            register::FBRD => r.fbrd.into(),
            register::LCR_H => r.lcr.into(),
            register::CR => r.cr.into(),
            register::IFLS => r.ifls.into(),
            register::IMSC => r.imsc.into(),
            register::RIS => r.ris.into(),
            register::MIS => r.masked_status().into(),
            register::DMACR => r.dmacr.into(),
            register::IDENTIFICATION.. => {
                let index = (offset - register::IDENTIFICATION) / 4;
                IDENTIFICATION.get(index as usize).copied().unwrap_or(0).into()
            }
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32, clock: &Clock) {
        let r = &mut self.registers;
        match offset {
            register::DR => {
                r.ris |= int::TRANSMIT;
                if r.loopback() {
                    r.take(u16::from(value as u8), clock.now());
                } else {
                    self.out.write(&[value as u8]);
                }
            }
            register::RSR_ECR => r.errors = 0,
            register::ILPR => r.ilpr = value as u8,
            register::IBRD => r.ibrd = value as u16,
            register::FBRD => r.fbrd = value as u8 & 0x3f,
            register::LCR_H => {
                let break_begins = value as u8 & !r.lcr & lcr::BREAK != 0;
                if (value as u8 ^ r.lcr) & lcr::FIFO_ENABLE != 0 {
                    r.received.clear();
                    r.ris &= !(int::RECEIVE | int::RECEIVE_TIMEOUT);
                    r.timeout = None;
                }
                r.lcr = value as u8;
                if break_begins && r.loopback() {
                    r.take(u16::from(error::BREAK | error::FRAMING) << 8, clock.now());
                }
            }
            register::CR => {
                let before = r.flags();
                r.cr = value as u16 & cr::ALL;
                let changed = before ^ r.flags();
                for (flag, interrupt) in
                    [(fr::RI, int::RI), (fr::CTS, int::CTS), (fr::DCD, int::DCD), (fr::DSR, int::DSR)]
                {
                    if changed & flag != 0 {
                        r.ris |= interrupt;
                    }
                }
            }
            register::IFLS => r.ifls = value as u8 & 0x3f,
            register::IMSC => r.imsc = value as u16 & int::ALL,
            register::ICR => r.ris &= !(value as u16),
            register::DMACR => r.dmacr = value as u8 & 7,
            // The others are for reading.
            _ => {}
        }
    }
}

impl serial::Registers for Registers {
    fn settle(&mut self, now: GuestNanos) {
        if self.timeout.is_some_and(|deadline| now >= deadline) {
            self.timeout = None;
            self.ris |= int::RECEIVE_TIMEOUT;
        }
    }

    fn room(&self) -> usize {
        let listens = self.cr & (cr::ENABLE | cr::RECEIVE) == cr::ENABLE | cr::RECEIVE;
        if listens && !self.loopback() { self.depth().saturating_sub(self.received.len()) } else { 0 }
    }

    fn is_drained(&self) -> bool {
        self.received.is_empty()
    }

    fn take(&mut self, entry: u16, now: GuestNanos) {
        if self.received.len() >= self.depth() {
            self.ris |= int::OVERRUN;
            self.errors |= error::OVERRUN;
            return;
        }
        self.received.push(entry);
        let errors = (entry >> 8) as u8;
        if errors & error::BREAK != 0 {
            self.ris |= int::BREAK;
        }
        if errors & error::FRAMING != 0 {
            self.ris |= int::FRAMING;
        }
        if self.received.len() >= self.trigger() {
            self.ris |= int::RECEIVE;
        }
        self.restart_timeout(now);
    }

    fn interrupts(&self) -> bool {
        self.masked_status() != 0
    }

    fn deadline(&self) -> Option<GuestNanos> {
        let waits = self.imsc & int::RECEIVE_TIMEOUT != 0 && self.masked_status() & int::RECEIVE == 0;
        self.timeout.filter(|_| waits)
    }
}

impl Pl011 {
    /// A PL011 in its power-on state.
    #[must_use]
    pub fn new(config: Pl011Config) -> Arc<Self> {
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

impl SerialPort for Pl011 {
    fn receive(&self, bytes: &[u8]) -> usize {
        self.port.receive(bytes)
    }

    fn on_space(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.port.on_space(listener);
    }

    fn receive_break(&self) {
        self.port.with(|inner| {
            if inner.registers.room() > 0 {
                inner.registers.take(u16::from(error::BREAK | error::FRAMING) << 8, self.port.clock.now());
            }
        });
    }
}

impl Device for Pl011 {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        self.port.with(|inner| read_words(offset, data, |register| inner.read(register, &self.port.clock)));
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        self.port
            .with(|inner| write_words(offset, data, |register, value| inner.write(register, value, &self.port.clock)));
        Action::None
    }
}

impl Persist for Pl011 {
    type State = Pl011State;

    fn catch_up(&self) {
        self.port.with(|_| ());
    }

    fn save(&self) -> Pl011State {
        let inner = self.port.settled();
        let r = &inner.registers;
        Pl011State {
            errors: r.errors,
            ilpr: r.ilpr,
            ibrd: r.ibrd,
            fbrd: r.fbrd,
            lcr: r.lcr,
            cr: r.cr,
            ifls: r.ifls,
            imsc: r.imsc,
            ris: r.ris,
            dmacr: r.dmacr,
            received: r.received.iter().collect(),
            timeout: r.timeout.map(|deadline| deadline.saturating_sub(self.port.clock.now())),
        }
    }

    fn restore(&self, state: &Pl011State) -> Result<(), StateError> {
        self.port.restore(Registers {
            errors: state.errors,
            ilpr: state.ilpr,
            ibrd: state.ibrd,
            fbrd: state.fbrd,
            lcr: state.lcr,
            cr: state.cr,
            ifls: state.ifls,
            imsc: state.imsc,
            ris: state.ris,
            dmacr: state.dmacr,
            received: Fifo::of(&state.received),
            timeout: state.timeout.map(|nanos| self.port.clock.now().saturating_add(nanos)),
        });
        Ok(())
    }

    fn reset(&self) {
        self.port.with(|inner| inner.registers = Registers::POWER_ON);
    }
}
