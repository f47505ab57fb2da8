//! The KVM backend for aarch64 guests: what the conformance suite can't know of it. The guest is the probe.
//!
//! It runs on any board of the lab, whichever GIC that has: where a test is of one GIC, a board without it shows that it is refused by name.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used)] // It is how a test fails.

mod features;
mod gic;
mod interrupts;
mod machine;
mod making;
mod vcpu;
