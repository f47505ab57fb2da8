//! Instructions. Those here fault only where the guest itself is wrong; see `guarded` for the others.

use core::arch::asm;
pub use core::arch::x86_64::CpuidResult;

/// `CPUID`.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    core::arch::x86_64::__cpuid_count(leaf, subleaf)
}

/// The time stamp counter.
pub fn counter() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `RDMSR` of a register that every long-mode CPU with an APIC has.
pub fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an architectural register changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// `WRMSR`.
///
/// # Safety
///
/// The register exists, and its new value breaks nothing that runs.
pub unsafe fn wrmsr(index: u32, value: u64) {
    // SAFETY: the caller's.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags))
    };
}

/// `IN` of a byte.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: no device here does DMA.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `IN` of two bytes.
pub fn inw(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as in `inb`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `IN` of four bytes.
pub fn inl(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as in `inb`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `OUT` of a byte.
pub fn outb(port: u16, value: u8) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// `OUT` of two bytes.
pub fn outw(port: u16, value: u16) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// `OUT` of four bytes.
pub fn outl(port: u16, value: u32) {
    // SAFETY: as in `inb`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// `REP OUTSB`.
pub fn write_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads `bytes` only.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags));
    }
}

/// `CR4.OSFXSR`: `FXSAVE` has the SSE registers.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// `CR4.OSXSAVE`: there is `XSAVE`.
pub const CR4_OSXSAVE: u64 = 1 << 18;

/// Set bits of `CR4`.
///
/// # Safety
///
/// The CPU has them, and they change nothing for what runs.
pub unsafe fn set_cr4(bits: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("mov {0}, cr4", "or {0}, {1}", "mov cr4, {0}", out(reg) _, in(reg) bits) };
}

/// Set `XCR0`.
///
/// # Safety
///
/// `CR4.OSXSAVE` is set, and the CPU has these components.
pub unsafe fn xsetbv(components: u64) {
    // SAFETY: the caller's.
    unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components as u32, in("edx") (components >> 32) as u32) };
}

/// Turn interrupts on or off; whether they were on.
pub fn set_interrupts(on: bool) -> bool {
    let flags: u64;
    // SAFETY: the handlers of all vectors are in place from the start.
    unsafe {
        asm!("pushfq", "pop {}", out(reg) flags);
        if on {
            asm!("sti");
        } else {
            asm!("cli");
        }
    }
    flags & 0x200 != 0
}

/// With interrupts off: wait for one, and take it. Interrupts are off afterwards.
pub fn wait_for_interrupt() {
    // SAFETY: as in `set_interrupts`. No interrupt comes between STI and HLT.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Let another CPU have the time, in a loop that waits.
pub fn relax() {
    core::hint::spin_loop();
}

/// Wait for ever with interrupts off.
pub fn park() -> ! {
    loop {
        // SAFETY: stops the CPU.
        unsafe { asm!("cli", "hlt") };
    }
}

/// Shut the machine down by an exception for which there is no handler, nor one for that.
pub fn triple_fault() -> ! {
    // SAFETY: ends here.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &[0_u64; 2], options(noreturn)) };
}
