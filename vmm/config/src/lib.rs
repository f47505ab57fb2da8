//! The one configuration schema of skep: command-line flags, the TOML file and the API all end in a [`Config`].
//!
//! * A group of keys (`cpus`, `memory`, `serial`, ...) may be written as its flag is, `memory = "4G,shared"`, or as a table,
//!   `memory = { size = "4G", shared = true }`. A comma inside a value is written `,,`.
//! * What the user gave wins in this order: flag, file, default. A flag replaces what the file says under the same name, whole.
//! * Relative paths in a file start at the file's folder, relative paths in flags at the working folder.
//! * Unknown keys, and keys that this version doesn't serve yet, are errors that say where, and what was probably meant.
//! * Of what there may be several (`disk`, `net`, `device`), the file has a list, of texts or of tables (`[[disk]]`), and the flag is repeated.
//! * [`Config::to_toml`] writes every key with the value in effect, and reading that back gives the same [`Config`].
//!
//! The file is TOML 1.1. What this crate does not do: open the files that a config names, know a host's limits, or look at a kernel. A count or a size that is
//! merely large passes here, and the hypervisor backend says what it can hold.

#![forbid(unsafe_code)]

mod boot;
mod choice;
mod cpus;
mod device;
mod disk;
mod error;
mod file;
mod firmware;
mod flags;
mod group;
mod hardware;
mod id;
mod machine;
mod memory;
mod net;
mod node;
mod place;
mod plug;
mod policy;
mod poll;
mod rate;
mod regular;
mod seed;
mod serial;
mod size;
mod uuid;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use boot::{Boot, BootSource};
pub use choice::{CpuFeatures, Irqchip, LogLevel};
pub use cpus::Cpus;
pub use device::{Device, DeviceKind};
pub use disk::{Disk, DiskDevice, DiskSource, Format};
pub use error::{Conflict, Error, Problem};
pub use file::full_path;
pub use firmware::FirmwareVars;
pub use flags::{BootFlags, DeviceFlags, Flags, MachineFlags};
pub use machine::MachineVersion;
pub use memory::Memory;
pub use net::{Mac, Net, NetDevice};
pub use place::{FIRST_PORT, MOST_PORTS, Place};
pub use policy::{Action, Policy};
pub use poll::{Poll, PollError};
pub use rate::{Bytes, Counted, Rate, Requests};
pub use regular::open_regular;
pub use seed::RngSeed;
pub use serial::Serial;
pub use size::{Size, SizeError};
pub use skep_hypervisor::ArchKind;
pub use uuid::Uuid;

#[cfg(test)]
#[path = "config_test.rs"]
mod test;

/// A GICv2 has as many CPU interfaces (IHI 0048B, 2.1).
const GICV2_CPUS: u32 = 8;

/// Everything that decides what a guest is and how skep runs it.
///
/// A value that came from [`Flags::config`] or [`Config::from_toml`] with [`Config::finish`] is complete and free of conflicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The machine and its version, which fixes the guest's hardware for ever and says its architecture.
    pub machine: MachineVersion,
    /// The interrupt controller (aarch64).
    #[serde(default)]
    pub irqchip: Irqchip,
    /// How much is logged.
    #[serde(default)]
    pub log: LogLevel,
    /// Print exits by kind and the time to the first instruction at the end.
    #[serde(default)]
    pub stats: bool,
    /// The seed handed to the guest's random number generator at boot, for runs that repeat; from the host's generator if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rng_seed: Option<RngSeed>,
    /// The machine's UUID, which firmware tells (SMBIOS); none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Root ports on PCI, each with a slot for a device that can come and go; each costs the guest's boot some time.
    #[serde(default)]
    pub pci_ports: u8,
    /// The Unix socket at which skep listens for `skep ctl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Where the first serial port leads.
    #[serde(default)]
    pub serial: Serial,
    /// Virtual CPUs and their topology.
    #[serde(default)]
    pub cpus: Cpus,
    /// What the guest is shown of the host's CPU, at most (x86_64): a level of the x86-64 psABI, or a file that names features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Processor features that a guest need not have.
    #[serde(default)]
    pub cpu_features: CpuFeatures,
    /// Guest memory.
    #[serde(default)]
    pub memory: Memory,
    /// What the guest starts from.
    #[serde(default)]
    pub boot: Boot,
    /// What happens when the guest ends or fails.
    #[serde(default)]
    pub on: Policy,
    /// Disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<Disk>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<Net>,
    /// Other devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device: Vec<Device>,
}

impl Config {
    /// The defaults for a guest of architecture `arch`, on the newest machine for it. There is nothing to boot yet.
    pub fn new(arch: ArchKind) -> Self {
        Config {
            machine: MachineVersion::newest(arch),
            irqchip: Irqchip::default(),
            log: LogLevel::default(),
            stats: false,
            rng_seed: None,
            uuid: None,
            pci_ports: 0,
            control: None,
            serial: Serial::default(),
            cpus: Cpus::default(),
            cpu: None,
            cpu_features: CpuFeatures::default(),
            memory: Memory::default(),
            boot: Boot::default(),
            on: Policy::default(),
            disk: Vec::new(),
            net: Vec::new(),
            device: Vec::new(),
        }
    }

    /// The guest's architecture.
    pub fn arch(&self) -> ArchKind {
        self.machine.arch()
    }

    /// Fills in the defaults that depend on other keys, then refuses keys that contradict each other or the machine.
    ///
    /// # Errors
    ///
    /// [`Conflict`], the first found.
    pub fn finish(&mut self) -> Result<(), Conflict> {
        let arch = self.arch();
        self.boot.check(self.machine)?;
        if self.uuid.is_some() && self.boot.firmware.is_none() {
            return Err(Conflict::Without { key: "uuid", needs: "boot.firmware" });
        }
        if self.control.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(Conflict::EmptyPath { key: "control" });
        }
        if let (Serial::Socket(serial), Some(control)) = (&self.serial, &self.control)
            && serial == control
        {
            return Err(Conflict::SameSocket { path: control.clone() });
        }
        self.finish_devices()?;
        if self.boot.kernel.is_some() && self.boot.cmdline.is_none() {
            self.boot.cmdline = Some(self.machine.default_cmdline().to_owned());
        }
        if self.cpu.is_some() && arch != ArchKind::X86_64 {
            return Err(Conflict::OtherArch { key: "cpu", needs: ArchKind::X86_64, machine: self.machine });
        }
        let aarch64_only = [
            ("irqchip", self.irqchip != Irqchip::Auto),
            ("cpu-features.pauth", self.cpu_features.pauth),
            ("cpu-features.pmu", self.cpu_features.pmu.is_some()),
            ("cpu-features.sve", self.cpu_features.sve),
        ];
        match aarch64_only.iter().find(|(_, set)| *set && arch != ArchKind::Aarch64) {
            Some((key, _)) => Err(Conflict::OtherArch { key, needs: ArchKind::Aarch64, machine: self.machine }),
            None if self.irqchip == Irqchip::Gicv2 && self.cpus.max > GICV2_CPUS => {
                Err(Conflict::Gicv2Cpus { cpus: self.cpus.max, limit: GICV2_CPUS })
            }
            None => Ok(()),
        }
    }
}
