//! The host's side of networks: what a network card of the guest is connected to, whatever kind of card it is.
//!
//! * [`Link`] is one network, shared by all queue pairs of the card before it; [`LinkQueue`] is one pair's way to it. Frames come and go with
//!   a virtio header before them, straight from and to guest memory.
//! * [`Tap`] is a tap interface of the host: checksum and segmentation offloads, several queue pairs. Follows Linux's `tuntap` interface.
//! * [`Passt`] is user-mode networking without privileges, by the program `passt`: each frame on a stream socket after its length, 32 bits,
//!   big-endian, as QEMU's stream sockets have it. It has one queue pair and no offloads.
//! * [`testing`] has a network between a card and a test.
//!
//! What it does not do: make interfaces permanent, give them addresses or bridges (the host's administrator does), or filter frames.

mod error;
mod guest;
mod link;
mod passt;
mod tap;
pub mod testing;

pub use error::NetError;
pub use guest::own_memory;
pub use link::{GuestSlice, HEADER, Link, LinkInfo, LinkQueue, MAX_FRAME, Offloads};
pub use passt::{Passt, PasstConfig};
pub use tap::Tap;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::passt::test::fuzz_streams as passt_streams;
}
