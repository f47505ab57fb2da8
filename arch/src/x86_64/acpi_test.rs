use skep_irq::LineDescription;

use super::*;
use crate::acpi::devices::{CmosRtc, FwCfg, I8042, Pvpanic, Registers, Serial};
use crate::acpi::{PciHost, SerialKind, iasl, link};
use crate::layout::GIB;
use crate::x86_64::layout::{ECAM, Layout, PCI_MMIO32};

fn edge(number: u32) -> LineDescription {
    LineDescription { number, trigger: Trigger::Edge, polarity: Polarity::High }
}

fn dsdt() -> Dsdt {
    let mut dsdt = Dsdt::new();
    let intx = |number| LineDescription { number, trigger: Trigger::Level, polarity: Polarity::Low };
    let lines: Vec<_> = (gsi::PCI_FIRST..gsi::COUNT).map(intx).collect();
    let pci = PciHost {
        ecam: ECAM,
        config_ports: Some(port::PCI_CONFIG),
        io: &port::PCI_FORWARDED,
        io_offset: 0,
        memory32: &[PCI_MMIO32],
        memory64: Layout::new(GIB, 40).unwrap().pci_mmio64,
        lines: &lines,
        lpc_bridge: Some(31),
    };
    let com1 = Serial { kind: SerialKind::Ns16550, number: 1, registers: port::COM1, line: edge(gsi::COM1) };
    dsdt.device(&com1)
        .device(&pci)
        .device(&CmosRtc { ports: port::RTC, line: edge(gsi::RTC) })
        .device(&I8042 { data_port: 0x60, keyboard: edge(gsi::KEYBOARD), mouse: Some(edge(gsi::MOUSE)) })
        .device(&Pvpanic(Registers::Ports(port::PVPANIC)))
        .device(&FwCfg(Registers::Ports(port::FW_CFG)));
    dsdt
}

fn cpus(count: u32) -> Vec<Cpu> {
    (0..count).map(|apic_id| Cpu { apic_id, present: true }).collect()
}

fn platform(cpus: &[Cpu]) -> Platform<'_> {
    let console = SerialConsole { kind: SerialKind::Ns16550, registers: port::COM1, line: edge(gsi::COM1) };
    Platform {
        cpus,
        ioapic_id: 0,
        overrides: &OVERRIDES,
        power: PowerManagement::default(),
        legacy: Legacy { cmos_rtc: true, ..Legacy::default() },
        console: Some(console),
        ecam: &[Ecam { segment: 0, region: ECAM }],
    }
}

fn find(tables: &[Table], signature: &[u8; 4]) -> Vec<u8> {
    let linked = link(tables.to_vec());
    let (bytes, _) = linked.place(0xe_1000).unwrap();
    let part = linked.parts.iter().find(|part| bytes[part.start..].starts_with(signature)).unwrap();
    bytes[part.clone()].to_vec()
}

/// Counts the MADT's entries of each type.
fn madt_entries(cpus: &[Cpu]) -> [usize; 11] {
    let madt = find(&tables(&platform(cpus), dsdt()), b"APIC");
    let mut counts = [0; 11];
    let mut rest = &madt[44..];
    while let [kind, length, ..] = *rest {
        counts[usize::from(kind)] += 1;
        rest = &rest[usize::from(length)..];
    }
    counts
}

#[test]
fn the_compiler_finds_nothing() {
    iasl::check(&link(tables(&platform(&cpus(2)), dsdt())));
}

#[test]
fn the_compiler_finds_nothing_in_a_machine_with_everything() {
    let cpus = cpus(300);
    let bare = Platform {
        legacy: Legacy { i8042: true, vga: true, cmos_rtc: true, aspm: true },
        power: PowerManagement {
            smi_command: Some(SmiCommand { port: 0xb2, enable: 2, disable: 3 }),
            timer_32_bit: true,
            ..PowerManagement::default()
        },
        console: None,
        ecam: &[],
        ..platform(&cpus)
    };
    iasl::check(&link(tables(&bare, Dsdt::new())));
}

#[test]
fn large_apic_ids_are_x2apic_ids() {
    assert_eq!(madt_entries(&cpus(255)), [255, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(madt_entries(&cpus(256)), [255, 1, 2, 0, 1, 0, 0, 0, 0, 1, 1]);
    assert_eq!(madt_entries(&cpus(1000)), [255, 1, 2, 0, 1, 0, 0, 0, 0, 745, 1]);
}

#[test]
fn processors_that_are_not_there_can_come_online() {
    let cpus =
        [Cpu { apic_id: 0, present: true }, Cpu { apic_id: 1, present: false }, Cpu { apic_id: 400, present: false }];
    let madt = find(&tables(&platform(&cpus), dsdt()), b"APIC");
    assert_eq!(madt[8], 5, "from this revision on a kernel looks at the flag");
    assert_eq!(madt[44..60], [0, 8, 0, 0, 1, 0, 0, 0, 0, 8, 1, 1, 2, 0, 0, 0]);
    assert_eq!(madt[60..76], [9, 16, 0, 0, 0x90, 1, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0]);
}

#[test]
fn tables_of_many_processors_fit_below_1m() {
    let linked = link(tables(&platform(&cpus(1024)), dsdt()));
    assert!(linked.tables.bytes.len() < 0xf000, "{}", linked.tables.bytes.len());
}

#[test]
fn a_kernel_is_told_what_not_to_look_for() {
    let flags = |legacy| {
        let cpus = cpus(1);
        let fadt = find(&tables(&Platform { legacy, ..platform(&cpus) }, dsdt()), b"FACP");
        u16::from_le_bytes([fadt[109], fadt[110]])
    };
    // Devices behind the LPC bridge; no i8042, no VGA, no ASPM, no CMOS RTC.
    assert_eq!(flags(Legacy::default()), 0b11_0101);
    assert_eq!(flags(Legacy { i8042: true, vga: true, cmos_rtc: true, aspm: true }), 0b00_0011);
}

#[test]
fn the_fixed_registers_are_where_the_chipset_has_them() {
    let cpus = cpus(1);
    let fadt = find(&tables(&platform(&cpus), dsdt()), b"FACP");
    let word = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
    assert_eq!(word(36) % 64, 0, "FACS is aligned");
    assert_eq!((word(48), word(56), word(64), word(76), word(80)), (0, 0x600, 0x604, 0x608, 0x620));
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6], "reset by port 0xcf9");
    // WBINVD, C1, no fixed sleep button, no fixed RTC status, reset register.
    assert_eq!(word(112), 0b100_0110_0101);
}

#[test]
fn power_off_is_a_state_of_the_root() {
    let dsdt = find(&tables(&platform(&cpus(1)), dsdt()), b"DSDT");
    let at = dsdt.windows(4).position(|name| name == b"_S5_").unwrap();
    assert_eq!(dsdt[at - 2..at + 11], *b"\x08\\_S5_\x12\x06\x04\0\0\0\0");
}
