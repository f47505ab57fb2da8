//! The aarch64 machine: the `virt` contract.

pub mod acpi;
pub mod boot;
pub mod fdt;
pub mod layout;
mod topology;

pub use topology::mpidr;
