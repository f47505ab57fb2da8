//! Starting all CPUs.

use core::arch::global_asm;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use bare::arch::acpi::{Acpi, Controller};
use bare::arch::clock::tsc_khz;
use bare::arch::start::Start;
use bare::arch::user::privileged;
use bare::arch::{apic, cpu, memory};
use bare::{problem, say};

use crate::PATIENCE_MS;

// What a CPU does, in real mode in a page of its own: it needs no stack and no tables.
global_asm!(
    r#"
    .section .rodata.counting, "a", @progbits
    .code16
    .global counting
counting:
    lock inc dword ptr cs:[{counter}]
0:  cli
    hlt
    jmp 0b
    .balign 16
    .code64
    .text
    "#,
    counter = const COUNTER,
);

/// Where the counter lies, behind the code.
const COUNTER: u64 = 16;

unsafe extern "C" {
    static counting: [u8; COUNTER as usize];
}

/// Take this CPU's local APIC into use, in x2APIC mode if it can be.
pub fn init_local_apic(acpi: &Acpi) {
    if apic::is_enabled() {
        return;
    }
    let base = acpi.local_apic();
    privileged(|| if apic::has_x2apic() { apic::init_x2apic() } else { apic::init_at(base) });
}

/// Start every CPU of the MADT, let each count itself, and say how many did.
pub fn count(start: &Start, acpi: &Acpi) {
    init_local_apic(acpi);
    let Some(page) = start.free_low_page() else {
        problem!("there is no page below 640 KiB for the CPUs to begin in");
        return;
    };
    // SAFETY: the page is free RAM.
    let counter = unsafe {
        ptr::copy_nonoverlapping(&raw const counting, memory::pointer(page), 1);
        AtomicU32::from_ptr(memory::pointer(page + COUNTER))
    };
    counter.store(1, Ordering::SeqCst);

    let this = privileged(apic::id);
    let all = || {
        acpi.controllers().filter_map(|controller| {
            if let Controller::Cpu { id, x2apic } = controller { Some((id, x2apic)) } else { None }
        })
    };
    let others = || all().map(|(id, _)| u64::from(id)).filter(|&id| id != this);
    let expected = all().count() as u32;
    let start_up = || others().for_each(|id| privileged(|| apic::start_up(id, page)));

    let frequency = tsc_khz(acpi);
    let begin = cpu::counter();
    others().for_each(|id| privileged(|| apic::reset(id)));
    start_up();
    // A real CPU may miss the first one; one that runs passes the second over.
    let mut again = cpu::counter() + frequency * 100;
    let last = cpu::counter() + frequency * PATIENCE_MS;
    while counter.load(Ordering::SeqCst) < expected && cpu::counter() < last {
        if cpu::counter() > again {
            start_up();
            again = last;
        }
        cpu::relax();
    }
    let micros = (cpu::counter() - begin) * 1000 / frequency.max(1);
    let counted = counter.load(Ordering::SeqCst);
    let x2apic = all().filter(|&(_, x2apic)| x2apic).count();
    let highest = all().map(|(id, _)| id).max().unwrap_or(0);
    say!("cpus: {counted} of {expected}, {x2apic} by x2APIC entries, highest id {highest}, in {micros} us");
    if counted != expected {
        problem!("{counted} CPUs run, the MADT has {expected}");
    }
}
