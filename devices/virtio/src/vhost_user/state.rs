//! A vhost-user device's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

/// A device whose backend is another program. What that has of it is its own and is not saved.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VhostUserState {
    /// The device type's number, which must be the device's own. Any value.
    #[n(0)]
    pub device: u16,
    /// What the driver has set as a block device's `writeback`, where it has.
    #[n(1)]
    pub writeback: Option<u8>,
}

impl State for VhostUserState {
    const ID: &'static str = "vhost-user";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let writeback = self.writeback.unwrap_or(0);
        ensure(writeback <= 1, Self::ID, "writeback", writeback, "it is 0 or 1")
    }
}
