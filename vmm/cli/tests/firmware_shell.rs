//! Builds of UEFI firmware that differ, each as far as the UEFI shell, which lists the devices and reads a FAT disk; and sets variables while it goes to
//! other processes.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::Path;

use support::variables::Variables;
use support::{Builder, Machine, again, either, firmware, text};
use tempfile::TempDir;

/// A file of firmware: the one for x86_64, or the one for aarch64.
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

/// What it has set, by the file.
fn set(file: &Path) -> Vec<u8> {
    Variables::of(file).value("Skep").unwrap().to_vec()
}

/// What the shell has said last that it has set.
fn said(console: &str) -> Vec<u8> {
    let values = console.split("set ").filter_map(|rest| rest.split_once('.')).map(|(value, _)| value);
    let last = values.filter(|value| value.len() == 4).filter_map(|value| u16::from_str_radix(value, 16).ok()).last();
    last.expect("it has set some").to_be_bytes().to_vec()
}

/// It goes on, and what it says that it has set is set, in that file. What it says is given back.
fn expect_set(machine: &mut Machine, file: &Path) -> Vec<u8> {
    (0..3).for_each(|_| drop(machine.wait_for("set ")));
    let line = machine.wait_for(".");
    let said = said(&line);
    assert!(set(file) >= said, "{line}");
    said
}

fn receive(folder: &Path, name: &str, words: &[&str]) -> Machine {
    let at = format!("unix:{}", text(&folder.join(format!("to-{name}"))));
    let control = folder.join(name);
    let fixed = ["receive", &at, "--log", "info", "--control", text(&control)];
    let mut machine = Builder::command(&[&fixed[..], words].concat()).start();
    machine.wait_for_log("waiting for a machine");
    machine
}

/// The flash is written while the machine goes: first to a process that has the same file of variables, then to one that makes its own. Firmware finds there
/// what was set, when it begins anew.
#[test]
fn the_uefi_shell_sets_variables_while_it_goes_to_other_processes() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let [disk, shared, own] = ["shell.img", "vars.fd", "own.fd"].map(|name| folder.join(name));
    std::fs::copy(firmware("shell.img"), &disk).unwrap();
    let code = either("OVMF_CODE_4M.fd", "AAVMF_CODE.fd");
    let machine = in_two_files(&scratch, &code, &either("OVMF_VARS_4M.fd", "AAVMF_VARS.fd"));
    let control = folder.join("a");
    let words = ["--disk", &format!("{},format=raw", text(&disk)), "--control", text(&control)];
    let mut machine = machine.args(&words).start();
    let prompt = |machine: &mut Machine| {
        machine.wait_for("startup.nsh");
        machine.send("\x1b");
        machine.wait_for("Shell>");
    };
    prompt(&mut machine);
    machine.send("fs0:\\set\r");
    expect_set(&mut machine, &shared);

    let mut next = receive(folder, "b", &[]);
    let migrate = |from: &str, to: &str| {
        let to = format!("unix:{}", text(&folder.join(format!("to-{to}"))));
        Builder::command(&["ctl", text(&folder.join(from)), "migrate", &to]).finish().expect_code(0);
    };
    migrate("a", "b");
    let end = machine.finish();
    end.expect_code(15);
    let before = said(&end.console);
    assert!(set(&shared) >= before);
    assert!(expect_set(&mut next, &shared) > before);

    machine = next;
    let mut next = receive(folder, "c", &["--firmware-vars", text(&own)]);
    migrate("b", "c");
    let end = machine.finish();
    end.expect_code(15);
    let left = set(&shared);
    assert!(left >= said(&end.console));
    let last = expect_set(&mut next, &own);
    assert!(last > left);

    next.send("\x03");
    next.wait_for("Shell>");
    next.send("reset\r");
    next.be_patient();
    prompt(&mut next);
    next.send("setvar Skep -guid 736b6570-0000-4000-8000-000000000000\r");
    next.wait_for(" - 0002 Bytes");
    next.send("reset -s\r");
    next.finish().expect_code(0);
    assert!(set(&own) >= last);
    // Who has left has not written since.
    assert_eq!(set(&shared), left);
}
