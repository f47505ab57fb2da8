//! Clocks, and what an exit costs by them.

use bare::arch::acpi::Acpi;
use bare::arch::clock::{KvmClock, cpuid, find_tsc_khz, pm_timer, tsc_khz};
use bare::arch::cpu::{self, inl};
use bare::arch::memory;
use bare::arch::user::privileged;
use bare::{problem, say};

use super::devices::IoApic;

/// How often clocks are read to see that they don't go back.
const READS: u32 = 1000;

/// Say which clocks there are, and that they go on.
pub fn describe(acpi: &Acpi) {
    let (khz, source) = find_tsc_khz(acpi);
    let invariant = cpuid(0x8000_0000).eax >= 0x8000_0007 && cpuid(0x8000_0007).edx & 1 << 8 != 0;
    let kind = if invariant { "invariant" } else { "not invariant" };
    say!("clock: TSC {khz} kHz by {source}, {kind}, {}", monotonic(cpu::counter));
    if khz == 0 {
        problem!("the TSC's frequency is not known");
    }
    if let Some(clock) = KvmClock::find() {
        let info = clock.info();
        let stable = if info.flags & 1 != 0 { "stable" } else { "not stable" };
        let now = || KvmClock::nanoseconds(&clock.info(), cpu::counter());
        say!(
            "clock: kvmclock {} kHz, {stable}, {} us since it began, {}",
            clock.tsc_khz(),
            now() / 1000,
            monotonic(now)
        );
    }
    if let Some(port) = pm_timer(acpi) {
        let (a, b) = privileged(|| {
            let a = inl(port);
            (0..READS).find(|_| inl(port) != a);
            (a, inl(port))
        });
        say!("clock: PM timer at port {port:#x}, {}", if a == b { "stands still" } else { "ticks" });
        if a == b {
            problem!("the PM timer stands still");
        }
    }
}

fn monotonic(mut clock: impl FnMut() -> u64) -> &'static str {
    let mut last = clock();
    for _ in 0..READS {
        let now = clock();
        if now < last {
            problem!("a clock went back from {last} to {now}");
            return "goes back";
        }
        last = now;
    }
    "monotonic"
}

/// Say what exits cost: one that ends in the monitor, by port and by memory, and one that ends in the hypervisor.
pub fn measure_exits(acpi: &Acpi) {
    const TIMES: u64 = 32;
    let khz = tsc_khz(acpi).max(1);
    let measure = |name: &str, exit: &dyn Fn()| {
        let cycles = privileged(|| {
            exit();
            let begin = cpu::counter();
            for _ in 0..TIMES {
                exit();
            }
            (cpu::counter() - begin) / TIMES
        });
        say!("exit cost: {name}: {cycles} cycles, {} ns", cycles * 1_000_000 / khz);
    };
    if let Some(port) = pm_timer(acpi) {
        measure("port read (PM timer)", &|| _ = inl(port));
    }
    if let Some(io_apic) = IoApic::all(acpi).next() {
        // SAFETY: reads a register of the I/O APIC.
        measure("memory read (I/O APIC)", &|| _ = unsafe { memory::read32(io_apic.address + IoApic::DATA) });
    }
    measure("CPUID", &|| _ = cpu::cpuid(0, 0));
}
