//! PCI Express: configuration space, endpoints, root ports, root complex.

#![forbid(unsafe_code)]

mod address;
mod bar;
mod capability;
mod config_space;
mod endpoint;
mod function;
mod interrupts;
mod node;
mod socket;
mod state;

pub use address::{Address, DEVICES, PciPlace};
pub use bar::{Bar, BarKind, Bars, Decoded, Space};
pub use capability::msix::Msix;
pub use capability::vendor::{BarWindow, Capability};
pub use endpoint::{Endpoint, EndpointConfig, Identity};
pub use function::{Attachment, Doorbells, Function, FunctionDoorbell};
pub use interrupts::{Control, Interrupts, MAX_VECTORS, Messages};
pub use node::{ConfigFunction, Upstream};
pub use socket::{NoMessages, Pin, Socket};
pub use state::{ConfigState, EndpointState, InterruptsState, RegisterState};

/// Why a place or a device can't be had.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// What is written is no place.
    #[error("`{0}` is no place for a PCI device: write root:DEVICE (0 to 31) or port:NUMBER")]
    UnknownPlace(String),
}
