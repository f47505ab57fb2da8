//! PCI Express: configuration space, endpoints, root ports, root complex.
//!
//! Follows PCI Local Bus 3.0 (configuration space, INTx, MSI, MSI-X, mechanism 1), PCI-to-PCI Bridge Architecture 1.2, PCI Bus Power Management
//! 1.2 and PCI Express Base 5.0 (chapter 7 for registers, section 6.7 for hot-plug).
//!
//! * A device is a [`Function`]: what answers behind BARs. It is put into an [`Endpoint`], which has its configuration space, its [`Interrupts`]
//!   and its BARs, made by a [`Socket`] that the root complex gives for a [`PciPlace`].
//! * The [`RootComplex`] has bus 0: functions of the chipset ([`Mch`], [`GenericHostBridge`], [`LpcBridge`]), endpoints of its own, and
//!   [`RootPort`]s, each with a hot-plug slot. It answers ECAM and configuration mechanism 1 as a [`skep_bus::Device`].
//! * Interrupt pins are wired to lines. Those of a PC are PIRQ A to H of the LPC bridge, whose [`PirqRouter`] passes them on.
//! * What a guest moves is not moved inside: an access returns [`skep_bus::Action::Relocate`], and whoever dispatched it calls
//!   [`Decoder::update`], which maps what is decoded then, and takes doorbells along.
//! * An endpoint may have an [`OptionRom`], whose ids are made those of the function. Firmware puts it into its place; [`RootComplex::place`] does not.
//! * [`RootComplex::place`] does what firmware does: numbers buses, places windows and BARs.
//!
//! # Locks
//!
//! No lock is held across a call into a [`Function`], but the decoder's across [`Function::doorbells`]. Under its own lock a function of configuration
//! space calls [`Interrupts`], and those call MSI targets and lines, which never call back; so does the LPC bridge with its router.
//!
//! # Saved state
//!
//! The root complex is one component; its record holds one for each function. What is behind the BARs is a component of its own, and is restored
//! after it. Which functions there are follows from the machine's configuration.
//!
//! # What it does not do
//!
//! Functions other than 0, switches, further root complexes and segments; extended capabilities (AER, ACS, ARI, ATS, SR-IOV); PME and active
//! state power management; VGA and subtractive decode; BARs backed by memory; surprise removal.

#![forbid(unsafe_code)]

mod address;
mod bar;
mod capability;
mod chipset;
mod config_space;
mod decoder;
mod endpoint;
mod function;
mod interrupts;
mod node;
mod pirq;
mod placer;
mod rom;
mod root_complex;
mod root_port;
mod socket;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
mod testing;

pub use address::{Address, DEVICES, PciPlace};
pub use bar::{Bar, BarKind, Bars, Decoded, Space};
pub use capability::msix::Msix;
pub use capability::vendor::{BarWindow, Capability};
pub use chipset::{GenericHostBridge, LpcBridge, Mch, ShadowSegment};
pub use decoder::{Decoder, IoSpace, Mapping, Spaces};
pub use endpoint::{Endpoint, EndpointConfig, Identity};
pub use function::{Attachment, Doorbells, Function, FunctionDoorbell};
pub use interrupts::{Control, Interrupts, MAX_VECTORS, Messages};
pub use node::{ConfigFunction, Upstream};
pub use pirq::PirqRouter;
pub use placer::{Window, Windows};
pub use rom::{OptionRom, RomError};
pub use root_complex::{ChipsetFunction, ECAM_REGION, ECAM_SIZE, PORTS_REGION, RootComplex, RootComplexConfig};
pub use root_port::{RootPort, SlotState, Unplug};
pub use socket::{NoMessages, Pin, Socket};
pub use state::{
    ChipsetState, ConfigState, EndpointState, FunctionState, InterruptsState, RegisterState, RootComplexState,
    RootPortState,
};

/// Why a place or a device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// What is written is no place.
    #[error("`{0}` is no place for a PCI device: write root:DEVICE (0 to 31) or port:NUMBER")]
    UnknownPlace(String),
    /// The machine has no such place.
    #[error(
        "this machine has no place {0} for a PCI device: choose one of its root ports, or a device number of bus 0"
    )]
    NoPlace(PciPlace),
    /// Something is there.
    #[error("place {0} is taken by another PCI device: choose a free one")]
    PlaceTaken(PciPlace),
    /// Nothing is there.
    #[error("there is no PCI device at {0}")]
    PlaceEmpty(PciPlace),
    /// A device on bus 0 neither comes nor goes while the guest runs.
    #[error("place {0} takes and gives no device while the guest runs: use a root port")]
    NotPluggable(PciPlace),
    /// The windows are too small.
    #[error("{size:#x} bytes for {place} do not fit into a PCI window of {window:#x} bytes: configure fewer devices")]
    NoRoom {
        /// Whose.
        place: PciPlace,
        /// How many bytes it wants.
        size: u64,
        /// How many the whole window has.
        window: u64,
    },
}

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::rom::test::fuzz_any_file_is_refused_or_read as option_roms;
    pub use crate::root_complex::test::fuzz_a_hierarchy as pci_hierarchy;
}
