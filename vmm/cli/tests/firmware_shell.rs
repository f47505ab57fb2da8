//! Builds of UEFI firmware that differ, each as far as the UEFI shell, which lists the devices and reads a FAT disk.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::{Path, PathBuf};

use support::{Builder, again, firmware, is_x86_64};
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file of firmware: the one for x86_64, or the one for aarch64.
fn either(x86_64: &str, aarch64: &str) -> PathBuf {
    firmware(if is_x86_64() { x86_64 } else { aarch64 })
}

/// Firmware with variables in `folder`.
fn in_two_files(folder: &TempDir, code: &Path, template: &Path) -> Builder {
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(template));
    Builder::command(&["run", "--memory", "512M", "--firmware", text(code), "--firmware-vars", &vars])
}

/// From the disk of that name, which holds a script that shows things and powers the machine off; put away while it waits for somebody.
fn expect_shell(folder: &TempDir, machine: Builder, disk: &str) {
    let copy = folder.path().join("shell.img");
    std::fs::copy(firmware(disk), &copy).unwrap();
    let socket = folder.path().join("vm.sock");
    let words = ["--disk", &format!("{},format=raw", text(&copy)), "--control", text(&socket)];
    let mut machine = machine.args(&words).start();
    machine.wait_for("UEFI Interactive Shell");
    // It waits some seconds for who wants to keep it from running the disk's script.
    machine.wait_for("startup.nsh");
    let (_, mut machine) = again(machine, folder.path(), &[]);
    machine.send("\r");
    machine.wait_for("Vendor 1B36 Device 0010");
    machine.wait_for("NVM Express Controller");
    machine.wait_for("a file for the UEFI shell");
    machine.finish().expect_code(0);
}

/// The firmware's own.
#[test]
fn the_uefi_shell_reads_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let code = either("OVMF_CODE_4M.fd", "AAVMF_CODE.fd");
    let machine = in_two_files(&folder, &code, &either("OVMF_VARS_4M.fd", "AAVMF_VARS.fd"));
    expect_shell(&folder, machine, "shell.img");
}

/// It keeps its variables in memory.
#[test]
fn firmware_in_one_file_reads_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let code = either("OVMF.fd", "QEMU_EFI.fd");
    let machine = Builder::command(&["run", "--memory", "512M", "--firmware", text(&code)]);
    expect_shell(&folder, machine, "shell.img");
}

/// Of a newer release, with its shell on the disk.
#[test]
fn newer_firmware_boots_a_shell_from_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let code = either("newer/OVMF_CODE_4M.fd", "newer/AAVMF_CODE.no-secboot.fd");
    let machine = in_two_files(&folder, &code, &either("newer/OVMF_VARS_4M.fd", "newer/AAVMF_VARS.fd"));
    expect_shell(&folder, machine, "newer/shell.img");
}
