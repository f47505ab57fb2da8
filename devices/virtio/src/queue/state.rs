//! A queue's saved state.

use minicbor::{Decode, Encode};

/// All that a stopped queue has beyond its configuration and guest memory. Each chain that was taken has been given back used, so the
/// available and the used ring stand at the same index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct QueueState {
    /// How many chains have gone through the queue, modulo 2^16: the next index of both rings. Any value.
    #[n(0)]
    pub next: u16,
    /// The driver broke the ring's rules, and the queue stands still until it is reset.
    #[n(1)]
    pub broken: bool,
}
