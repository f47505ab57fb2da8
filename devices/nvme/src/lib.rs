//! An NVMe controller: NVM Express Base 2.0, NVM Command Set 1.0, PCIe Transport 1.0.
//!
//! What is there:
//!
//! * Up to 510 I/O queue pairs (64 by default) of up to 65535 entries, up to 256 namespaces with blocks of 512 or 4096 bytes, which come, go
//!   and change their size while the guest runs (namespace attribute notices).
//! * Admin: Identify (CNS 00h to 03h, 05h to 08h), creation and deletion of queues, Abort, Asynchronous Event Request, Get and Set Features
//!   (arbitration, power management, temperature threshold, error recovery, volatile write cache, number of queues, interrupt coalescing and
//!   vector configuration, write atomicity, asynchronous events, autonomous power state transitions, timestamp, keep alive), Get Log Page at any offset (supported logs, errors,
//!   SMART, firmware slot, changed namespaces, commands and effects, features and effects), Format NVM, Doorbell Buffer Config, Keep Alive.
//! * I/O: Flush, Write, Read, Compare, Write Zeroes, Dataset Management, Verify; PRPs and SGLs; force unit access. A transfer has at most
//!   1 MiB (MDTS).
//! * Interrupts by MSI-X, or by the pin with its mask; one for each batch of completions. The coalescing that a guest asks for is a
//!   recommendation to the controller, which keeps it and says it again.
//!
//! What is not there, and answered as the specification has it: namespace management, formats that change the block size, metadata and
//! protection information, Write Uncorrectable, Sanitize, self-tests, firmware update, directives, reservations, fused commands, controller
//! memory buffers, host memory buffers, saved features, weighted arbitration, subsystem reset. A raw image can hold nothing of the
//! first four, and no guest asks for the others.
//!
//! # Threads
//!
//! The unit of work is a completion queue with all its submission queues; one thread alone touches them. A slot for a command's completion
//! is kept free before the command is taken. A doorbell touches its queue only: it is a register that a vCPU stores into an atomic, or, once
//! the guest has configured shadow doorbells, guest memory that the thread looks at and an eventfd. On the way of an I/O command no lock is
//! taken that another unit takes. The admin queues and the controller's life have a thread of their own; vCPUs wait for neither.
//!
//! # Stopping
//!
//! To disable, reset, delete or pause is one act: nothing more is taken, what is in flight ends, then it is told. A disk that hangs keeps
//! the controller from being ready again, and keeps nobody else. The state ([`ControllerState`]) is that of a controller with nothing in
//! flight: all its commands are in their queues, taken and completed or not taken yet.

#![forbid(unsafe_code)]

mod admin;
mod config;
mod controller;
mod doorbell;
mod namespace;
mod pci;
mod queue;
mod shared;
mod spec;
mod state;
mod transfer;
mod unit;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // Tests.
mod twin_test;

pub use config::{ControllerConfig, NamespaceConfig, NvmeError, PowerState};
pub use controller::Controller;
pub use pci::endpoint;
pub use shared::Bus;
pub use state::{
    CompletionQueueState, ControllerState, ErrorState, FeaturesState, HealthState, ShadowState, SubmissionQueueState,
    UnitState,
};

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::admin::test::fuzz_admin_commands as nvme_admin;
    pub use crate::controller::test::fuzz_registers as nvme_registers;
    pub use crate::controller::test::fuzz_saved_state as nvme_state;
    pub use crate::transfer::test::fuzz_data_pointers as nvme_pointers;
    pub use crate::unit::fault_test::fuzz_io_queues as nvme_io;
}
