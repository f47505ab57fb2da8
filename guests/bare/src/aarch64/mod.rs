//! aarch64: entry at EL1, GICv2 and GICv3 with ITS, PSCI.

mod boot;
pub mod cpu;
pub mod fdt;
pub mod gic;
pub mod guarded;
pub mod hold;
pub mod its;
pub mod memory;
pub mod psci;
pub mod serial;
pub mod trap;
