//! What a stock Debian kernel makes of the machines' PCI hierarchy.

mod support;

use support::{Builder, is_x86_64};

/// Root ports that the machine is given, the first at this device number.
const PORTS: u8 = 4;
const FIRST_PORT: u8 = 0x10;

#[test]
fn debian_finds_the_host_bridge_and_the_root_ports() {
    let end = Builder::debian().args(&["--pci-ports", "4"]).cmdline("skep.dmesg").finish();
    end.expect_code(0);
    if is_x86_64() {
        end.expect_console("PCI: MMCONFIG for domain 0000 [bus 00-04] at [mem 0xb0000000-0xb04fffff]")
            .expect_console("pci 0000:00:00.0: [8086:29c0] type 00 class 0x060000")
            .expect_console("pci 0000:00:1f.0: [8086:2918] type 00 class 0x060100")
            .expect_console("_OSC: OS now controls [PCIeHotplug PME PCIeCapability]");
    } else {
        end.expect_console("ECAM at [mem 0x4010000000-0x40104fffff] for [bus 00-04]")
            .expect_console("pci 0000:00:00.0: [1b36:0008] type 00 class 0x060000");
    }
    for port in 0..PORTS {
        let device = FIRST_PORT + port;
        end.expect_console(&format!("pci 0000:00:{device:02x}.0: [1b36:000c] type 01 class 0x060400"));
        end.expect_console(&format!("pci 0000:00:{device:02x}.0: PCI bridge to [bus {:02x}]", port + 1));
        end.expect_console(&format!(
            "pcieport 0000:00:{device:02x}.0: pciehp: Slot #{} AttnBtn+ PwrCtrl+ MRL- AttnInd+ PwrInd+ HotPlug+ Surprise-",
            port + 1
        ));
    }
    let about_pci = end.console.lines().filter(|line| line.to_lowercase().contains("pci"));
    for line in about_pci {
        for word in [
            "fail",
            "error",
            "warn",
            "can't",
            "no space",
            "conflict",
            "invalid",
            "unable",
            "firmware bug",
            "bogus",
            "timeout",
        ] {
            assert!(!line.to_lowercase().contains(word), "{line}");
        }
    }
}

#[test]
fn the_ports_have_slots_and_interrupt_by_messages() {
    let mut machine = Builder::debian().args(&["--pci-ports", "4"]).cmdline("skep.action=shell").start();
    machine.wait_for("# ");
    machine.send("cd /sys/bus/pci/slots; echo slots *; cd ../devices/0000:00:10.0\n");
    machine.wait_for("slots 1 2 3 4");
    machine.send("echo link $(cat max_link_speed) $(cat max_link_width)\n");
    machine.wait_for("link 16.0 GT/s PCIe 4");
    machine.send("grep pciehp /proc/interrupts; poweroff -f\n");
    let end = machine.finish();
    end.expect_code(0);
    let lines: Vec<_> = end.console.lines().filter(|line| line.contains("pciehp") && line.contains("MSI")).collect();
    assert_eq!(lines.len(), usize::from(PORTS), "{}", end.console);
    for line in lines {
        let count = line.split_whitespace().nth(1).and_then(|count| count.parse::<u32>().ok());
        assert!(count.is_some_and(|count| count > 0), "a command that completes interrupts: {line}");
    }
}
