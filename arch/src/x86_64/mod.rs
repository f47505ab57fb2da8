//! The x86_64 machine: a PC with the Q35 chipset's contract.

pub mod acpi;
pub mod apic_id;
pub mod boot;
pub mod boot_params;
pub mod cpuid;
pub mod e820;
pub mod layout;
pub mod leaves;
pub mod pvh;
