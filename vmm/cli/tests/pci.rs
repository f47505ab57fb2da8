//! What a stock Debian kernel makes of the machines' PCI hierarchy.

mod support;

use support::{Builder, is_x86_64};

/// Root ports of a machine, the first at this device number.
const PORTS: u8 = 4;
const FIRST_PORT: u8 = 0x10;

#[test]
fn debian_finds_the_host_bridge_and_the_root_ports() {
    let end = Builder::debian().cmdline("skep.dmesg").finish();
    end.expect_code(0);
    if is_x86_64() {
        end.expect_console("PCI: MMCONFIG for domain 0000 [bus 00-ff] at [mem 0xb0000000-0xbfffffff]")
            .expect_console("pci 0000:00:00.0: [8086:29c0] type 00 class 0x060000")
            .expect_console("pci 0000:00:1f.0: [8086:2918] type 00 class 0x060100")
            .expect_console("_OSC: OS now controls [PCIeHotplug PME PCIeCapability]");
    } else {
        end.expect_console("ECAM at [mem 0x4010000000-0x401fffffff] for [bus 00-ff]")
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
        for word in
            ["fail", "error", "warn", "can't", "no space", "conflict", "invalid", "unable", "firmware bug", "bogus"]
        {
            assert!(!line.to_lowercase().contains(word), "{line}");
        }
    }
}
