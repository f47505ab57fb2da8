//! The legacy devices of both machines.

#![forbid(unsafe_code)]

mod access;
mod alarm;
mod eoi;
mod fifo;
pub mod i8254;
pub mod i8259;
pub mod ioapic;
mod oscillator;
pub mod pl011;
pub mod pl031;
pub mod pm;
mod ports;
mod request;
pub mod reset_control;
mod serial;
pub mod uart16550;

#[cfg(test)]
mod testing;

pub use i8254::{I8254, I8254Config};
pub use i8259::{I8259, I8259Config};
pub use ioapic::{IoApic, IoApicConfig};
pub use pl011::{Pl011, Pl011Config};
pub use pl031::{Pl031, Pl031Config};
pub use pm::{Pm, PmConfig};
pub use ports::PortRange;
pub use request::{MachineRequest, PanicEvent, Requests};
pub use reset_control::ResetControl;
pub use serial::{SerialOut, SerialPort};
pub use uart16550::{Uart16550, Uart16550Config};
