//! Debian's firmware, unmodified: the UEFI builds of both architectures start a kernel that they are handed.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::{Path, PathBuf};

use support::{Builder, Finished, firmware, image, is_x86_64, usual_kernel};
use tempfile::TempDir;

fn code() -> PathBuf {
    firmware(if is_x86_64() { "OVMF_CODE_4M.fd" } else { "AAVMF_CODE.fd" })
}

fn template() -> PathBuf {
    firmware(if is_x86_64() { "OVMF_VARS_4M.fd" } else { "AAVMF_VARS.fd" })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Firmware with variables in `folder`.
fn machine(folder: &TempDir) -> Builder {
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
    Builder::command(&["run", "--memory", "512M", "--firmware", text(&code()), "--firmware-vars", &vars])
}

/// Which is handed Debian's kernel.
fn with_kernel(builder: Builder) -> Builder {
    let console = if is_x86_64() { "ttyS0" } else { "ttyAMA0" };
    let (kernel, initrd) = (image(usual_kernel()), image("initramfs.cpio.gz"));
    let words = ["--kernel", text(&kernel), "--initrd", text(&initrd)];
    builder.args(&words).cmdline(&format!("console={console} loglevel=5 panic=-1 acpi=force"))
}

fn expect_no_fault(end: &Finished) {
    for words in ["ACPI Error", "ACPI Warning", "ACPI BIOS", "Firmware Bug", "BUG:", "nobody cared"] {
        let line = end.console.lines().find(|line| line.contains(words));
        assert!(line.is_none(), "{line:?} is among the kernel's warnings");
    }
}

/// How often firmware's variables have a name in them.
fn count(folder: &TempDir, name: &str) -> usize {
    let name: Vec<u8> = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    let bytes = std::fs::read(folder.path().join("vars.fd")).unwrap();
    bytes.windows(name.len()).filter(|window| *window == name).count()
}

/// Linux finds the machine described by ACPI without a fault. What firmware stores is in the file, though skep is killed, and the next guest goes on
/// from there.
#[test]
fn uefi_starts_a_kernel_and_keeps_what_it_stores() {
    let folder = tempfile::tempdir().unwrap();
    let mut killed = with_kernel(machine(&folder)).cmdline("skep.action=wait").start();
    killed.wait_for("skep: cpus");
    drop(killed);
    let stored = count(&folder, "BootOrder");
    assert!(stored > 0, "firmware has stored no boot order");

    let end = with_kernel(machine(&folder))
        .args(&["--cpus", "2"])
        .script("ls /sys/firmware/acpi/tables | tr '\\n' ' '; [ -d /sys/firmware/efi ]; [ -e /sys/firmware/dmi/tables/DMI ]")
        .finish();
    end.expect_code(0).expect_console("skep: script 0").expect_console("skep: cpus 2").expect_console("FACP");
    expect_no_fault(&end);
    assert_eq!(count(&folder, "BootOrder"), stored, "firmware finds what it has stored, and stores nothing anew");
}

#[test]
fn firmware_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.fd");
    let whole = std::fs::read(template()).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let code = code();
    let words = ["run", "--firmware", text(&code), "--firmware-vars", text(&cut)];
    Builder::command(&words).finish().expect_code(1).expect_log("and should have");
    let kernel = image(usual_kernel());
    Builder::command(&["run", "--firmware", text(&kernel)]).finish().expect_code(1);
    if is_x86_64() {
        // Only there is firmware that asks for SMM.
        let secure = firmware("OVMF_CODE_4M.secboot.fd");
        let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template()));
        let words = ["run", "--firmware", text(&secure), "--firmware-vars", &vars];
        Builder::command(&words).finish().expect_code(1).expect_log("system management mode");
    }
}
