//! The command line's flags.
#![allow(rustdoc::broken_intra_doc_links)] // The texts are the command's help too, where brackets enclose what may be left out.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use skep_hypervisor::ArchKind;

use crate::Config;
use crate::boot::Boot;
use crate::choice::{CpuFeatures, Irqchip, LogLevel};
use crate::cpus::Cpus;
use crate::device::Device;
use crate::disk::Disk;
use crate::error::Error;
use crate::firmware::FirmwareVars;
use crate::machine::MachineVersion;
use crate::memory::Memory;
use crate::net::Net;
use crate::policy::Action;
use crate::seed::RngSeed;
use crate::serial::Serial;
use crate::uuid::Uuid;

#[cfg(test)]
#[path = "flags_test.rs"]
mod test;

/// What `skep run` and `skep check` take: each flag replaces what the file says under the same name.
#[derive(Debug, Clone, Default, Args)]
pub struct Flags {
    /// Read this TOML file first; flags win over it
    ///
    /// Keys are named as the flags are, in the tables [boot], [cpus], [memory], [serial], [cpu-features] and [on]: `--kernel` is
    /// `boot.kernel`, `--on-reset` is `on.reset`. Devices are the lists [[disk]], [[net]] and [[device]]. `skep run --dump-config` shows them all. Relative paths start at the file's folder.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// What to boot.
    #[command(flatten)]
    pub boot: BootFlags,
    /// Its devices.
    #[command(flatten)]
    pub devices: DeviceFlags,
    /// Everything else.
    #[command(flatten)]
    pub machine: MachineFlags,
}

/// What to boot.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Boot")]
pub struct BootFlags {
    /// Kernel: bzImage or ELF on x86_64; Image, Image.gz or EFI zboot on aarch64
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub initrd: Option<PathBuf>,
    /// Command line for the kernel [default: console=ttyS0 on x86_64, empty on aarch64]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Device tree that replaces the one skep makes (aarch64)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub dtb: Option<PathBuf>,
    /// Firmware, which finds what to boot on disks and networks: OVMF_CODE_4M.fd, AAVMF_CODE.fd, bios-256k.bin, ...
    ///
    /// As Debian's packages ovmf, qemu-efi-aarch64 and seabios have them; builds that need SMM (secboot) are refused. With --kernel as well, UEFI firmware
    /// starts that kernel. Without --firmware-vars what it stores is forgotten when the machine ends.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub firmware: Option<PathBuf>,
    /// The firmware's variables, which last: FILE[,template=FILE]
    ///
    /// A FILE that is not there is made from the template: OVMF_VARS_4M.fd, AAVMF_VARS.fd. It is this machine's alone, and locked while it runs.
    #[arg(long, value_name = "FILE[,template=FILE]")]
    pub firmware_vars: Option<FirmwareVars>,
}

