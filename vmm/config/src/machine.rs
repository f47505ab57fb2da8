//! Architectures and machine versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A guest's architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arch {
    /// 64-bit x86 (AMD64, Intel 64).
    X86_64,
    /// 64-bit Arm (Armv8-A and later).
    Aarch64,
}

impl Arch {
    /// The architecture of this host, if skep knows it as a guest's.
    pub fn host() -> Option<Self> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == std::env::consts::ARCH)
    }

    /// Its name, as in target triples.
    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

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
    pub fn newest(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => MachineVersion::Q35V1,
            Arch::Aarch64 => MachineVersion::VirtV1,
        }
    }

    /// The architecture of its guests.
    pub fn arch(self) -> Arch {
        match self {
            MachineVersion::Q35V1 => Arch::X86_64,
            MachineVersion::VirtV1 => Arch::Aarch64,
        }
    }

    /// Its name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            MachineVersion::Q35V1 => "q35-1",
            MachineVersion::VirtV1 => "virt-1",
        }
    }

    /// The command line of a kernel for which none was given: on x86_64 Linux has to be told of the serial console, on aarch64 the
    /// device tree says it.
    pub(crate) fn default_cmdline(self) -> &'static str {
        match self.arch() {
            Arch::X86_64 => "console=ttyS0",
            Arch::Aarch64 => "",
        }
    }
}

impl fmt::Display for MachineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
