//! The KVM backend: [`skep_hypervisor::Hypervisor`] by Linux's /dev/kvm, for guests of the host's own architecture.
//!
//! Follows the KVM API, version 12 (Documentation/virt/kvm/api.rst); Linux 5.10 or later. On x86_64 the local APICs are KVM's and
//! everything else of the interrupt controllers is skep's ("split irqchip"); on aarch64 the GIC is KVM's.
//!
//! This crate is the only place that knows the host: `target_arch` and KVM's names appear here and nowhere else.
//!
//! * [`open`] opens /dev/kvm; an error says what would mend it. [`report()`] tells a person what this host can do, and
//!   [`caveat()`] what to expect before a long boot.
//! * A vCPU is kicked by the first real-time signal (`SIGRTMIN`), whose handler does nothing: threads that run vCPUs must not block it.
//! * What is only needed to save or restore is asked of KVM when that is first done, not at the start.
//!
//! What it does not do: run a guest of the other architecture, SMM, nested virtualization's state, confidential guests.

#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod device;
mod doorbells;
mod host;
mod ioctl;
mod kick;
mod meaning;
mod posted;
mod report;
mod routes;
mod slots;
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use device::{Kvm, open};
pub use report::{caveat, report};

/// The backend's name in messages.
pub(crate) const NAME: &str = "KVM";
