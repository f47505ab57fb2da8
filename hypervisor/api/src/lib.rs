//! What a hypervisor backend offers: the traits that the machine is built on, for both guest architectures.
//!
//! The guest's architecture is a type ([`X86_64`], [`Aarch64`]), so the code of both compiles and is tested on every host. A backend
//! implements [`Hypervisor`] for the architectures it can run.
//!
//! The way to a running vCPU:
//!
//! 1. [`Hypervisor::builder`] is told the most vCPUs that may ever exist, the highest guest address, and which optional [`Powers`] may be used.
//! 2. [`VmBuilder::capabilities`] answers what the backend can do, before anything is fixed.
//! 3. [`VmBuilder::build`] makes the VM with its vCPUs and its interrupt controller, in whatever order the backend needs.
//! 4. [`Vcpu::run`] runs guest code, calls back into the machine's I/O ([`Arch::Io`]) for each access, and returns only for what the machine must decide.
//!
//! No trait assumes that memory exits, eventfds or a dirty log exist: a software CPU fits as well as KVM. Optional powers are methods that
//! return an `Option`. There is no vCPU constant, and no array sized by one.
//!
//! [`conformance`] is a suite that any backend must pass; [`fake`] is a backend without a CPU, for tests.
//!
//! What it does not do: memory layouts, tables and boot protocols (`skep-arch`), or anything about the host's architecture.

#![forbid(unsafe_code)]

pub mod aarch64;
mod arch;
pub mod conformance;
mod error;
pub mod fake;
pub mod report;
mod vcpu;
mod vm;
pub mod x86_64;

pub use aarch64::Aarch64;
pub use arch::{Arch, ArchKind, MemoryIo};
pub use error::{HypervisorError, VcpuError};
pub use vcpu::{Exit, ExitCounts, Kick, Vcpu};
pub use vm::{
    Capabilities, Doorbell, DoorbellSpace, Doorbells, GuestClock, Hypervisor, Parts, PostedWrites, Powers, Vm,
    VmBuilder, VmRequest,
};
pub use x86_64::X86_64;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::aarch64::state::test::fuzz_records as state_vcpu_aarch64;
    pub use crate::x86_64::state::test::fuzz_records as state_vcpu_x86_64;
}
