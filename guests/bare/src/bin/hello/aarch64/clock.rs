//! The generic timer, and what an exit costs by it.

use bare::arch::fdt::Fdt;
use bare::arch::memory::read32;
use bare::arch::serial;
use bare::arch::{cpu, psci};
use bare::read_register;
use bare::{problem, say};

use super::devices;

/// The counter's frequency in Hz.
pub fn frequency() -> u64 {
    read_register!("cntfrq_el0").max(1)
}

/// Say that the counter goes on.
pub fn describe() {
    const READS: u32 = 1000;
    let begin = cpu::counter();
    let mut last = begin;
    let mut monotonic = true;
    for _ in 0..READS {
        let now = cpu::counter();
        monotonic &= now >= last;
        last = now;
    }
    let verdict = if !monotonic {
        "goes back"
    } else if last == begin {
        "stands still"
    } else {
        "monotonic"
    };
    say!("clock: CNTVCT {} kHz by CNTFRQ, {verdict}", frequency() / 1000);
    if verdict != "monotonic" {
        problem!("the virtual counter {verdict}");
    }
}

/// Say what exits cost: one that ends in the monitor, and those that end in the hypervisor, by memory and by a call.
pub fn measure_exits(fdt: &Fdt) {
    const PERIPHERAL_ID: u64 = 0xfe0;
    const GICD_TYPER: u64 = 4;
    let measure = |name: &str, exit: &dyn Fn()| {
        const TIMES: u64 = 100;
        exit();
        let begin = cpu::counter();
        for _ in 0..TIMES {
            exit();
        }
        let ticks = cpu::counter() - begin;
        say!("exit cost: {name}: {} ns", ticks * 1_000_000_000 / frequency() / TIMES);
    };
    if let Some((address, _)) = serial::node(fdt).and_then(|node| node.range(0)) {
        // SAFETY: reads a register that tells what the device is.
        measure("memory read (serial port)", &|| _ = unsafe { read32(address + PERIPHERAL_ID) });
    }
    if let Some((_, distributor, _)) = devices::gic(fdt) {
        // SAFETY: as above.
        measure("memory read (GIC distributor)", &|| _ = unsafe { read32(distributor + GICD_TYPER) });
    }
    measure("HVC (PSCI version)", &|| _ = psci::version());
}
