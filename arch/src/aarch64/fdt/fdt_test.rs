use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use skep_hypervisor::aarch64::GicVersion;

use super::devices::{Flash, FwCfg, Pl011, Pl031, Pl061, PrimeCell, Pvpanic};
use super::*;
use crate::aarch64::layout::{self, Layout};
use crate::aarch64::mpidr;
use crate::layout::{GIB, MIB};

/// The compiler takes the tree apart; anything it says fails the test.
fn dtc(fdt: &[u8]) -> String {
    let child = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("dtc is needed to check device trees: install device-tree-compiler");
    child.stdin.take().unwrap().write_all(fdt).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && told.is_empty(), "{told}");
    String::from_utf8(output.stdout).unwrap()
}

fn line(spi: u32) -> LineDescription {
    LineDescription { number: super::spi::FIRST + spi, trigger: Trigger::Level, polarity: Polarity::High }
}

fn uart() -> Pl011 {
    Pl011(PrimeCell { registers: layout::UART, line: line(spi::UART), peripheral_id: Some(0x0034_1011) })
}

struct Machine {
    gic: GicVersion,
    cpus: u32,
    topology: Option<Topology>,
    pmu: bool,
    its: bool,
}

const MACHINE: Machine = Machine { gic: GicVersion::V3, cpus: 2, topology: None, pmu: false, its: true };

impl Machine {
    fn build(&self) -> Vec<u8> {
        let layout = Layout::new(GIB, 40, self.gic, self.cpus).unwrap();
        let cpus: Vec<_> = (0..self.cpus).map(|index| mpidr(self.gic, index)).collect();
        let rtc = Pl031(PrimeCell { registers: layout::RTC, line: line(spi::RTC), peripheral_id: None });
        let cell = PrimeCell { registers: layout::GPIO, line: line(spi::GPIO), peripheral_id: None };
        let gpio = Pl061 { cell, power_button: 3 };
        let (fw_cfg, pvpanic) = (FwCfg(layout::FW_CFG), Pvpanic(layout::PVPANIC));
        let flash = Flash(&[layout::FLASH_CODE, layout::FLASH_VARS]);
        let lines: Vec<_> = (spi::PCI_FIRST..spi::PCI_FIRST + 4).map(line).collect();
        let pci = PciHost {
            ecam: layout.ecam,
            io: layout::PCI_IO,
            memory32: layout::PCI_MMIO32,
            memory64: layout.pci_mmio64,
            lines: &lines,
            messages: self.its || self.gic == GicVersion::V2,
        };
        let platform = Platform {
            ram: &layout.ram,
            cpus: &cpus,
            topology: self.topology,
            pmu: self.pmu,
            gic: &layout.gic_config(self.its),
            devices: &[&uart(), &rtc, &gpio, &fw_cfg, &flash, &pvpanic, &pci],
            chosen: Chosen {
                bootargs: Some("quiet"),
                initrd: Some(AddressRange::new(GIB + MIB, 0x1234)),
                stdout_path: Some(uart().path()),
                rng_seed: Some([0xab; 32]),
                kaslr_seed: Some(0x0123_4567_89ab_cdef),
            },
        };
        build(&platform).unwrap()
    }
}

/// The lines of a node, without those of its subnodes.
fn node(dts: &str, name: &str) -> Vec<String> {
    let lines = dts.lines().map(str::trim).skip_while(|line| *line != format!("{name} {{"));
    let mut depth = 0;
    let mut found = Vec::new();
    for line in lines {
        if line.ends_with('{') {
            depth += 1;
        } else if line == "};" {
            depth -= 1;
            if depth == 0 {
                break;
            }
        } else if depth == 1 && !line.is_empty() {
            found.push(line.to_owned());
        }
    }
    assert!(!found.is_empty(), "no node {name} in {dts}");
    found
}

fn has(dts: &str, name: &str, property: &str) {
    let lines = node(dts, name);
    assert!(lines.iter().any(|line| line == property), "{name}: {property} is not in {lines:#?}");
}

