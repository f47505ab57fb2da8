//! The balloon's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError};

/// A balloon's configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct BalloonState {
    /// `num_pages`: how many pages the host would like to have. Any value.
    #[n(0)]
    pub target: u32,
    /// `actual`: how many the driver says that it has given. It may say anything. Any value.
    #[n(1)]
    pub actual: u32,
}

impl State for BalloonState {
    const ID: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}
