//! Instructions that may fault, and then return `ESR_EL1` as an error.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering};

use skep_guest_protocol::Width;

use super::{cpu, memory};

/// One instruction with its operands. An exception during it goes on after it, with the syndrome in `X8`. Evaluates to what became of it.
macro_rules! guarded {
    ($instruction:literal, $($operands:tt)*) => {{
        let fault: u64;
        asm!(
            "mov x8, xzr",
            concat!("2: ", $instruction),
            "3:",
            ".pushsection .fixups, \"a\", @progbits",
            ".long 2b - ., 3b - .",
            ".popsection",
            $($operands)*,
            out("x8") fault
        );
        if fault == 0 { Ok(()) } else { Err(fault) }
    }};
}

/// Read memory.
///
/// # Safety
///
/// A read of `address` has no effect that breaks the guest.
pub unsafe fn load(address: u64, width: Width) -> Result<u64, u64> {
    let value: u64;
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::One => guarded!("ldrb {:w}, [{}]", out(reg) value, in(reg) address),
            Width::Two => guarded!("ldrh {:w}, [{}]", out(reg) value, in(reg) address),
            Width::Four => guarded!("ldr {:w}, [{}]", out(reg) value, in(reg) address),
            Width::Eight => guarded!("ldr {}, [{}]", out(reg) value, in(reg) address),
        }
    }?;
    Ok(value)
}

/// Write memory.
///
/// # Safety
///
/// Nothing that the guest relies on lies there.
pub unsafe fn store(address: u64, value: u64, width: Width) -> Result<(), u64> {
    // SAFETY: the caller's.
    unsafe {
        match width {
            Width::One => guarded!("strb {:w}, [{}]", in(reg) value, in(reg) address),
            Width::Two => guarded!("strh {:w}, [{}]", in(reg) value, in(reg) address),
            Width::Four => guarded!("str {:w}, [{}]", in(reg) value, in(reg) address),
            Width::Eight => guarded!("str {}, [{}]", in(reg) value, in(reg) address),
        }
    }
}

/// Add to memory, by a load and a store.
///
/// # Safety
///
/// As for [`store`].
pub unsafe fn add(address: u64, value: u64, width: Width) -> Result<(), u64> {
    // SAFETY: the caller's.
    unsafe {
        let sum = load(address, width)?.wrapping_add(value);
        store(address, sum, width)
    }
}

// One instruction that is written before it is carried out: MRS and MSR have the register in them.
global_asm!(
    r#"
    .section .boot, "awx", @progbits
    .balign 8
    .global register_access
register_access:
    nop
0:  ret
    .section .fixups, "a", @progbits
    .long register_access - ., 0b - .
    .text
    "#
);

unsafe extern "C" {
    static mut register_access: u32;
}

static REGISTER_ACCESS_LOCK: AtomicBool = AtomicBool::new(false);

/// Carry out `instruction` on `X0`.
unsafe fn access_register(instruction: u32, mut value: u64) -> Result<u64, u64> {
    let fault: u64;
    while REGISTER_ACCESS_LOCK.swap(true, Ordering::Acquire) {
        cpu::relax();
    }
    // SAFETY: the lock is held, and the image is writable memory. What the instruction does is the caller's affair.
    unsafe {
        let code = &raw mut register_access;
        code.write_volatile(instruction);
        asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) code);
        asm!("mov x8, xzr", "blr {}", "isb", in(reg) code, inout("x0") value, out("x8") fault, out("x30") _);
    }
    REGISTER_ACCESS_LOCK.store(false, Ordering::Release);
    if fault == 0 { Ok(value) } else { Err(fault) }
}

/// Whether MRS and MSR can name this register: operations with a lower `op0` are other instructions.
fn has_encoding(register: u16) -> bool {
    register >> 14 >= 2
}

/// `MRS`, the register given as [`skep_guest_protocol::system_register`] has it; `None` if there can be no such register.
pub fn read_register(register: u16) -> Option<Result<u64, u64>> {
    // SAFETY: reading a register changes nothing that the guest relies on.
    has_encoding(register).then(|| unsafe { access_register(0xd520_0000 | u32::from(register) << 5, 0) })
}

/// `MSR`, as for [`read_register`].
///
/// # Safety
///
/// The new value breaks nothing that runs.
pub unsafe fn write_register(register: u16, value: u64) -> Option<Result<u64, u64>> {
    // SAFETY: the caller's.
    has_encoding(register).then(|| unsafe { access_register(0xd500_0000 | u32::from(register) << 5, value) })
}

/// `HVC` with `X0` to `X7` from `address`, and `X0` to `X3` written there afterwards. The result is `X0`.
///
/// # Safety
///
/// The call breaks nothing, and nothing that the guest relies on lies at `address`.
pub unsafe fn firmware_call(address: u64) -> Result<u64, u64> {
    let registers = memory::pointer::<u64>(address);
    // SAFETY: the caller's.
    unsafe {
        let [mut x0, mut x1, mut x2, mut x3, x4, x5, x6, x7] = registers.cast::<[u64; 8]>().read_volatile();
        guarded!("hvc #0", inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3,
            inout("x4") x4 => _, inout("x5") x5 => _, inout("x6") x6 => _, inout("x7") x7 => _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _)?;
        registers.cast::<[u64; 4]>().write_volatile([x0, x1, x2, x3]);
        Ok(x0)
    }
}
