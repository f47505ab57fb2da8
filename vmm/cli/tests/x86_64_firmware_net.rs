//! iPXE's option ROMs, which SeaBIOS starts: there is no such firmware for aarch64. dnsmasq of the host is on a tap interface, in a network namespace of
//! their own.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;

use support::network::{self, Server};
use support::{Builder, Machine, base64, firmware, image, text};
use tempfile::TempDir;

const MAC: &str = "02:00:00:00:00:07";

/// A machine whose card, with iPXE in its ROM, is all that it may boot from, on the interface `tap`, and the network, which has the file `boot.ipxe`.
fn boot(folder: &TempDir, tap: &str, card: &str, script: &str) -> (Machine, Server) {
    network::leave();
    let files = folder.path().join("files");
    fs::create_dir_all(&files).unwrap();
    fs::write(files.join("boot.ipxe"), format!("#!ipxe\n{script}\n")).unwrap();
    let bios = firmware("bios-256k.bin");
    let net = format!("tap={tap},mac={MAC},bootindex=0,{card}");
    let words = ["run", "--log", "info", "--memory", "256M", "--firmware", text(&bios), "--net", &net];
    let mut machine = Builder::command(&words).start();
    // The interface is there now.
    machine.wait_for_log("`net0` is at");
    network::reach(tap);
    let server = Server::dnsmasq(tap, &files, &folder.path().join("leases"), &["--dhcp-boot=boot.ipxe"]);
    machine.wait_for("SeaBIOS (version");
    machine.wait_for("Booting from ROM");
    machine.wait_for("Open Source Network Boot Firmware");
    (machine, server)
}

/// The host has handed the card an address.
fn expect_lease(folder: &TempDir) {
    let leases = fs::read_to_string(folder.path().join("leases")).unwrap();
    assert!(leases.contains(MAC) && leases.contains(" 192.168.79."), "{leases}");
}

/// An old card, whose ROM's file has no ids of the card: a script comes over it. A kernel would take a while, by an exit for each few bytes.
#[test]
fn ipxe_boots_a_script_over_an_old_card() {
    let folder = tempfile::tempdir().unwrap();
    let card = format!("device=ne2k_pci,romfile={}", text(&firmware("pxe-ne2k_pci.rom")));
    let script = "echo skep: the script has ${net0/ip} from ${next-server} by ${net0/chip}\nprompt";
    let (mut machine, _server) = boot(&folder, "skep1", &card, script);
    machine.wait_for(&format!("net0: {MAC} using rtl8029 on 0000:00:01.0"));
    machine.wait_for("skep: the script has 192.168.79.");
    machine.wait_for("from 192.168.79.1 by rtl8029");
    expect_lease(&folder);
}

/// Linux over virtio-net: kernel and initramfs, by a script.
#[test]
fn ipxe_boots_linux_over_virtio_net() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    for name in ["vmlinuz", "initramfs.cpio.gz"] {
        fs::copy(image(name), files.join(name)).unwrap();
    }
    let words = format!("console=ttyS0 quiet panic=-1 skep.script={}", base64("echo booted by iPXE"));
    let script = format!("kernel vmlinuz initrd=initramfs.cpio.gz {words}\ninitrd initramfs.cpio.gz\nboot");
    let card = format!("romfile={}", text(&firmware("pxe-virtio.rom")));
    let (mut machine, _server) = boot(&folder, "skep2", &card, &script);
    machine.wait_for("skep: hello from Debian guest init");
    machine.finish().expect_code(0).expect_console("booted by iPXE").expect_console("skep: script 0");
    expect_lease(&folder);
}
