//! The CMOS clock's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{CMOS_SIZE, a, c};

/// The time that the guest holds while it sets it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HeldTime {
    /// The year.
    #[n(0)]
    pub year: i32,
    /// The month, from 1.
    #[n(1)]
    pub month: u8,
    /// The day, from 1.
    #[n(2)]
    pub day: u8,
    /// The hour.
    #[n(3)]
    pub hour: u8,
    /// The minute.
    #[n(4)]
    pub minute: u8,
    /// The second.
    #[n(5)]
    pub second: u8,
}

/// The registers and memory of a CMOS clock.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct RtcState {
    /// Index registers of both banks.
    #[n(0)]
    pub index: [u8; 2],
    /// Both banks: alarm registers and memory. The places of time and status hold nothing.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub cmos: Vec<u8>,
    /// Register A.
    #[n(2)]
    pub a: u8,
    /// Register B.
    #[n(3)]
    pub b: u8,
    /// The flags of register C.
    #[n(4)]
    pub flags: u8,
    /// How far the guest's time is ahead of the wall clock, whole seconds.
    #[n(5)]
    pub offset_seconds: i64,
    /// And nanoseconds.
    #[n(6)]
    pub offset_nanos: u32,
    /// The time, while the guest sets it or holds the divider.
    #[n(7)]
    pub held: Option<HeldTime>,
}

/// A thousand centuries: what four digits and all carries can't reach.
const OFFSET_MAX: i64 = 100_000 * 366 * 86_400;

impl State for RtcState {
    const ID: &'static str = "mc146818";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.cmos.len() == CMOS_SIZE, id, "cmos", self.cmos.len(), "both banks have 256 bytes")?;
        ensure(self.a & a::UPDATE_IN_PROGRESS == 0, id, "a", self.a, "bit 7 is found, not kept")?;
        let flags = c::PERIODIC | c::ALARM | c::UPDATE;
        ensure(self.flags & !flags == 0, id, "flags", self.flags, "there are three")?;
        let offset = self.offset_seconds;
        ensure(offset.abs() <= OFFSET_MAX, id, "offset_seconds", offset, "years have four digits")?;
        ensure(self.offset_nanos < 1_000_000_000, id, "offset_nanos", self.offset_nanos, "it is less than a second")?;
        let year = self.held.as_ref().map(|held| held.year);
        ensure(year.is_none_or(|y| y.abs() <= 100_000), id, "held.year", year, "years have four digits")?;
        let hold = self.b & super::b::SET != 0 || self.a & a::DIVIDER_RESET == a::DIVIDER_RESET;
        ensure(hold == self.held.is_some(), id, "held", hold, "the time stands exactly while it is held")
    }
}
