//! Exceptions and interrupts.

use core::arch::global_asm;

use super::gic;
use crate::{guest_fault, read_register};

// Only what comes from EL1 on its own stack pointer is expected. Handlers don't nest, so ELR and SPSR are kept for the one that changes ELR.
global_asm!(
    r#"
    .macro save
    sub sp, sp, #176
    stp x0, x1, [sp]
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x30, [sp, #144]
    .endm
    .macro restore
    ldp x0, x1, [sp]
    ldp x2, x3, [sp, #16]
    ldp x4, x5, [sp, #32]
    ldp x6, x7, [sp, #48]
    ldp x8, x9, [sp, #64]
    ldp x10, x11, [sp, #80]
    ldp x12, x13, [sp, #96]
    ldp x14, x15, [sp, #112]
    ldp x16, x17, [sp, #128]
    ldp x18, x30, [sp, #144]
    add sp, sp, #176
    .endm

    .section .text.vectors, "ax", @progbits
    .balign 2048
    .global vectors
vectors:
    .rept 4
    .balign 128
    b unexpected
    .endr
    .balign 128
    b synchronous
    .balign 128
    b irq
    .rept 10
    .balign 128
    b unexpected
    .endr

synchronous:
    save
    mrs x0, elr_el1
    str x0, [sp, #160]
    mov x0, sp
    bl exception
    ldr x0, [sp, #160]
    msr elr_el1, x0
    restore
    eret

irq:
    save
    bl interrupt
    restore
    eret

unexpected:
    mrs x0, esr_el1
    mrs x1, elr_el1
    mrs x2, far_el1
    bl guest_fault
    .purgem save
    .purgem restore
    .text
    "#
);

/// What lies on the stack during a synchronous exception.
#[repr(C)]
struct Frame {
    x0_to_7: [u64; 8],
    x8: u64,
    x9_to_18_and_30: [u64; 11],
    elr: u64,
}

/// An instruction that may fault, and where to go on if it does: each relative to its own place.
#[repr(C)]
struct Fixup {
    instruction: i32,
    resume: i32,
}

impl Fixup {
    fn instruction(&self) -> u64 {
        (&raw const self.instruction as u64).wrapping_add_signed(self.instruction.into())
    }

    fn resume(&self) -> u64 {
        (&raw const self.resume as u64).wrapping_add_signed(self.resume.into())
    }
}

unsafe extern "C" {
    static fixups: Fixup;
    static fixups_end: Fixup;
}

#[unsafe(no_mangle)]
extern "C" fn exception(frame: &mut Frame) {
    // SAFETY: the linker script places the table between the two symbols.
    let table = unsafe {
        let (begin, end) = (&raw const fixups, &raw const fixups_end);
        core::slice::from_raw_parts(begin, end.offset_from_unsigned(begin))
    };
    let syndrome = read_register!("esr_el1");
    match table.iter().find(|fixup| fixup.instruction() == frame.elr) {
        Some(fixup) => {
            frame.x8 = syndrome;
            frame.elr = fixup.resume();
        }
        None => {
            let address = read_register!("far_el1");
            // SAFETY: the guest ends by its own means.
            unsafe { guest_fault(syndrome, frame.elr, address) }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn interrupt() {
    gic::handle();
}
