//! The KVM backend for x86_64 guests, by tiny guests of the tests' own. It runs on any /dev/kvm, with or without hardware virtualization.

#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)] // The guests' code is found by the addresses of its symbols.

mod guest;
mod interrupts;
mod machine;
mod memory;
mod run;
mod state;
mod vcpus;
