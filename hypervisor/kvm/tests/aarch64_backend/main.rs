//! The KVM backend for aarch64 guests, by tiny guests of the tests' own. It runs on any board of the lab, and tests each GIC that the board has.

#![cfg(target_arch = "aarch64")]
#![allow(unsafe_code)] // The guests' code is found by the addresses of its symbols.

mod guest;
mod machine;
mod run;
