//! Debian's QEMU: how it is told to run a guest as skep does, and how it gets into a lab.

use super::MEMORY;
use crate::arch::Arch;
use crate::images::portable::{Portable, loader};
use anyhow::Result;
use std::path::PathBuf;

/// The arguments with which QEMU gives a guest one vCPU, as much memory as skep does, a serial port, and nothing else that can be left out.
pub(super) fn arguments(machine: &str, kernel: &str, append: &str) -> Vec<String> {
    let guest = ["-kernel", kernel, "-append", append].map(str::to_owned);
    [common(machine, MEMORY), guest.into()].concat()
}

/// The same for a guest that firmware boots from an NVMe disk, a qcow2 image.
pub(super) fn with_firmware(machine: &str, memory: &str, code: &str, vars: &str, disk: &str) -> Vec<String> {
    let flash = |unit, file: &str, more| format!("if=pflash,unit={unit},format=raw,file={file}{more}");
    let (code, vars) = (flash(0, code, ",readonly=on"), flash(1, vars, ""));
    let disk = format!("if=none,id=disk,format=qcow2,file={disk}");
    let guest = ["-drive", &code, "-drive", &vars, "-drive", &disk, "-device", "nvme,serial=1,drive=disk"];
    [common(machine, memory), guest.map(str::to_owned).into()].concat()
}

fn common(machine: &str, memory: &str) -> Vec<String> {
    // Some hosts' KVM offers x86's IA32_ARCH_CAPABILITIES with a value that it does not take, and QEMU 7.2 then ends.
    let cpu = if machine.starts_with("virt") { "host" } else { "host,arch-capabilities=off" };
    let machine = format!("{machine},accel=kvm");
    let words = ["-machine", &machine, "-cpu", cpu, "-smp", "1", "-m", memory];
    let quiet = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"];
    words.into_iter().chain(quiet).map(str::to_owned).collect()
}

/// The firmware that a guest with a kernel of its own is started by.
const FIRMWARE: [&str; 6] =
    ["bios-256k.bin", "bios-microvm.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin", "qboot.rom"];

/// QEMU for `arch` with all that it needs, in one directory that can be carried into a lab.
pub(super) fn portable(arch: Arch) -> Result<PathBuf> {
    let (package, files) = match arch {
        Arch::X86_64 => ("qemu-system-x86", &FIRMWARE[..]),
        Arch::Aarch64 => ("qemu-system-arm", &[][..]),
    };
    Portable { name: "qemu-portable", packages: &[package], programs: &[&format!("usr/bin/{}", program(arch))], files }
        .get(arch)
}

/// The words that start it where that directory is `place`.
pub(super) fn command(arch: Arch, place: &str) -> Vec<String> {
    let library = format!("{place}/lib");
    let words = [
        &format!("{library}/{}", loader(arch)),
        "--library-path",
        &library,
        &format!("{place}/bin/{}", program(arch)),
        "-L",
        &format!("{place}/share"),
    ];
    words.map(str::to_owned).into()
}

fn program(arch: Arch) -> String {
    format!("qemu-system-{arch}")
}
