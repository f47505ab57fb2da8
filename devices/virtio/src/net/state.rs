//! The network device's saved state.

use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::card::OFFLOADS;

/// What a driver has set in a network device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NetState {
    /// The card's address. Any value.
    #[n(0)]
    pub mac: [u8; 6],
    /// How many queue pairs receive.
    #[n(1)]
    pub pairs: u16,
    /// The features of received frames as `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` has set them; else they are those that were negotiated.
    #[n(2)]
    pub offloads: Option<u64>,
    /// The driver is asked to announce itself, and has not yet done so.
    #[n(3)]
    pub announce: bool,
}

impl State for NetState {
    const ID: &'static str = "virtio-net";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let unknown = self.offloads.unwrap_or(0) & !OFFLOADS;
        ensure(unknown == 0, Self::ID, "offloads", unknown, "they are features of received frames")?;
        let pairs = (1..=0x8000).contains(&self.pairs);
        ensure(pairs, Self::ID, "pairs", self.pairs, "the first pair always receives, and there are 32768 at most")
    }
}
