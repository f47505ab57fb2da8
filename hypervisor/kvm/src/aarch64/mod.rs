//! aarch64 guests.
//!
//! GIC, timers and PSCI are KVM's. SMCCC calls and system registers are all answered by KVM itself: what it does not know is
//! "not supported", or an undefined instruction. Linux 5.10 or later; shown with 6.1.

mod build;
mod clock;
mod gic;
mod ioctl;
mod lines;
mod register;
mod report;
mod resample;
mod state;
mod vcpu;
mod vm;

pub(crate) use report::report;
