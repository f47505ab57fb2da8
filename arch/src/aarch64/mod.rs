//! The aarch64 machine: the `virt` contract.

pub mod layout;
