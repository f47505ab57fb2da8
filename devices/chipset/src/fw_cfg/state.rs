//! fw_cfg's saved state.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::OLD_WRITE;

/// No late item has more bytes, nor all of them together; nor what the guest writes.
pub(super) const LATE_MAX: usize = 4 << 20;

/// What the guest has selected and written, and what was made for it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FwCfgState {
    /// The item that is selected.
    #[n(0)]
    pub selected: u16,
    /// Where the next byte is read. Any value.
    #[n(1)]
    pub offset: u64,
    /// The upper half of the next DMA request's address. Any value.
    #[n(2)]
    pub dma_high: u32,
    /// What the guest has written, by the order of those items.
    #[n(3)]
    pub written: Vec<ByteVec>,
    /// What was made late, by the order of those items; none before the guest has selected one.
    #[n(4)]
    pub late: Option<Vec<ByteVec>>,
}

impl State for FwCfgState {
    const ID: &'static str = "fw-cfg";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let selected = self.selected;
        ensure(selected & OLD_WRITE == 0, Self::ID, "selected", selected, "bit 14 of a selector is not kept")?;
        let written: usize = self.written.iter().map(|bytes| bytes.len()).sum();
        ensure(written <= LATE_MAX, Self::ID, "written", written, "all that a guest writes has 4 MiB at most")?;
        let late: usize = self.late.iter().flatten().map(|bytes| bytes.len()).sum();
        ensure(late <= LATE_MAX, Self::ID, "late", late, "all tables together have 4 MiB at most")
    }
}
