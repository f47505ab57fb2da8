//! Instructions.

use core::arch::asm;

/// Read a system register that every CPU has, by its name.
#[macro_export]
macro_rules! read_register {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading an architectural register changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Write a system register by its name, and wait until that has taken effect. It is `unsafe`: the value must break nothing that runs.
#[macro_export]
macro_rules! write_register {
    ($name:literal, $value:expr) => {
        core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) u64::from($value), options(nostack, preserves_flags))
    };
}

/// The affinity fields of `MPIDR_EL1`.
pub fn id() -> u64 {
    read_register!("mpidr_el1") & 0xff_00ff_ffff
}

/// The virtual counter.
pub fn counter() -> u64 {
    let value;
    // SAFETY: reads a counter, and not ahead of what comes before.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack, preserves_flags)) };
    value
}

/// Turn interrupts on or off; whether they were on.
pub fn set_interrupts(on: bool) -> bool {
    const MASKED: u64 = 1 << 7;
    let was = read_register!("daif");
    // SAFETY: the handlers are in place from the start.
    unsafe {
        if on {
            asm!("msr daifclr, #2");
        } else {
            asm!("msr daifset, #2");
        }
    }
    was & MASKED == 0
}

/// With interrupts off: wait for one, and take it. Interrupts are off afterwards.
pub fn wait_for_interrupt() {
    // SAFETY: as in `set_interrupts`. WFI also ends by an interrupt that is masked.
    unsafe { asm!("dsb sy", "wfi", "msr daifclr, #2", "isb", "msr daifset, #2") };
}

/// Let another CPU have the time, in a loop that waits.
pub fn relax() {
    core::hint::spin_loop();
}

/// Wait for ever with interrupts off.
pub fn park() -> ! {
    set_interrupts(false);
    loop {
        // SAFETY: stops the CPU.
        unsafe { asm!("wfi") };
    }
}
