//! What skep knows of the two guest architectures, as plain code that compiles and is tested on every host.
//!
//! * [`x86_64`]: the Q35-compatible PC: layout, memory map, boot protocols (Linux 2.12 to 2.15 in 64-bit mode, PVH), ACPI tables, APIC ids, CPUID.
//! * [`aarch64`]: the `virt` machine: layout, boot protocol, device tree, ACPI tables, affinities.
//! * [`kernel`]: kernel file formats of both, read straight into guest memory.
//! * [`acpi`]: tables (ACPI 6.5) and the description of platform devices, to be placed by the machine or by firmware.
//! * [`smbios`]: tables (3.4) for firmware to hand on.
//! * [`layout`], [`topology`]: what both share.
//!
//! Nothing here depends on the host's architecture or on a hypervisor backend. What a device says of itself in ACPI or in the device tree is
//! the device's: it is handed in as something that writes itself.
//!
//! What it does not do: NUMA (SRAT).

#![forbid(unsafe_code)]

pub mod aarch64;
pub mod acpi;
pub mod kernel;
pub mod layout;
pub mod smbios;
pub mod topology;
pub mod x86_64;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::aarch64::fdt::test::fuzz_trees as device_trees;
    pub use crate::acpi::loader::test::fuzz_any_tables_in_any_place as acpi_loader;
    pub use crate::kernel::test::fuzz_headers as kernels;
}
