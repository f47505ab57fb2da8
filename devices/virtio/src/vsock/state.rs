//! The socket device's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{FIRST_CID, LAST_CID};

/// A socket device. Its connections are the host's, and end where the guest goes on elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VsockState {
    /// The guest's context id.
    #[n(0)]
    pub cid: u64,
    /// The driver has not yet been told that its connections have ended; after a restore it is told in any case.
    #[n(1)]
    pub ended: bool,
}

impl State for VsockState {
    const ID: &'static str = "virtio-vsock";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let valid = (FIRST_CID..=LAST_CID).contains(&self.cid);
        ensure(valid, Self::ID, "cid", self.cid, "no guest can have that context id")
    }
}
