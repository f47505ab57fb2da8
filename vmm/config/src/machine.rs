//! Architectures and machine versions.

use std::fmt;

use serde::{Deserialize, Serialize};
use skep_hypervisor::ArchKind;

/// A machine and its version: the same one gives the same hardware for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum MachineVersion {
    /// The x86_64 machine, compatible with Intel's Q35 chipset, version 1.
    #[serde(rename = "q35-1")]
    #[value(name = "q35-1")]
    Q35V1,
    /// The aarch64 machine, which keeps the contract of QEMU's `virt`, version 1.
    #[serde(rename = "virt-1")]
    #[value(name = "virt-1")]
    VirtV1,
}

impl MachineVersion {
    /// The newest machine of an architecture.
    pub fn newest(arch: ArchKind) -> Self {
        match arch {
            ArchKind::X86_64 => MachineVersion::Q35V1,
            ArchKind::Aarch64 => MachineVersion::VirtV1,
        }
    }

    /// The architecture of its guests.
    pub fn arch(self) -> ArchKind {
        match self {
            MachineVersion::Q35V1 => ArchKind::X86_64,
            MachineVersion::VirtV1 => ArchKind::Aarch64,
        }
    }

    /// Its name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            MachineVersion::Q35V1 => "q35-1",
            MachineVersion::VirtV1 => "virt-1",
        }
    }

    /// Device numbers on bus 0 that the chipset has.
    pub(crate) fn chipset_devices(self) -> &'static [u8] {
        match self {
            MachineVersion::Q35V1 => &[0, 31],
            MachineVersion::VirtV1 => &[0],
        }
    }

    /// The command line of a kernel for which none was given: on x86_64 Linux has to be told of the serial console, on aarch64 the
    /// device tree says it.
    pub(crate) fn default_cmdline(self) -> &'static str {
        match self.arch() {
            ArchKind::X86_64 => "console=ttyS0",
            ArchKind::Aarch64 => "",
        }
    }
}

impl fmt::Display for MachineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
