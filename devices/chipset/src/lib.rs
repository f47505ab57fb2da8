//! The legacy devices of both machines.

#![forbid(unsafe_code)]

mod access;
mod alarm;
mod eoi;
mod fifo;
pub mod i8042;
pub mod i8254;
pub mod i8259;
pub mod ioapic;
mod oscillator;
pub mod pl011;
pub mod pl031;
pub mod pm;
pub mod port92;
mod ports;
pub mod pvpanic;
mod request;
pub mod reset_control;
pub mod rtc;
mod serial;
pub mod uart16550;
pub mod v2m;

#[cfg(test)]
mod testing;

pub use i8042::{I8042, I8042Config, Ps2Port};
pub use i8254::{I8254, I8254Config};
pub use i8259::{I8259, I8259Config};
pub use ioapic::{IoApic, IoApicConfig};
pub use pl011::{Pl011, Pl011Config};
pub use pl031::{Pl031, Pl031Config};
pub use pm::{Pm, PmConfig};
pub use port92::Port92;
pub use ports::PortRange;
pub use pvpanic::PvPanic;
pub use request::{MachineRequest, PanicEvent, Requests};
pub use reset_control::ResetControl;
pub use rtc::{Rtc, RtcConfig};
pub use serial::{SerialOut, SerialPort};
pub use uart16550::{Uart16550, Uart16550Config};
pub use v2m::{V2m, V2mConfig};
