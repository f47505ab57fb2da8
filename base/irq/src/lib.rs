//! Interrupts as opaque handles: what a device and an interrupt controller know of each other.
//!
//! A device holds an [`IrqLine`] (assert, deassert) or an [`Msi`] (signal), and nothing else. Whether an IOAPIC, a local APIC, a GICv2
//! frame or a GICv3 ITS is behind it is the machine's business. A controller implements [`LineTarget`], [`MsiTarget`] or both, and hands
//! out lines by a [`LineTable`].
//!
//! * A level line may be shared: it is high while any of its handles asserts it. Dropping a handle deasserts it.
//! * Restoring a level ([`IrqLine::restore`]) makes no edge: the controller restores what it had latched itself. What stands between lines hears
//!   of it ([`LineTarget::restore_level`]).
//! * The end of an interrupt ([`IrqLine::on_eoi`]) and eventfds ([`IrqLine::eventfd`], [`Msi::eventfd`]) are optional powers of what is behind.
//! * An [`Msi`] has mask and pending bits; its route in the backend exists only while it is unmasked and somebody asked for its eventfd.
//!
//! Follows: PCI Local Bus 3.0 section 6.8 (mask and pending bits of MSI and MSI-X) as far as a vector goes; tables and capabilities are the PCI crate's.

#![forbid(unsafe_code)]

mod line;
mod msi;
pub mod testing;

pub use line::{EoiListener, EoiSubscription, IrqLine, LineDescription, LineTable, LineTarget, Polarity, Trigger};
pub use msi::{
    ApicBus, Msi, MsiMessage, MsiRoutes, MsiTarget, Requester, RequesterId, Route, RouteChange, VectorState,
};

/// Why a line or an MSI can't be had or delivered.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// The controller has no such line.
    #[error("the interrupt controller has no line {line}: its lines are {first} to {last}")]
    NoSuchLine {
        /// The line asked for.
        line: u32,
        /// The controller's first.
        first: u32,
        /// The controller's last.
        last: u32,
    },
    /// All lines of the range are taken.
    #[error("all {count} interrupt lines from {first} on are taken: configure fewer devices")]
    NoLineLeft {
        /// The range's first line.
        first: u32,
        /// How many the range has.
        count: u32,
    },
    /// Nothing takes MSIs at that address.
    #[error("no interrupt controller takes a message-signalled interrupt at {address:#x} (data {data:#x})")]
    NoMsiTarget {
        /// The message's address.
        address: u64,
        /// The message's data.
        data: u32,
    },
    /// The backend has no route left, or refused.
    #[error("{what}: {source}")]
    Backend {
        /// What was being done.
        what: &'static str,
        /// The backend's own error.
        source: std::io::Error,
    },
}
