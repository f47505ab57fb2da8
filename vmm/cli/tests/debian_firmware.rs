//! Debian's own system, booted by firmware and GRUB to a login, as a PC or an arm64 server does: its tools find firmware's variables to last, and the power
//! button ends it.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::path::{Path, PathBuf};

use support::{Builder, Machine, debian_disk, either, firmware, is_x86_64, text};

/// Firmware with the disk as a device of that kind.
struct Host {
    disk: PathBuf,
    socket: PathBuf,
    vars: String,
}

impl Host {
    fn new(scratch: &Path) -> Self {
        let template = either("OVMF_VARS_4M.fd", "AAVMF_VARS.fd");
        let vars = format!("{},template={}", text(&scratch.join("vars.fd")), text(&template));
        Self { disk: debian_disk(scratch), socket: scratch.join("vm.sock"), vars }
    }

    fn machine(&self, code: &Path, device: &str) -> Builder {
        let disk = format!("{},format=raw,device={device}", text(&self.disk));
        let words = ["run", "--memory", "512M", "--firmware", text(code), "--disk", &disk];
        Builder::command(&words).args(&["--control", text(&self.socket)])
    }

    fn uefi(&self, device: &str) -> Machine {
        let code = either("OVMF_CODE_4M.fd", "AAVMF_CODE.fd");
        self.machine(&code, device).args(&["--firmware-vars", &self.vars]).start()
    }

    /// Looks at what the system had to say, and presses the power button.
    fn power_off(&self, mut machine: Machine) {
        let complaints = machine.sh("dmesg --level emerg,alert,crit,err");
        assert_eq!(complaints, "", "the kernel's log");
        let faults = machine.sh("dmesg --level warn | grep -iE 'acpi|firmware bug|nobody cared' || true");
        assert_eq!(faults, "", "the kernel's warnings");
        assert_eq!(machine.sh("systemctl --failed --no-legend"), "", "units that failed");
        // Whoever listens to the button may not be there yet.
        machine.sh("until journalctl -u systemd-logind | grep -q 'Watching system buttons'; do sleep 1; done");
        Builder::command(&["ctl", text(&self.socket), "power-button"]).finish().expect_code(0);
        machine.finish().expect_code(0).expect_console("reboot: Power down");
    }
}

/// GRUB boots it to a login, from the disk that it should.
fn log_in(machine: &mut Machine, platform: &str, root: &str) {
    // It may be after the end of the system that ran before.
    machine.be_patient();
    machine.wait_for(&format!("skep: GRUB on {platform}"));
    machine.log_in();
    assert_eq!(machine.sh("findmnt -no SOURCE,FSTYPE /"), format!("{root} ext4"));
}

/// What efibootmgr tells, by the words that its lines begin with.
fn boot(machine: &mut Machine) -> impl Fn(&str) -> Option<String> + use<> {
    let said = machine.sh("efibootmgr");
    move |word: &str| said.lines().find_map(|line| line.strip_prefix(word)).map(|rest| rest.trim().to_owned())
}

/// From NVMe: an entry is made, put at the end of the order, and booted once, by a reboot of the machine. From virtio-blk, by the same variables in another
/// process: the entry, first in the order then, is the same disk's.
#[test]
fn debian_boots_by_firmware_and_what_efibootmgr_sets_lasts() {
    let scratch = tempfile::tempdir().unwrap();
    let host = Host::new(scratch.path());
    let platform = if is_x86_64() { "x86_64-efi" } else { "arm64-efi" };
    let loader = if is_x86_64() { r"\EFI\BOOT\BOOTX64.EFI" } else { r"\EFI\BOOT\BOOTAA64.EFI" };
    let mut machine = host.uefi("nvme");
    log_in(&mut machine, platform, "/dev/nvme0n1p3");
    let first = boot(&mut machine);
    let (current, order) = (first("BootCurrent:").unwrap(), first("BootOrder:").unwrap());
    assert!(first("BootNext:").is_none() && order.split(',').any(|number| number == current), "{order}");
    machine
        .sh(&format!("efibootmgr --create-only --disk /dev/nvme0n1 --part 1 --label 'An entry' --loader '{loader}'"));
    let made = machine.sh("efibootmgr | sed -n 's/^Boot\\(....\\).* An entry.*/\\1/p'");
    assert!(made.len() == 4 && made != current && !order.contains(&made), "{made} is new");
    machine.sh(&format!("efibootmgr --bootorder {order},{made} && efibootmgr --bootnext {made}"));
    assert_eq!(boot(&mut machine)("BootNext:"), Some(made.clone()));
    machine.send("reboot\n");

    log_in(&mut machine, platform, "/dev/nvme0n1p3");
    let second = boot(&mut machine);
    assert_eq!((second("BootCurrent:"), second("BootNext:")), (Some(made.clone()), None), "it was booted once");
    assert_eq!(second("BootOrder:"), Some(format!("{order},{made}")));
    machine.sh(&format!("efibootmgr --bootorder {made},{order}"));
    host.power_off(machine);

    let mut machine = host.uefi("virtio-blk");
    log_in(&mut machine, platform, "/dev/vda3");
    let third = boot(&mut machine);
    assert_eq!((third("BootCurrent:"), third("BootNext:")), (Some(made.clone()), None));
    assert!(third("BootOrder:").unwrap().starts_with(&format!("{made},")));
    assert!(third(&format!("Boot{made}")).unwrap().contains("An entry"));
    host.power_off(machine);

    if is_x86_64() {
        // The same disk, as a PC without UEFI boots it: only there is SeaBIOS.
        for (device, root) in [("virtio-blk", "/dev/vda3"), ("nvme", "/dev/nvme0n1p3")] {
            let mut machine = host.machine(&firmware("bios-256k.bin"), device).start();
            machine.wait_for("SeaBIOS (version");
            log_in(&mut machine, "i386-pc", root);
            machine.sh("[ ! -e /sys/firmware/efi ]");
            host.power_off(machine);
        }
    }
}
