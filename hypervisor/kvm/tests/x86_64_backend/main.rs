//! The KVM backend for x86_64 guests, by tiny guests of the tests' own. It runs on any /dev/kvm, with or without hardware virtualization.

#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // The guests' code is found by the addresses of its symbols.
#![allow(clippy::unwrap_used)] // Helpers of tests may, as tests do.

mod guest;
mod interrupts;
mod machine;
mod memory;
mod run;
mod state;
mod vcpus;