#[test]
fn a_tree_with_gicv3() {
    let dts = dtc(&MACHINE.build());
    has(&dts, "chosen", "bootargs = \"quiet\";");
    has(&dts, "chosen", "linux,initrd-start = <0x00 0x40100000>;");
    has(&dts, "chosen", "linux,initrd-end = <0x00 0x40101234>;");
    has(&dts, "chosen", "stdout-path = \"/pl011@9000000\";");
    has(&dts, "memory@40000000", "reg = <0x00 0x40000000 0x00 0x40000000>;");
    has(&dts, "cpu@1", "enable-method = \"psci\";");
    has(&dts, "psci", "method = \"hvc\";");
    has(&dts, "timer", "interrupts = <0x01 0x0d 0x04 0x01 0x0e 0x04 0x01 0x0b 0x04 0x01 0x0a 0x04>;");
    has(&dts, "intc@8000000", "reg = <0x00 0x8000000 0x00 0x10000 0x00 0x80a0000 0x00 0x40000>;");
    has(&dts, "its@8080000", "reg = <0x00 0x8080000 0x00 0x20000>;");
    has(&dts, "pl011@9000000", "interrupts = <0x00 0x01 0x04>;");
    has(&dts, "pl011@9000000", "clock-names = \"uartclk\\0apb_pclk\";");
    has(&dts, "pl011@9000000", "arm,primecell-periphid = <0x341011>;");
    has(&dts, "pl061@9030000", "#gpio-cells = <0x02>;");
    has(&dts, "poweroff", "gpios = <0x04 0x03 0x00>;");
    has(&dts, "flash@0", "reg = <0x00 0x00 0x00 0x4000000 0x00 0x4000000 0x00 0x4000000>;");
    assert!(!dts.contains("pmu {") && !dts.contains("cpu-map"));
}

#[test]
fn a_tree_with_pci() {
    let dts = dtc(&MACHINE.build());
    let pci = "pcie@4010000000";
    has(&dts, pci, "reg = <0x40 0x10000000 0x00 0x10000000>;");
    has(&dts, pci, "bus-range = <0x00 0xff>;");
    has(
        &dts,
        pci,
        "ranges = <0x1000000 0x00 0x00 0x00 0x3eff0000 0x00 0x10000 0x2000000 0x00 0x10000000 0x00 0x10000000 0x00 \
         0x2eff0000 0x3000000 0x80 0x00 0x80 0x00 0x80 0x00>;",
    );
    has(&dts, pci, "interrupt-map-mask = <0x1800 0x00 0x00 0x07>;");
    has(&dts, pci, "msi-map = <0x00 0x02 0x00 0x10000>;");
    let map = node(&dts, pci).into_iter().find(|line| line.starts_with("interrupt-map =")).unwrap();
    // Device 1: INTA# is on the second line, INTD# on the first.
    assert!(map.contains("0x800 0x00 0x00 0x01 0x01 0x00 0x00 0x00 0x04 0x04"), "{map}");
    assert!(map.contains("0x800 0x00 0x00 0x04 0x01 0x00 0x00 0x00 0x03 0x04"), "{map}");
    assert_eq!(map.matches("0x").count(), 16 * 10);
    let none = dtc(&Machine { its: false, ..MACHINE }.build());
    assert!(!none.contains("msi-map"));
}

#[test]
fn a_tree_with_gicv2() {
    let dts = dtc(&Machine { gic: GicVersion::V2, pmu: true, ..MACHINE }.build());
    has(&dts, "timer", "interrupts = <0x01 0x0d 0x304 0x01 0x0e 0x304 0x01 0x0b 0x304 0x01 0x0a 0x304>;");
    has(&dts, "pmu", "interrupts = <0x01 0x07 0x304>;");
    has(&dts, "intc@8000000", "reg = <0x00 0x8000000 0x00 0x10000 0x00 0x8010000 0x00 0x10000>;");
    has(&dts, "v2m@8020000", "arm,msi-base-spi = <0xa0>;");
    has(&dts, "v2m@8020000", "arm,msi-num-spis = <0x80>;");
    dtc(&Machine { its: false, ..MACHINE }.build());
}

#[test]
fn a_tree_with_many_cpus() {
    let dts = dtc(&Machine { cpus: 300, ..MACHINE }.build());
    assert_eq!(dts.matches("enable-method").count(), 300);
    has(&dts, "cpu@120b", "reg = <0x120b>;");
    has(&dts, "intc@8000000", "#redistributor-regions = <0x02>;");
}

#[test]
fn affinity_3_takes_two_cells() {
    let gic = Layout::new(GIB, 40, GicVersion::V3, 2).unwrap().gic_config(true);
    let (ram, cpus) = ([AddressRange::new(GIB, GIB)], [0, 1 << 32]);
    let chosen = Chosen::default();
    let platform = Platform { ram: &ram, cpus: &cpus, topology: None, pmu: false, gic: &gic, devices: &[], chosen };
    has(&dtc(&build(&platform).unwrap()), "cpu@100000000", "reg = <0x01 0x00>;");
}

