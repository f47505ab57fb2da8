//! The 8254's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::REFRESH_NANOS;

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CounterState {
    /// Mode 0 to 5.
    #[n(0)]
    pub mode: u8,
    /// It counts in BCD.
    #[n(1)]
    pub bcd: bool,
    /// 1: low byte, 2: high byte, 3: low then high.
    #[n(2)]
    pub access: u8,
    /// The count in the counter, as it was written. Any value.
    #[n(3)]
    pub count: u16,
    /// A count that waits for the end of the period, or for the trigger. Any value.
    #[n(4)]
    pub next: Option<u16>,
    /// Nanoseconds since it was loaded, where it counts.
    #[n(5)]
    pub running: Option<u64>,
    /// Ticks that it has come, where its gate holds it.
    #[n(6)]
    pub held: Option<u64>,
    /// The low byte of a count whose high byte has not come. Any value.
    #[n(7)]
    pub low: Option<u8>,
    /// The next read gives the high byte.
    #[n(8)]
    pub reads_high: bool,
    /// A latched count. Any value.
    #[n(9)]
    pub latched_count: Option<u16>,
    /// A latched status. Any value.
    #[n(10)]
    pub latched_status: Option<u8>,
}

/// All three counters and the speaker port.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct I8254State {
    /// The counters.
    #[n(0)]
    pub counters: Vec<CounterState>,
    /// Bits 3:0 of port 61h.
    #[n(1)]
    pub speaker: u8,
    /// Nanoseconds into the refresh toggle's period.
    #[n(2)]
    pub refresh: u64,
}

impl State for I8254State {
    const ID: &'static str = "i8254";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.counters.len() == 3, id, "counters", self.counters.len(), "there are three")?;
        for counter in &self.counters {
            ensure(counter.mode <= 5, id, "counters.mode", counter.mode, "modes end at 5")?;
            ensure((1..=3).contains(&counter.access), id, "counters.access", counter.access, "it is 1, 2 or 3")?;
            let held = counter.held;
            ensure(held.is_none_or(|t| t <= 1 << 48), id, "counters.held", held, "nothing counts for years")?;
            let running = counter.running;
            ensure(
                running.is_none_or(|t| t <= 1 << 62),
                id,
                "counters.running",
                running,
                "nothing counts for centuries",
            )?;
            let one = counter.running.is_none() || held.is_none();
            ensure(one, id, "counters.held", held, "a counter counts or is held")?;
        }
        ensure(self.speaker <= 0x0f, id, "speaker", self.speaker, "bits 7:4 are not kept")?;
        ensure(self.refresh < 2 * REFRESH_NANOS, id, "refresh", self.refresh, "it lies within a period")
    }
}
