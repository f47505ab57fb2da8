//! The PL031's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError};

/// The registers of a PL031.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pl031State {
    /// Seconds that the count is ahead of the wall clock's (since the Unix epoch), modulo 2^32. Any value.
    #[n(0)]
    pub offset: u32,
    /// Match register. Any value.
    #[n(1)]
    pub matched: u32,
    /// Load register. Any value.
    #[n(2)]
    pub loaded: u32,
    /// Interrupt mask: the interrupt is let through.
    #[n(3)]
    pub masked_in: bool,
    /// Raw interrupt status.
    #[n(4)]
    pub raised: bool,
}

impl State for Pl031State {
    const ID: &'static str = "pl031";
    const VERSION: u16 = 1;

    /// Every value is one that the registers can hold.
    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}