#[test]
fn the_topology_maps_every_cpu_once() {
    for (topology, cpus, nodes) in [
        (Topology::new(1, 4, 1).unwrap(), 4, ["core3", "cluster0"]),
        (Topology::new(2, 2, 2).unwrap(), 8, ["socket1", "thread1"]),
        (Topology::new(2, 2, 2).unwrap(), 5, ["socket1", "thread0"]),
    ] {
        let dts = dtc(&Machine { cpus, topology: Some(topology), ..MACHINE }.build());
        let map = &dts[dts.find("cpu-map").unwrap()..];
        assert!(nodes.iter().all(|node| map.contains(node)));
        for index in 0..cpus {
            assert_eq!(map.matches(&format!("cpu = <{:#x}>;", phandle::CPUS + index)).count(), 1);
        }
    }
}

#[test]
fn interrupts_have_the_bindings_flags() {
    let cells = |number, trigger, polarity| interrupt_cells(LineDescription { number, trigger, polarity });
    assert_eq!(cells(33, Trigger::Level, Polarity::High), [0, 1, 4]);
    assert_eq!(cells(41, Trigger::Edge, Polarity::High), [0, 9, 1]);
    assert_eq!(cells(27, Trigger::Level, Polarity::Low), [1, 11, 8]);
}

#[test]
fn a_text_with_a_zero_is_an_error() {
    let gic = Layout::new(GIB, 40, GicVersion::V3, 1).unwrap().gic_config(true);
    let chosen = Chosen { bootargs: Some("a\0b"), ..Chosen::default() };
    let platform = Platform { ram: &[], cpus: &[0], topology: None, pmu: false, gic: &gic, devices: &[], chosen };
    build(&platform).unwrap_err();
}

#[test]
fn a_foreign_tree_keeps_what_it_is_not_told() {
    let values =
        Chosen { bootargs: Some("panic=1"), initrd: Some(AddressRange::new(2 * GIB, MIB)), ..Chosen::default() };
    let dts = dtc(&replace_chosen(&MACHINE.build(), &values).unwrap());
    has(&dts, "chosen", "bootargs = \"panic=1\";");
    has(&dts, "chosen", "linux,initrd-start = <0x00 0x80000000>;");
    has(&dts, "chosen", "linux,initrd-end = <0x00 0x80100000>;");
    has(&dts, "chosen", "stdout-path = \"/pl011@9000000\";");
    assert_eq!(dts.matches("bootargs").count(), 1);
    let same = dtc(&replace_chosen(&MACHINE.build(), &Chosen::default()).unwrap());
    assert_eq!(same, dtc(&MACHINE.build()));
}

#[test]
fn a_tree_without_chosen_gets_one() {
    let mut fdt = FdtWriter::new_with_mem_reserv(&[vm_fdt::FdtReserveEntry::new(0x1000, 0x2000).unwrap()]).unwrap();
    let root = fdt.begin_node("").unwrap();
    let other = fdt.begin_node("other").unwrap();
    fdt.property_string("bootargs", "mine").unwrap();
    fdt.end_node(other).unwrap();
    fdt.end_node(root).unwrap();
    let values = Chosen { bootargs: Some("quiet"), ..Chosen::default() };
    let dts = dtc(&replace_chosen(&fdt.finish().unwrap(), &values).unwrap());
    has(&dts, "chosen", "bootargs = \"quiet\";");
    has(&dts, "other", "bootargs = \"mine\";");
    assert!(dts.contains("/memreserve/\t0x0000000000001000 0x0000000000002000;"), "{dts}");
}

#[test]
fn what_is_no_tree_is_named() {
    let error = |fdt: &[u8]| replace_chosen(fdt, &Chosen::default()).unwrap_err().to_string();
    assert!(error(b"").contains("no flattened device tree"));
    assert!(error(b"/dts-v1/; / {};").contains("no flattened device tree"));
    let tree = MACHINE.build();
    let cut = error(&tree[..tree.len() - 1]);
    assert!(cut.contains("is truncated"), "{cut}");
    let mut old = tree.clone();
    old[23] = 3;
    assert!(error(&old).contains("of version 3"));
}

skep_fuzzing::targets! {
    "device-trees": fn fuzz_trees(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut tree = MACHINE.build();
        for (at, byte) in changes {
            let at = at.index(tree.len());
            tree[at] = byte;
        }
        if let Some(cut) = cut {
            tree.truncate(cut.index(tree.len()));
        }
        let _ = replace_chosen(&tree, &Chosen { bootargs: Some("quiet"), ..Chosen::default() });
    }
}
