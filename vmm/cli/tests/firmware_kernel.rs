//! Debian's UEFI firmware, unmodified, of one release and of a newer one, starts a kernel that it is handed. Linux finds the machine described by ACPI
//! without a fault.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use support::warnings::{SHOWN, expect_no_fault};
use support::{Builder, again, either, image, is_x86_64, text};

/// Is handed Debian's kernel, of which the generic one alone has a driver for the generation id.
fn with_kernel(words: &[&str]) -> Builder {
    let console = if is_x86_64() { "ttyS0" } else { "ttyAMA0" };
    let kernel = image(if is_x86_64() { "vmlinuz-generic" } else { "Image-generic" });
    let initrd = image("initramfs.cpio.gz");
    let kernel = ["--kernel", text(&kernel), "--initrd", text(&initrd)];
    Builder::command(words).args(&kernel).cmdline(&format!("console={console} panic=-1 acpi=force {SHOWN}"))
}

/// Linux has the UUID that it is given, and hears of a new generation id, on command and as a clone, which has variables of its own.
#[test]
fn uefi_starts_a_kernel_that_it_is_handed() {
    let folder = tempfile::tempdir().unwrap();
    let [socket, kept] = ["vm.sock", "vars.fd"].map(|name| folder.path().join(name));
    let uuid = "736b6570-0001-4002-8003-000000000004";
    let code = either("OVMF_CODE_4M.fd", "AAVMF_CODE.fd");
    let vars = format!("{},template={}", text(&kept), text(&either("OVMF_VARS_4M.fd", "AAVMF_VARS.fd")));
    let words = ["run", "--memory", "512M", "--firmware", text(&code), "--firmware-vars", &vars];
    let mut machine = with_kernel(&words)
        .args(&["--cpus", "2", "--uuid", uuid, "--control", text(&socket)])
        .script(
            "ls /sys/firmware/acpi/tables | tr '\\n' ' '; [ -d /sys/firmware/efi ]
            echo uuid $(cat /sys/class/dmi/id/product_uuid); echo it may be copied
            heard() { until [ $(dmesg | grep -c 'due to virtual machine fork') = $1 ]; do usleep 100000; done; }
            heard 1; echo a new id; heard 2",
        )
        .start();
    machine.wait_for(&format!("uuid {uuid}"));
    machine.wait_for("it may be copied");
    Builder::command(&["ctl", text(&socket), "renew-generation"]).finish().expect_code(0);
    machine.wait_for("a new id");
    let variables = folder.path().join("clone.fd");
    let (first, clone) = again(machine, folder.path(), &["--clone", "--firmware-vars", text(&variables)]);
    first.expect_console("skep: cpus 2").expect_console("FACP");
    expect_no_fault(&first);
    let end = clone.finish();
    end.expect_code(0).expect_console("skep: script 0");
    assert!(std::fs::read(&variables).unwrap() == std::fs::read(kept).unwrap());
}

/// In two files of a newer release, with memory on both sides of what lies below 4 GiB, and with processors that are not all there; on arm64 ACPI alone tells
/// that those of a socket share a cache.
#[test]
fn newer_uefi_starts_a_kernel_with_much_memory_and_room_for_processors() {
    let folder = tempfile::tempdir().unwrap();
    let code = either("newer/OVMF_CODE_4M.fd", "newer/AAVMF_CODE.no-secboot.fd");
    let template = either("newer/OVMF_VARS_4M.fd", "newer/AAVMF_VARS.fd");
    let vars = format!("{},template={}", text(&folder.path().join("vars.fd")), text(&template));
    let words = ["run", "--memory", "5G", "--firmware", text(&code), "--firmware-vars", &vars];
    let shared = "echo shared by $(cat /sys/devices/system/cpu/cpu1/cache/index*/shared_cpu_list | tail -n 1):";
    let end = with_kernel(&words).args(&["--cpus", "3,max=6,sockets=2,cores=3"]).script(shared).finish();
    end.expect_code(0).expect_console("skep: cpus 3");
    if !is_x86_64() {
        end.expect_console("shared by 0-2:");
    }
    let kib = end.memory_kib();
    assert!(kib > 4_700_000, "{kib} KiB");
    expect_no_fault(&end);
}

/// In one file, with variables of its own or none.
#[test]
fn uefi_in_one_file_of_a_newer_release_starts_a_kernel() {
    let code = either("newer/OVMF.fd", "newer/QEMU_EFI.fd");
    let end = with_kernel(&["run", "--memory", "512M", "--firmware", text(&code)]).finish();
    end.expect_code(0).expect_console("skep: cpus 1");
    expect_no_fault(&end);
}
