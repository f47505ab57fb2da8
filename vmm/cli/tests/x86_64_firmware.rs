//! SeaBIOS as Debian ships it: what boots as on a PC without UEFI.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use support::disk::{boot_disk, words};
use support::warnings::{SHOWN, expect_no_fault};
use support::{Builder, base64, firmware, text};

/// GRUB for a PC from NVMe and from virtio-blk, in the order that SeaBIOS is told, of one release and of a newer one. It shows its menu on the serial
/// port, and hears who answers there.
#[test]
fn seabios_boots_disks_in_the_order_that_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str, device: &str, index: &str| {
        let script = format!("echo from {name}");
        let menu = format!("{}\nset timeout=-1", words(&format!("{SHOWN} skep.script={}", base64(&script))));
        let path = folder.path().join(name);
        if !path.exists() {
            boot_disk(folder.path(), name, &menu);
        }
        format!("{},format=raw,device={device},bootindex={index}", text(&path))
    };
    for (bios, order, first) in [("bios-256k.bin", ["1", "0"], "virtio"), ("newer/bios-256k.bin", ["0", "1"], "nvme")] {
        let bios = firmware(bios);
        let disks = [disk("nvme", "nvme", order[0]), disk("virtio", "virtio-blk", order[1])];
        let words = ["run", "--firmware", text(&bios), "--disk", &disks[0], "--disk", &disks[1]];
        let mut machine = Builder::command(&words).start();
        machine.wait_for("SeaBIOS (version");
        machine.wait_for("skep: GRUB on i386-pc");
        machine.wait_for("A kernel and its init");
        machine.send("\r");
        machine.wait_for("skep: hello from Debian guest init");
        let end = machine.finish();
        end.expect_code(0).expect_console(&format!("from {first}")).expect_console("skep: script 0");
        expect_no_fault(&end);
    }
}

/// It shows itself on the serial port, and hears the key that ends it: the machine is reset. What SeaBIOS says on its debug port is in the log.
#[test]
fn memtest86_tests_memory() {
    let folder = tempfile::tempdir().unwrap();
    let disk = boot_disk(folder.path(), "boot.img", "set default=memtest");
    let (bios, disk) = (firmware("bios-256k.bin"), format!("{},format=raw", text(&disk)));
    let words =
        ["--memory", "128M", "--on-reset", "exit", "--log", "debug", "--firmware", text(&bios), "--disk", &disk];
    let mut machine = Builder::command(&["run"]).args(&words).start();
    machine.wait_for("skep: GRUB on i386-pc");
    machine.wait_for("Memtest86+");
    machine.wait_for("Testing");
    machine.send("\x1b");
    machine.finish().expect_code(10).expect_log(" firmware] SeaBIOS (version");
}
