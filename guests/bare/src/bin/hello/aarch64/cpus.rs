//! Starting all CPUs.

use core::sync::atomic::{AtomicU32, Ordering};

use bare::arch::fdt::{Fdt, Node};
use bare::arch::{cpu, psci};
use bare::read_register;
use bare::{problem, say};

use super::clock;
use crate::PATIENCE_MS;

static COUNTER: AtomicU32 = AtomicU32::new(1);

/// The affinity fields of each CPU in the tree.
fn all(fdt: &Fdt) -> impl Iterator<Item = u64> {
    let two_cells = fdt.node_named("cpus").and_then(|cpus| cpus.cell("#address-cells", 0)) == Some(2);
    let affinity = move |node: Node| {
        let first = u64::from(node.cell("reg", 0)?);
        if two_cells { Some(first << 32 | u64::from(node.cell("reg", 1)?)) } else { Some(first) }
    };
    fdt.nodes().filter(|node| node.text("device_type") == Some("cpu")).filter_map(affinity)
}

/// Say what this CPU is, and how the others are started.
pub fn describe(fdt: &Fdt) {
    let features =
        [read_register!("id_aa64pfr0_el1"), read_register!("id_aa64isar0_el1"), read_register!("id_aa64mmfr0_el1")];
    say!(
        "cpu: MIDR {:#x}, MPIDR {:#x}, PFR0 {:#x}, ISAR0 {:#x}, MMFR0 {:#x}",
        read_register!("midr_el1"),
        cpu::id(),
        features[0],
        features[1],
        features[2]
    );
    let method = fdt.node_named("psci").and_then(|psci| psci.text("method"));
    let version = psci::version();
    say!("psci: version {}.{} by {}", version >> 16, version & 0xffff, method.unwrap_or("nothing"));
    if method != Some("hvc") {
        problem!("PSCI is not called by hvc");
    }
}

/// Start every CPU of the tree, let each count itself, and say how many did.
pub fn count(fdt: &Fdt) {
    let expected = all(fdt).count() as u32;
    let this = cpu::id();
    let begin = cpu::counter();
    for other in all(fdt).filter(|&other| other != this) {
        let result = psci::start_counting(other, &COUNTER);
        if result != 0 {
            problem!("PSCI does not start CPU {other:#x}: {}", result as i64);
        }
    }
    let last = begin + clock::frequency() * PATIENCE_MS / 1000;
    while COUNTER.load(Ordering::SeqCst) < expected && cpu::counter() < last {
        cpu::relax();
    }
    let micros = (cpu::counter() - begin) * 1_000_000 / clock::frequency();
    let counted = COUNTER.load(Ordering::SeqCst);
    say!("cpus: {counted} of {expected}, highest id {:#x}, in {micros} us", all(fdt).max().unwrap_or(0));
    if counted != expected {
        problem!("{counted} CPUs run, the device tree has {expected}");
    }
}
