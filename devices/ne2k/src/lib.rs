//! An NE2000 network card on PCI, for guests that have no driver for another one: Realtek's RTL8029AS.
//!
//! Follows National Semiconductor's DP8390D data sheet for the controller, and Realtek's RTL8029AS data sheet for what is around it: 32 I/O ports, a
//! PROM with the address, 32 KiB of buffer memory that only the controller reaches. The driver moves each byte through a port (remote DMA); nothing here
//! reaches the guest's memory.
//!
//! * [`Chip`] is the controller: registers, buffer memory, remote DMA, the receive ring.
//! * [`Ne2k`] is the card: the controller behind its ports and its interrupt pin, and a thread between it and a [`skep_net::Link`].
//!
//! While the driver has an interrupt to acknowledge for frames that have come, the next ones stay in the network, so that no driver misses one. A frame for which the ring has no room stays in the network until the driver makes some, or in the card, one, and in its saved state: there are no overflows and no missed frames. Frames
//! that come while the controller is stopped, or that its filter refuses, are lost, as on a cable.
//!
//! What it does not do: collisions and other errors of a cable, overflows (OVW), loopback (a frame that is sent in one of its modes goes nowhere, and the
//! FIFO reads 0), CRC bytes after a received frame (drivers skip them), the serial EEPROM, the Boot ROM register (an option ROM is behind PCI's ROM BAR).

#![forbid(unsafe_code)]

mod card;
mod chip;
mod registers;
mod state;

pub use card::{Ne2k, Ne2kConfig, Ne2kError};
pub use chip::{Chip, Room};
pub use state::Ne2kState;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::chip::test::fuzz_a_twin_restored_at_any_time_goes_on_alike as ne2k_accesses;
    pub use crate::chip::test::fuzz_frames_stay_in_the_ring as ne2k_ring;
}
