//! Interrupt controllers and devices.

use bare::arch::fdt::{Fdt, Node};
use bare::arch::gic;
use bare::arch::memory::{read8, read32, read64, write16};
use bare::{problem, say};
use skep_guest_protocol::Gic;

/// The GIC of the tree: its version, the distributor's address, and that of the CPU interface or of the first redistributors.
pub fn gic(fdt: &Fdt) -> Option<(Gic, u64, u64)> {
    let kinds = [("arm,gic-v3", Gic::V3), ("arm,gic-400", Gic::V2), ("arm,cortex-a15-gic", Gic::V2)];
    kinds.into_iter().find_map(|(name, gic)| {
        let node = fdt.compatible(name)?;
        Some((gic, node.range(0)?.0, node.range(1)?.0))
    })
}

/// Where the ITS is.
pub fn its(fdt: &Fdt) -> Option<u64> {
    Some(fdt.compatible("arm,gic-v3-its")?.range(0)?.0)
}

/// Where the v2m frame is, its first INTID, and how many it has.
pub fn v2m(fdt: &Fdt) -> Option<(u64, u64, u32)> {
    const MSI_TYPER: u64 = 8;
    let (address, _) = fdt.compatible("arm,gic-v2m-frame")?.range(0)?;
    // SAFETY: the device tree says that the frame is there.
    let typer = unsafe { read32(address + MSI_TYPER) };
    Some((address, (typer >> 16 & 0x3ff).into(), typer & 0x3ff))
}

/// Say which interrupt controllers there are.
pub fn describe_interrupt_controllers(fdt: &Fdt) {
    let Some((kind, distributor, interface)) = gic(fdt) else {
        problem!("the device tree has no GIC");
        return;
    };
    let (version, other) = if kind == Gic::V3 { (3, "redistributors") } else { (2, "CPU interface") };
    let interrupts = gic::interrupts(distributor);
    say!(
        "interrupt controller: GICv{version}, distributor at {distributor:#x}, {interrupts} interrupts, {other} at {interface:#x}"
    );
    if let Some(address) = its(fdt) {
        const GITS_TYPER: u64 = 8;
        // SAFETY: the device tree says that the ITS is there.
        say!("interrupt controller: ITS at {address:#x}, type {:#x}", unsafe { read64(address + GITS_TYPER) });
    }
    if let Some((address, first, count)) = v2m(fdt) {
        say!("interrupt controller: v2m at {address:#x}, {count} interrupts from {first}");
    }
}

/// The identification registers of an Arm PrimeCell: part number, and whether it is one.
fn prime_cell(address: u64) -> (u32, bool) {
    // SAFETY: reads registers that tell what the device is.
    let byte = |offset| unsafe { read32(address + offset) } & 0xff;
    let identification = [0xff0, 0xff4, 0xff8, 0xffc].map(byte);
    (byte(0xfe0) | (byte(0xfe4) & 0xf) << 8, identification == [0x0d, 0xf0, 0x05, 0xb1])
}

/// Say which devices there are.
pub fn describe(fdt: &Fdt) {
    for node in fdt.nodes() {
        let Some((address, _)) = node.range(0) else { continue };
        for (name, part) in [("arm,pl011", 0x11), ("arm,pl031", 0x31), ("arm,pl061", 0x61)] {
            if node.is_compatible(name) {
                describe_prime_cell(&node, name, address, part);
            }
        }
        if node.is_compatible("qemu,fw-cfg-mmio") {
            const SELECTOR: u64 = 8;
            // SAFETY: selects the signature, and reads it.
            let signature = unsafe {
                write16(address + SELECTOR, 0);
                [0; 4].map(|_: u8| read8(address))
            };
            say!("device: fw_cfg at {address:#x}, signature {}", str::from_utf8(&signature).unwrap_or("none"));
        } else if node.is_compatible("qemu,pvpanic-mmio") {
            // SAFETY: reads which events it takes.
            say!("device: pvpanic at {address:#x}, events {:#x}", unsafe { read8(address) });
        } else if node.is_compatible("pci-host-ecam-generic") {
            say!("device: PCI host with ECAM at {address:#x}");
        } else if node.is_compatible("cfi-flash") {
            say!("device: flash at {address:#x}");
        }
    }
}

fn describe_prime_cell(node: &Node, name: &str, address: u64, part: u32) {
    let (found, is_prime_cell) = prime_cell(address);
    let intid = node.interrupt().map_or(0, |interrupt| interrupt.intid);
    say!("device: {name} at {address:#x}, part {found:#x}, INTID {intid}");
    if found != part || !is_prime_cell {
        problem!("{name} does not identify itself");
    }
    if part == 0x31 {
        // SAFETY: reads the time.
        let seconds = unsafe { read32(address) };
        let (year, month, day) = date(seconds / 86400);
        let [hour, minute, second] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
        say!("rtc: {year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
    }
}

/// Seconds of the day, by the RTC.
pub fn seconds(fdt: &Fdt) -> u32 {
    let rtc = fdt.compatible("arm,pl031").and_then(|node| node.range(0));
    // SAFETY: reads the time of the RTC that the device tree says is there.
    rtc.map_or(0, |(address, _)| unsafe { read32(address) } % 86400)
}

/// The date, so many days after the first of January 1970.
fn date(days: u32) -> (u32, u32, u32) {
    // Years begin in March here, so that leap days come last. 719468 days before 1970, the era of 400 years began.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}
