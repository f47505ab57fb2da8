//! The block device's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError};

/// What a driver has set in a block device's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BlkState {
    /// `writeback`: what is written may wait for a flush.
    #[n(0)]
    pub writeback: bool,
}

impl State for BlkState {
    const ID: &'static str = "virtio-blk";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}
