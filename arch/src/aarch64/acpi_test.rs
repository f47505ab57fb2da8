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
        lpc_bridge: None,
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
        topology: Topology::new(1, cpus.div_ceil(2), 2).unwrap(),
        pmu: cpus == 1,
        // As of a Cortex-A72.
        caches: Caches(0x0a20_0023),
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
    assert_eq!(signatures(&tables), ["DSDT", "FACP", "APIC", "GTDT", "PPTT", "SPCR", "DBG2", "MCFG", "IORT"]);
}

#[test]
fn the_compiler_finds_nothing_with_gicv2() {
    let tables = check(GicVersion::V2, 8, false, false);
    assert_eq!(signatures(&tables), ["DSDT", "FACP", "APIC", "GTDT", "PPTT", "SPCR", "DBG2"]);
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
    let cpus = &[0, 1, 2, 3];
    let platform = Platform { pmu: true, ..platform(cpus, Topology::flat(4), &gic) };
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

fn platform<'a>(cpus: &'a [u64], topology: Topology, gic: &'a GicConfig) -> Platform<'a> {
    Platform { cpus, topology, pmu: false, caches: Caches::default(), gic, console: None, ecam: &[] }
}

/// A node of a PPTT: a processor's flags, parent and id, with its caches; or a cache's type and what comes next. Nodes are told by their numbers.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Processor([u32; 3], Vec<u32>),
    Cache(CacheKind, u32),
}

fn arrangement(topology: Topology, cpus: &[u64], caches: u64) -> Vec<Node> {
    let gic = GicConfig::V3 { distributor: 1 << 16, redistributors: vec![], its: None };
    let platform = Platform { caches: Caches(caches), ..platform(cpus, topology, &gic) };
    let bytes = link(vec![pptt(&platform)]).place(0).unwrap().0;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let next = |at: &usize| Some(at + usize::from(bytes[at + 1])).filter(|next| *next < word(4) as usize);
    let starts: Vec<usize> = std::iter::successors(Some(HEADER_SIZE), next).collect();
    // Nothing is told of by 0.
    let number = |at: usize| starts.iter().position(|start| *start == word(at) as usize).map_or(0, |n| n as u32 + 1);
    let node = |&at: &usize| match bytes[at] {
        0 => {
            let caches = (0..word(at + 16) as usize).map(|n| number(at + 20 + 4 * n)).collect();
            Node::Processor([word(at + 4), number(at + 8), word(at + 12)], caches)
        }
        _ => {
            assert_eq!(word(at + 4), 1 << 4, "the type is valid");
            let kinds = [Data, Instruction, Unified];
            Node::Cache(*kinds.iter().find(|kind| **kind as u8 == bytes[at + 21]).unwrap(), number(at + 8))
        }
    };
    starts.iter().map(node).collect()
}

#[test]
fn processors_are_where_the_topology_has_them() {
    let (package, core, cpu, thread) = (1, 0, 2 | 8, 2 | 4 | 8);
    let bare = |flags, parent, id| Node::Processor([flags, parent, id], vec![]);
    // Three of what may be four, in sockets of two cores.
    let nodes = arrangement(Topology::new(2, 2, 1).unwrap(), &[0, 1, 2], 0);
    let first = [bare(package, 0, 0), bare(cpu, 1, 0), bare(cpu, 1, 1)];
    assert_eq!(nodes, [&first[..], &[bare(package, 0, 0), bare(cpu, 4, 2)]].concat());
    let nodes = arrangement(Topology::new(1, 2, 2).unwrap(), &[0, 1, 2], 0);
    let first = [bare(package, 0, 0), bare(core, 1, 0), bare(thread, 2, 0), bare(thread, 2, 1)];
    assert_eq!(nodes, [&first[..], &[bare(core, 1, 0), bare(thread, 5, 2)]].concat());
}

#[test]
fn a_core_has_its_first_caches_and_its_socket_the_last() {
    // Split, unified, unified.
    let nodes = arrangement(Topology::new(1, 1, 2).unwrap(), &[0, 1], 0o443);
    let socket = [Node::Cache(Unified, 0), Node::Processor([1, 0, 0], vec![1])];
    let expected = [
        Node::Cache(Unified, 0),
        Node::Cache(Instruction, 3),
        Node::Cache(Data, 3),
        Node::Processor([0, 2, 0], vec![4, 5]),
        Node::Processor([14, 6, 0], vec![]),
        Node::Processor([14, 6, 1], vec![]),
    ];
    assert_eq!(nodes, [&socket[..], &expected].concat());
    // Two split ones; what is after a level without any does not count.
    let one = |caches| arrangement(Topology::flat(1), &[0], caches);
    let expected = [
        Node::Cache(Instruction, 0),
        Node::Cache(Data, 0),
        Node::Cache(Instruction, 3),
        Node::Cache(Data, 4),
        Node::Processor([10, 2, 0], vec![5, 6]),
    ];
    assert_eq!(one(0o4033), [&socket[..], &expected].concat());
    // As Linux makes it up since 6.3: each level is followed by one that the socket's processors share.
    let alone = |kind| [Node::Cache(kind, 0), Node::Processor([10, 2, 0], vec![3])];
    assert_eq!(one(0o4), [&socket[..], &alone(Unified)].concat());
    assert_eq!(one(0o41), [&socket[..], &alone(Instruction)].concat());
    let split = [Node::Cache(Instruction, 0), Node::Cache(Data, 0), Node::Processor([10, 2, 0], vec![3, 4])];
    assert_eq!(one(0o3), [&socket[..], &split].concat());
}
