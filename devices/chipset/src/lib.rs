//! The legacy devices of both machines.

#![forbid(unsafe_code)]

mod access;
mod alarm;
mod fifo;
mod request;
mod serial;
pub mod uart16550;

#[cfg(test)]
mod testing;

pub use request::{MachineRequest, PanicEvent, Requests};
pub use serial::{SerialOut, SerialPort};
pub use uart16550::{Uart16550, Uart16550Config};
