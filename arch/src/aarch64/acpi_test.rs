use skep_hypervisor::aarch64::{GicVersion, RedistributorRegion};
use skep_irq::{LineDescription, Polarity, Trigger};

use super::*;
use crate::aarch64::layout::{FLASH_CODE, FLASH_VARS, FW_CFG, Layout, PCI_IO, PCI_MMIO32, PVPANIC, UART};
use crate::acpi::devices::{Event, Flash, FwCfg, Generation, GenericEvents, Pvpanic, Registers, Serial};
use crate::acpi::{PciHost, SerialKind, iasl, link};
use crate::layout::GIB;

fn line(spi: u32, trigger: Trigger) -> LineDescription {
    LineDescription { number: super::spi::FIRST + spi, trigger, polarity: Polarity::High }
}

fn console() -> SerialConsole {
    SerialConsole { kind: SerialKind::Pl011, registers: UART, line: line(spi::UART, Trigger::Level) }
}

fn dsdt(layout: &Layout) -> Dsdt {
    let lines: Vec<_> = (spi::PCI_FIRST..spi::PCI_FIRST + 4).map(|spi| line(spi, Trigger::Level)).collect();
    let pci = PciHost {
        ecam: layout.ecam,
        config_ports: None,
        io: &[AddressRange::new(0, PCI_IO.size)],
        io_offset: PCI_IO.base,
        memory32: &[PCI_MMIO32],
        memory64: layout.pci_mmio64,
        lines: &lines,
    };
    let SerialConsole { kind, registers, line: uart } = console();
    let mut dsdt = Dsdt::new();
    dsdt.device(&Serial { kind, number: 1, registers, line: uart })
        .device(&Flash { number: 0, memory: FLASH_CODE })
        .device(&Flash { number: 1, memory: FLASH_VARS })
        .device(&FwCfg(Registers::Memory(FW_CFG)))
        .device(&Pvpanic(Registers::Memory(PVPANIC)))
        .device(&GenericEvents {
            events: vec![
                Event { line: line(spi::GED_POWER, Trigger::Edge), device: GenericEvents::POWER_BUTTON },
                Event { line: line(spi::GED_GENERATION, Trigger::Edge), device: Generation::NAME },
            ],
        })
        .device(&Generation)
        .device(&pci);
    dsdt
}

fn check(version: GicVersion, cpus: u32, its: bool, ecam: bool) -> Vec<Table> {
    let layout = Layout::new(GIB, 40, version, cpus).unwrap();
    let affinities: Vec<u64> = (0..cpus).map(|index| crate::aarch64::mpidr(version, index)).collect();
    let segments = [Ecam { segment: 0, region: layout.ecam }];
    let platform = Platform {
        cpus: &affinities,
        pmu: cpus == 1,
        gic: &layout.gic_config(its),
        console: Some(console()),
        ecam: if ecam { &segments } else { &[] },
    };
    let tables = tables(&platform, dsdt(&layout));
    iasl::check(&link(tables.clone()));
    tables
}

fn signatures(tables: &[Table]) -> Vec<String> {
    tables.iter().map(|table| String::from_utf8(table.signature().to_vec()).unwrap()).collect()
}

#[test]
fn the_compiler_finds_nothing_with_gicv3() {
    let tables = check(GicVersion::V3, 130, true, true);
    assert_eq!(signatures(&tables), ["DSDT", "FACP", "APIC", "GTDT", "SPCR", "DBG2", "MCFG", "IORT"]);
}

#[test]
fn the_compiler_finds_nothing_with_gicv2() {
    let tables = check(GicVersion::V2, 8, false, false);
    assert_eq!(signatures(&tables), ["DSDT", "FACP", "APIC", "GTDT", "SPCR", "DBG2"]);
    assert_eq!(signatures(&check(GicVersion::V3, 1, false, true)).last().unwrap(), "MCFG");
    assert_eq!(signatures(&check(GicVersion::V3, 1, true, false)).last().unwrap(), "IORT");
}

#[test]
fn every_redistributor_is_told() {
    let gic = GicConfig::V3 {
        distributor: 1 << 16,
        redistributors: vec![
            RedistributorRegion { base: 1 << 20, count: 3 },
            RedistributorRegion { base: 1 << 32, count: 1 },
        ],
        its: None,
    };
    let platform = Platform { cpus: &[0, 1, 2, 3], pmu: true, gic: &gic, console: None, ecam: &[] };
    let bytes = link(vec![madt(&platform)]).place(0).unwrap().0;
    let mut found = Vec::new();
    let mut rest = &bytes[44..bytes.len().min(44 + 24 + 4 * 80 + 2 * 16)];
    while let [kind, length, ..] = *rest {
        found.push(kind);
        if kind == 0x0b {
            assert_eq!(u32::from_le_bytes(rest[20..24].try_into().unwrap()), 23);
        }
        rest = &rest[usize::from(length)..];
    }
    assert_eq!(found, [0x0c, 0x0b, 0x0b, 0x0b, 0x0b, 0x0e, 0x0e]);
}
