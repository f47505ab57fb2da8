//! The CMOS clock's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{MEMORY_SIZE, flag, register_b};

/// The chip's registers, its memory, and how its time differs from the machine's wall clock.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RtcState {
    /// Both banks of 128 bytes. Of the registers, those of the alarm; those of the time as they were when it was saved, which count only while
    /// the clock stands.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub memory: Vec<u8>,
    /// The index of the standard bank.
    #[n(1)]
    pub index: u8,
    /// The index of the extended bank.
    #[n(2)]
    pub extended_index: u8,
    /// Register A without its UIP bit.
    #[n(3)]
    pub register_a: u8,
    /// Register B.
    #[n(4)]
    pub register_b: u8,
    /// The interrupt flags of register C.
    #[n(5)]
    pub flags: u8,
    /// Seconds by which the clock is ahead of the wall clock, while it runs.
    #[n(6)]
    pub ahead_seconds: i64,
    /// Nanoseconds, less than a second, by which the divider chain is ahead of the wall clock.
    #[n(7)]
    pub ahead_nanos: u32,
}

impl State for RtcState {
    const ID: &'static str = "mc146818";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.memory.len() == MEMORY_SIZE, id, "memory", self.memory.len(), "both banks have 256 bytes")?;
        ensure(self.index < 0x80, id, "index", self.index, "a bank has 128 bytes")?;
        ensure(self.extended_index < 0x80, id, "extended_index", self.extended_index, "a bank has 128 bytes")?;
        ensure(self.register_a < 0x80, id, "register_a", self.register_a, "UIP is derived")?;
        let updates = self.register_b & register_b::UPDATE_INTERRUPT;
        let holds = self.register_b & register_b::SET == 0 || updates == 0;
        ensure(holds, id, "register_b", self.register_b, "SET clears UIE")?;
        ensure(self.flags & !flag::ALL == 0, id, "flags", self.flags, "bits 6:4 are flags")?;
        let years = 1 << 40;
        let near = (-years..years).contains(&self.ahead_seconds);
        ensure(near, id, "ahead_seconds", self.ahead_seconds, "the century has two digits")?;
        ensure(self.ahead_nanos < 1_000_000_000, id, "ahead_nanos", self.ahead_nanos, "it is less than a second")
    }
}
