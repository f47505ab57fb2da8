//! SeaBIOS as Debian ships it: what boots as on a PC without UEFI.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::Path;

use support::disk::{boot_disk, words};
use support::{Builder, base64, firmware};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// GRUB for a PC from NVMe and from virtio-blk, in the order that SeaBIOS is told. It shows its menu on the serial port, and hears who answers there.
#[test]
fn seabios_boots_disks_in_the_order_that_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str, device: &str, index: &str| {
        let script = format!("echo from {name}");
        let menu = format!("{}\nset timeout=-1", words(&format!("loglevel=5 skep.script={}", base64(&script))));
        let path = folder.path().join(name);
        if !path.exists() {
            boot_disk(folder.path(), name, &menu);
        }
        format!("{},format=raw,device={device},bootindex={index}", text(&path))
    };
    let bios = firmware("bios-256k.bin");
    for (order, first) in [(["1", "0"], "virtio"), (["0", "1"], "nvme")] {
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
        for complaint in ["ACPI Error", "ACPI Warning", "ACPI BIOS", "Firmware Bug", "BUG:", "nobody cared"] {
            assert!(!end.console.contains(complaint), "{}", end.console);
        }
    }
}

/// An old card's option ROM, whose file has no ids of the card.
#[test]
fn ipxe_starts_from_a_cards_option_rom() {
    let (bios, rom) = (firmware("bios-256k.bin"), firmware("pxe-ne2k_pci.rom"));
    let net = format!("tap=skep1,mac=02:00:00:00:00:07,device=ne2k_pci,bootindex=0,romfile={}", text(&rom));
    let words = ["run", "--memory", "128M", "--firmware", text(&bios), "--net", &net];
    let mut machine = Builder::command(&words).start();
    machine.wait_for("SeaBIOS (version");
    machine.wait_for("Booting from ROM");
    machine.wait_for("Open Source Network Boot Firmware");
    machine.wait_for("net0: 02:00:00:00:00:07 using rtl8029 on 0000:00:01.0");
}

/// It shows itself on the serial port, and hears the key that ends it: the machine is reset.
#[test]
fn memtest86_tests_memory() {
    let folder = tempfile::tempdir().unwrap();
    let disk = boot_disk(folder.path(), "boot.img", "set default=memtest");
    let (bios, disk) = (firmware("bios-256k.bin"), format!("{},format=raw", text(&disk)));
    let words = ["run", "--memory", "128M", "--on-reset", "exit", "--firmware", text(&bios), "--disk", &disk];
    let mut machine = Builder::command(&words).start();
    machine.wait_for("skep: GRUB on i386-pc");
    machine.wait_for("Memtest86+");
    machine.wait_for("Testing");
    machine.send("\x1b");
    machine.finish().expect_code(10);
}
