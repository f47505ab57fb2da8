//! The PL061's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::PRESS_NANOS;

/// The registers of a PL061 and the keys that are pressed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pl061State {
    /// GPIODATA: what the outputs were set to. Any value.
    #[n(0)]
    pub data: u8,
    /// GPIODIR: a set bit is an output. Any value.
    #[n(1)]
    pub direction: u8,
    /// GPIOIS: a set bit senses a level. Any value.
    #[n(2)]
    pub level_sense: u8,
    /// GPIOIBE: a set bit senses both edges. Any value.
    #[n(3)]
    pub both_edges: u8,
    /// GPIOIEV: a set bit senses high levels and rising edges. Any value.
    #[n(4)]
    pub rising: u8,
    /// GPIOIE: a set bit interrupts. Any value.
    #[n(5)]
    pub enable: u8,
    /// Edges that were sensed and not cleared.
    #[n(6)]
    pub edges: u8,
    /// GPIOAFSEL. Any value.
    #[n(7)]
    pub alternate: u8,
    /// Nanoseconds until each pressed key is let go, by its pin; 0 for those that are not pressed.
    #[n(8)]
    pub presses: [u64; 8],
}

impl State for Pl061State {
    const ID: &'static str = "pl061";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(
            self.edges & self.level_sense == 0,
            id,
            "edges",
            self.edges,
            "a pin that senses a level latches no edge",
        )?;
        let longest = self.presses.iter().max().copied().unwrap_or(0);
        ensure(longest <= PRESS_NANOS, id, "presses", longest, "a key is pressed for 100 ms")
    }
}
