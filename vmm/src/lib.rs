//! The virtual machine monitor as a library: puts a machine together from a configuration, boots a guest on it and runs it to its end.
//!
//! * [`machine`]: memory map, buses, devices, tables, vCPUs; the Q35-compatible PC and the `virt` machine.
//! * [`boot`], [`firmware`]: the files that a guest boots from.
//! * [`run`]: vCPU threads behind a gate, and the control loop.
//! * [`console`]: the first serial port on the host: terminal, file, pty, socket.
//! * [`ctl`]: the control socket, and what can be asked for there.
//! * [`state`]: snapshots: a machine's whole state in a folder.
//! * [`migrate`]: a machine that goes to another process while its guest runs.
//! * [`monitor`]: the whole life of a machine, from a configuration to an [`Outcome`].
//!
//! What it does not do: encryption and post-copy of a machine that migrates.

pub mod boot;
pub mod console;
pub mod ctl;
mod emergency;
mod error;
pub mod firmware;
mod leftover;
mod listen;
pub mod machine;
pub mod migrate;
pub mod monitor;
mod program;
pub mod run;
pub mod state;

pub use emergency::ignore_file_size_signal;
pub use error::Error;
pub use leftover::Leftover;
pub use listen::ListenError;
pub use monitor::{Ending, Outcome};

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::ctl::protocol::test::fuzz_any_arguments_are_a_command_or_a_failure as control_arguments;
    pub use crate::ctl::protocol::test::fuzz_any_bytes_are_a_request_or_a_failure as control_requests;
    pub use crate::machine::tables_test::fuzz_tables_tell_of_what_firmware_has_placed as firmware_tables;
}
