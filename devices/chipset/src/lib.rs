//! The legacy devices of both machines.

#![forbid(unsafe_code)]

mod request;
mod serial;

pub use request::{MachineRequest, PanicEvent, Requests};
pub use serial::{SerialOut, SerialPort};
