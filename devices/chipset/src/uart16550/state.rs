//! The 16550A's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{FIFO_DEPTH, ier, lsr};

/// The registers of a 16550A, its receive FIFO and the character timeout.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Uart16550State {
    /// Interrupt enable register.
    #[n(0)]
    pub ier: u8,
    /// FIFO control register: enable, DMA mode and trigger bits.
    #[n(1)]
    pub fcr: u8,
    /// Line control register. Any value.
    #[n(2)]
    pub lcr: u8,
    /// Modem control register.
    #[n(3)]
    pub mcr: u8,
    /// The error bits of the line status register that wait to be read.
    #[n(4)]
    pub line_errors: u8,
    /// The change bits of the modem status register.
    #[n(5)]
    pub modem_changes: u8,
    /// Scratch register. Any value.
    #[n(6)]
    pub scratch: u8,
    /// Divisor latch. Any value.
    #[n(7)]
    pub divisor: u16,
    /// The receive FIFO, oldest first: the character, and in bits 15:8 its error bits as in the line status register.
    #[n(8)]
    pub received: Vec<u16>,
    /// Whether a transmitter-empty interrupt waits to be taken.
    #[n(9)]
    pub transmitter_empty: bool,
    /// Nanoseconds until the character timeout; 0 where it has come, absent where nothing is waiting.
    #[n(10)]
    pub timeout: Option<u64>,
}

impl State for Uart16550State {
    const ID: &'static str = "uart16550";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.ier & !ier::ALL == 0, id, "ier", self.ier, "bits 7:4 are 0")?;
        let fcr_holds = self.fcr & 0x36 == 0 && (self.fcr & 1 != 0 || self.fcr == 0);
        ensure(fcr_holds, id, "fcr", self.fcr, "only bits 0, 3, 6 and 7 are kept, and none while the FIFO is off")?;
        ensure(self.mcr & 0xe0 == 0, id, "mcr", self.mcr, "bits 7:5 are 0")?;
        ensure(self.line_errors & !lsr::ERRORS == 0, id, "line_errors", self.line_errors, "only bits 4:1 are errors")?;
        ensure(self.modem_changes & 0xf0 == 0, id, "modem_changes", self.modem_changes, "only bits 3:0 are changes")?;
        let depth = if self.fcr & 1 != 0 { FIFO_DEPTH } else { 1 };
        let held = self.received.len();
        ensure(held <= depth, id, "received", held, "the FIFO holds 16 characters, and 1 while it is off")?;
        let bad = self.received.iter().find(|entry| (*entry >> 8) as u8 & !lsr::CHARACTER_ERRORS != 0);
        ensure(bad.is_none(), id, "received", bad, "a character has parity, framing and break errors only")?;
        let idle = self.timeout.is_none() || (self.fcr & 1 != 0 && !self.received.is_empty());
        ensure(idle, id, "timeout", self.timeout, "there is one only while the FIFO is on and holds something")?;
        let longest = 4 * 12 * 0x1_0000 * 16 * 1_000_000_000 / super::CLOCK_HZ;
        ensure(self.timeout.is_none_or(|t| t <= longest), id, "timeout", self.timeout, "it is four characters at most")
    }
}
