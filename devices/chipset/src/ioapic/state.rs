//! The I/O APIC's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::entry::Entry;
use super::{ID_MASK, MAX_PINS};

/// The registers of an I/O APIC and the levels of its pins.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct IoApicState {
    /// APIC id, 4 bits.
    #[n(0)]
    pub id: u8,
    /// The register selected by IOREGSEL. Any value.
    #[n(1)]
    pub select: u8,
    /// The redirection table, as 64-bit entries.
    #[n(2)]
    pub entries: Vec<u64>,
    /// Which pins are asserted, in the order of their numbers.
    #[n(3)]
    pub asserted: Vec<bool>,
}

impl State for IoApicState {
    const ID: &'static str = "ioapic";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.id & !ID_MASK == 0, id, "id", self.id, "an I/O APIC's id has 4 bits")?;
        let pins = self.entries.len();
        ensure((1..=MAX_PINS).contains(&pins), id, "entries", pins, "there are 1 to 120")?;
        let bad = self.entries.iter().find(|entry| !Entry::is_possible(**entry));
        let value = bad.copied().unwrap_or(0);
        ensure(
            bad.is_none(),
            id,
            "entries",
            value,
            "reserved bits are 0, and only a level interrupt has a remote IRR",
        )?;
        let levels = self.asserted.len();
        ensure(levels == pins, id, "asserted", levels, "each pin has a level")
    }
}
