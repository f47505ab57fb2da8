//! x86_64: PVH entry, long mode, local APIC.

pub mod apic;
mod boot;
pub mod cpu;
pub mod guarded;
pub mod hold;
pub mod memory;
pub mod trap;
pub mod user;
