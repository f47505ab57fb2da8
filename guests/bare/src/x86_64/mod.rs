//! x86_64: PVH entry, long mode, local APIC.

pub mod acpi;
pub mod apic;
mod boot;
pub mod clock;
pub mod cpu;
pub mod guarded;
pub mod hold;
pub mod memory;
pub mod power;
pub mod serial;
pub mod start;
pub mod trap;
pub mod user;