/// The devices.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Devices")]
pub struct DeviceFlags {
    /// Disk: FILE,format=raw|qcow2[,device=nvme|virtio-blk][,readonly][,direct][,id=ID][,serial=TEXT]..., or vhost-user=SOCKET
    ///
    /// FILE is an image or a block device. The format is always named, and never guessed; so is that of a qcow2 image's backing file, in it. `device=nvme` is the default; such disks may share
    /// one controller (`controller=ID`), and have blocks of `block-size=512|4096` bytes. `direct` leaves out the host's page cache,
    /// `queues=N` limits the queues, `poll=TIME` how long a queue's thread looks for work before it sleeps (32us; 0: not at all).
    /// `iops=N[/BURST]` and `bandwidth=SIZE[/BURST]` limit what it does in a second, and at once after a rest (a tenth of that).
    /// `vhost-user` is a virtio disk of another program, which listens at SOCKET already. Firmware boots what has
    /// a `bootindex=N` first, the least before the others. May be repeated.
    #[arg(long, value_name = "FILE,format=raw|qcow2[,...]")]
    pub disk: Vec<Disk>,
    /// Network card: tap=NAME[,queues=N], user or vhost-user=SOCKET[,queues=N], [,device=virtio-net|ne2k_pci][,id=ID][,mac=MAC][,romfile=FILE]...
    ///
    /// `tap` is an interface of the host, made for this user: ip tuntap add mode tap user NAME. `user` needs no rights: the program `passt` makes
    /// the guest's connections the user's own. With `vhost-user`, a backend that listens at SOCKET already moves the frames. `device=virtio-net` is the default; `ne2k_pci` is slow, and for guests that know no other card. `romfile` is an
    /// option ROM, by which firmware boots from a card that it has no driver for. `rx-packets=N[/BURST]` and `rx-bandwidth=SIZE[/BURST]` limit what the guest receives
    /// by virtio-net in a second, `tx-packets` and `tx-bandwidth` what it sends; `poll=TIME` and `bootindex=N` are as a disk's. May be repeated.
    #[arg(long, value_name = "tap=NAME|user|vhost-user=SOCKET[,...]")]
    pub net: Vec<Net>,
    /// Other device (virtio): rng[=false], balloon[,deflate-on-oom], vsock=SOCKET[,cid=N], console=SOCKET[,ports=NAME:NAME...] or fs,socket=SOCKET,tag=TAG[,queues=N][,id=ID]
    ///
    /// `rng` is there without being asked for. With `vsock`, a program of the host connects to SOCKET and says CONNECT PORT; the guest's connections to
    /// the host's PORT go to SOCKET_PORT. With `console`, SOCKET leads to the guest's terminal (hvc0), and SOCKET_NAME to its /dev/virtio-ports/NAME.
    /// `fs` is a directory of the host, which the guest mounts by TAG: a vhost-user backend such as `virtiofsd`
    /// listens at SOCKET already, and guest memory is shared. `skep ctl` tells a balloon's guest how much to give. May be repeated.
    #[arg(long, value_name = "KIND[,...]")]
    pub device: Vec<Device>,
    /// PCI root ports: slots for devices that can come and go, 15 at most [default: 0]
    ///
    /// A device says where it is by `place=port:NUMBER` (from 0 on) or `place=root:DEVICE` on bus 0; without, it has the next free device number
    /// on bus 0. Only a device behind a root port can be unplugged. Each port costs the guest some time at boot.
    #[arg(long, value_name = "N")]
    pub pci_ports: Option<u8>,
}

/// The machine, its console, and how it runs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Machine")]
pub struct MachineFlags {
    /// Machine, which fixes the guest's hardware for ever [default: the newest of the host's architecture]
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<MachineVersion>,
    /// Virtual CPUs: N[,max=N][,sockets=N][,cores=N][,threads=N] [default: 1]; max= leaves room for more, which can't be added yet
    #[arg(long, value_name = "N[,max=N,...]")]
    pub cpus: Option<Cpus>,
    /// CPU that the guest is shown (x86_64): x86-64-v1 to x86-64-v4, or a file with the features that several hosts have, from `skep doctor --cpu-features`
    /// [default: all that the host has]
    #[arg(long, value_name = "LEVEL|FILE")]
    pub cpu: Option<String>,
    /// Processor features (aarch64): pauth and sve, given only on request; pmu, given where the host has it [pmu=false: not at all]
    #[arg(long, value_name = "FEATURE,...")]
    pub cpu_features: Option<CpuFeatures>,
    /// Memory: SIZE[,hugepages=SIZE][,prefault][,shared], sizes as 512M or 4G [default: 512M]
    #[arg(long, value_name = "SIZE[,...]")]
    pub memory: Option<Memory>,
    /// Interrupt controller (aarch64) [default: auto]
    #[arg(long, value_name = "KIND")]
    pub irqchip: Option<Irqchip>,
    /// Seed for the guest's random numbers at boot: 64 hexadecimal digits [default: from the host]
    #[arg(long, value_name = "HEX")]
    pub rng_seed: Option<RngSeed>,
    /// The machine's UUID, which firmware tells: 01234567-89ab-cdef-0123-456789abcdef [default: none]
    #[arg(long, value_name = "UUID")]
    pub uuid: Option<Uuid>,
    /// First serial port: stdio, file=FILE, pty[,link=PATH], socket=PATH or none [default: stdio]
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<Serial>,
    /// Unix socket at which skep listens for `skep ctl` [default: none]
    ///
    /// Whoever may write to it has the machine: it is this user's alone. It goes when skep ends.
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub control: Option<PathBuf>,

