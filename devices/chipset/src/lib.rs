//! The legacy devices of both machines.

#![forbid(unsafe_code)]

mod access;
mod alarm;
mod eoi;
mod fifo;
pub mod i8254;
pub mod ioapic;
mod request;
mod serial;
pub mod uart16550;

#[cfg(test)]
mod testing;

pub use ioapic::{IoApic, IoApicConfig};
pub use i8254::{I8254, I8254Config};
pub use request::{MachineRequest, PanicEvent, Requests};
pub use serial::{SerialOut, SerialPort};
pub use uart16550::{Uart16550, Uart16550Config};
