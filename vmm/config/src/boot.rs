//! What the guest starts from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use skep_hypervisor::ArchKind;

use crate::error::Conflict;
use crate::firmware::FirmwareVars;
use crate::machine::MachineVersion;

/// What the guest starts from: a kernel, or firmware, which may be handed a kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Boot {
    /// The kernel: bzImage or ELF on x86_64, Image, Image.gz or EFI zboot on aarch64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk, handed to the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line. [`crate::Config::finish`] sets a default one for a kernel that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// A device tree that replaces the one skep makes (aarch64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtb: Option<PathBuf>,
    /// Firmware: its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// Firmware: its variables, which the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_vars: Option<FirmwareVars>,
}

/// The one thing that a guest starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootSource<'a> {
    /// Direct boot of a kernel.
    Kernel {
        /// The kernel.
        kernel: &'a Path,
        /// Its initial RAM disk.
        initrd: Option<&'a Path>,
        /// Its command line.
        cmdline: &'a str,
        /// The device tree that replaces ours.
        dtb: Option<&'a Path>,
    },
    /// Firmware, which finds what to boot itself, or boots the kernel that it is handed.
    Firmware {
        /// Its code, or all of it.
        code: &'a Path,
        /// Its variables.
        vars: Option<&'a FirmwareVars>,
        /// The kernel.
        kernel: Option<&'a Path>,
        /// The kernel's initial RAM disk.
        initrd: Option<&'a Path>,
        /// The kernel's command line.
        cmdline: &'a str,
    },
}

impl Boot {
    /// What to boot.
    ///
    /// # Errors
    ///
    /// [`Conflict::NothingToBoot`].
    pub fn source(&self) -> Result<BootSource<'_>, Conflict> {
        match (self.kernel.as_deref(), self.firmware.as_deref()) {
            (Some(kernel), None) => Ok(BootSource::Kernel {
                kernel,
                initrd: self.initrd.as_deref(),
                cmdline: self.cmdline.as_deref().unwrap_or_default(),
                dtb: self.dtb.as_deref(),
            }),
            (kernel, Some(code)) => Ok(BootSource::Firmware {
                code,
                vars: self.firmware_vars.as_ref(),
                kernel,
                initrd: self.initrd.as_deref(),
                cmdline: self.cmdline.as_deref().unwrap_or_default(),
            }),
            (None, None) => Err(Conflict::NothingToBoot),
        }
    }

    /// Refuses keys that don't go together. Nothing at all to boot passes: a config may be dumped before it has a kernel.
    pub(crate) fn check(&self, machine: MachineVersion) -> Result<(), Conflict> {
        let beside = |key, needs, given: bool, there: bool| match given && !there {
            true => Err(Conflict::Without { key, needs }),
            false => Ok(()),
        };
        if self.dtb.is_some() && self.firmware.is_some() {
            return Err(Conflict::DtbAndFirmware);
        }
        let kernel = self.kernel.is_some();
        beside("boot.initrd", "boot.kernel", self.initrd.is_some(), kernel)?;
        beside("boot.cmdline", "boot.kernel", self.cmdline.is_some(), kernel)?;
        if self.dtb.is_some() && machine.arch() != ArchKind::Aarch64 {
            return Err(Conflict::OtherArch { key: "boot.dtb", needs: ArchKind::Aarch64, machine });
        }
        beside("boot.dtb", "boot.kernel", self.dtb.is_some(), kernel)?;
        beside("boot.firmware-vars", "boot.firmware", self.firmware_vars.is_some(), self.firmware.is_some())
    }
}
