//! The PL011's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{CLOCK_HZ, FIFO_DEPTH, cr, error, int, lcr};

/// The registers of a PL011 and its receive FIFO.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pl011State {
    /// Receive status register: the errors of the character last read, and overrun.
    #[n(0)]
    pub errors: u8,
    /// Infrared low-power counter. Any value.
    #[n(1)]
    pub ilpr: u8,
    /// Integer baud rate divisor. Any value.
    #[n(2)]
    pub ibrd: u16,
    /// Fractional baud rate divisor.
    #[n(3)]
    pub fbrd: u8,
    /// Line control register. Any value.
    #[n(4)]
    pub lcr: u8,
    /// Control register.
    #[n(5)]
    pub cr: u16,
    /// Interrupt FIFO level select.
    #[n(6)]
    pub ifls: u8,
    /// Interrupt mask.
    #[n(7)]
    pub imsc: u16,
    /// Raw interrupt status.
    #[n(8)]
    pub ris: u16,
    /// DMA control.
    #[n(9)]
    pub dmacr: u8,
    /// The receive FIFO, oldest first: the character, and in bits 10:8 its errors.
    #[n(10)]
    pub received: Vec<u16>,
    /// Nanoseconds until the receive timeout.
    #[n(11)]
    pub timeout: Option<u64>,
}

impl State for Pl011State {
    const ID: &'static str = "pl011";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.errors <= 0x0f, id, "errors", self.errors, "there are four")?;
        ensure(self.fbrd <= 0x3f, id, "fbrd", self.fbrd, "it has 6 bits")?;
        ensure(self.cr & !cr::ALL == 0, id, "cr", self.cr, "bits 6:3 are 0")?;
        ensure(self.ifls <= 0x3f, id, "ifls", self.ifls, "it has 6 bits")?;
        ensure(self.imsc & !int::ALL == 0, id, "imsc", self.imsc, "there are eleven interrupts")?;
        ensure(self.ris & !int::ALL == 0, id, "ris", self.ris, "there are eleven interrupts")?;
        ensure(self.dmacr <= 7, id, "dmacr", self.dmacr, "it has 3 bits")?;
        let depth = if self.lcr & lcr::FIFO_ENABLE != 0 { FIFO_DEPTH } else { 1 };
        let held = self.received.len();
        ensure(held <= depth, id, "received", held, "the FIFO holds 32 characters, and 1 while it is off")?;
        let bad = self.received.iter().find(|entry| (*entry >> 8) as u8 & !error::CHARACTER != 0);
        ensure(bad.is_none(), id, "received", bad, "a character has framing, parity and break errors only")?;
        let idle = self.timeout.is_none() || held > 0;
        ensure(idle, id, "timeout", self.timeout, "there is one only while something waits to be read")?;
        let longest = 32 * 16 * (1 << 22) * 1_000_000_000 / 64 / CLOCK_HZ;
        ensure(self.timeout.is_none_or(|t| t <= longest), id, "timeout", self.timeout, "it is 32 bits at most")
    }
}
