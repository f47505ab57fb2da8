//! The aarch64 machine: the `virt` contract.

pub mod boot;
pub mod layout;