    /// When the guest powers off [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "When the guest ends")]
    pub on_power_off: Option<Action>,
    /// When the guest asks for a reset [default: restart]
    #[arg(long, value_name = "ACTION", help_heading = "When the guest ends")]
    pub on_reset: Option<Action>,
    /// When the guest's kernel panics [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "When the guest ends")]
    pub on_panic: Option<Action>,
    /// When a processor of the guest triple-faults (x86_64) [default: exit]
    #[arg(long, value_name = "ACTION", help_heading = "When the guest ends")]
    pub on_triple_fault: Option<Action>,

    /// How much to log, to standard error [default: warn]
    #[arg(long, value_name = "LEVEL", help_heading = "Reports")]
    pub log: Option<LogLevel>,
    /// At the end, print exits by kind and the time to the first instruction
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Reports")]
    pub stats: Option<bool>,
}

impl Flags {
    /// Reads the file, if one is named, lets the flags have their say, and finishes the config. `host` is the architecture of a guest
    /// whose machine nobody named.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn config(self, host: ArchKind) -> Result<Config, Error> {
        let mut config = match &self.config {
            Some(file) => Config::load(file, host)?,
            None => Config::new(host),
        };
        self.apply(&mut config);
        config.finish()?;
        Ok(config)
    }

    /// Replaces in `config` what flags were given for.
    pub fn apply(self, config: &mut Config) {
        self.boot.apply(&mut config.boot);
        self.devices.apply(config);
        self.machine.apply(config);
    }
}

impl BootFlags {
    /// A flag for the other way to boot drops what the file says about the first.
    fn apply(self, boot: &mut Boot) {
        if self.firmware.is_some() && self.kernel.is_none() {
            (boot.kernel, boot.initrd, boot.cmdline, boot.dtb) = (None, None, None, None);
        }
        if self.kernel.is_some() && self.firmware.is_none() {
            (boot.firmware, boot.firmware_vars) = (None, None);
        }
        replace_some(&mut boot.kernel, self.kernel);
        replace_some(&mut boot.initrd, self.initrd);
        replace_some(&mut boot.cmdline, self.cmdline);
        replace_some(&mut boot.dtb, self.dtb);
        replace_some(&mut boot.firmware, self.firmware);
        replace_some(&mut boot.firmware_vars, self.firmware_vars);
    }
}

impl DeviceFlags {
    /// Replaces in `config` what flags were given for: a list as a whole.
    fn apply(self, config: &mut Config) {
        replace(&mut config.disk, Some(self.disk).filter(|list| !list.is_empty()));
        replace(&mut config.net, Some(self.net).filter(|list| !list.is_empty()));
        replace(&mut config.device, Some(self.device).filter(|list| !list.is_empty()));
        replace(&mut config.pci_ports, self.pci_ports);
    }
}

impl MachineFlags {
    /// Replaces in `config` what flags were given for.
    pub fn apply(self, config: &mut Config) {
        replace(&mut config.machine, self.machine);
        replace(&mut config.cpus, self.cpus);
        replace_some(&mut config.cpu, self.cpu);
        replace(&mut config.cpu_features, self.cpu_features);
        replace(&mut config.memory, self.memory);
        replace(&mut config.irqchip, self.irqchip);
        replace_some(&mut config.rng_seed, self.rng_seed);
        replace_some(&mut config.uuid, self.uuid);
        replace(&mut config.serial, self.serial);
        replace_some(&mut config.control, self.control);
        replace(&mut config.on.power_off, self.on_power_off);
        replace(&mut config.on.reset, self.on_reset);
        replace(&mut config.on.panic, self.on_panic);
        replace(&mut config.on.triple_fault, self.on_triple_fault);
        replace(&mut config.log, self.log);
        replace(&mut config.stats, self.stats);
    }
}

fn replace<T>(value: &mut T, flag: Option<T>) {
    if let Some(flag) = flag {
        *value = flag;
    }
}

fn replace_some<T>(value: &mut Option<T>, flag: Option<T>) {
    replace(value, flag.map(Some));
}
