//! Exceptions and interrupts.
//!
//! The table of gates is made at link time: filling it would cost some thousands of instructions. The guest lies between 1 MiB and 1 MiB
//! plus 64 KiB, so that the high half of each gate's address is known.

use core::arch::global_asm;

use super::{apic, guarded};
use crate::{guest_fault, irq};

global_asm!(
    r#"
    .section .boot, "awx", @progbits

    # Vectors 0 to 31, 16 bytes each, with a 0 where the CPU pushes no error code: all but 8, 10 to 14, 17, 21, 29, 30.
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if (0x60227d00 >> vector) & 1
    .else
    push 0
    .endif
    push vector
    jmp exception_common
    .set vector, vector + 1
    .endr

    # Vectors 32 to 255, 8 bytes each. PUSH with a sign-extended byte is the short one.
    .balign 16
irq_stubs:
    .rept 224
    .balign 8
    .byte 0x6a, vector
    jmp irq_common
    .set vector, vector + 1
    .endr

exception_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov rdi, rsp
    call exception
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

irq_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    movzx edi, byte ptr [rsp + 72]
    sub rsp, 8
    call interrupt
    add rsp, 8
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 8
    iretq

    .balign 16
idt:
    .set vector, 0
    .rept 32
    .if vector - 6
    .short exception_stubs + vector * 16 - 0x100000
    .else
    .short user_gate - 0x100000
    .endif
    .short 0x08, 0x8e00, 0x10
    .quad 0
    .set vector, vector + 1
    .endr
    .rept 224
    .short irq_stubs + (vector - 32) * 8 - 0x100000
    .short 0x08, 0x8e00, 0x10
    .quad 0
    .set vector, vector + 1
    .endr
    .global idt_pointer
idt_pointer:
    .short . - idt - 1
    .quad idt
    .global exception_undefined
    .set exception_undefined, exception_stubs + 6 * 16
    .text
    "#
);

/// What lies on the stack during an exception.
#[repr(C)]
struct Frame {
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
}

/// An instruction that may fault, and where to go on if it does.
#[repr(C)]
struct Fixup {
    instruction: u64,
    resume: u64,
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
    match table.iter().find(|fixup| fixup.instruction == frame.rip) {
        Some(fixup) => {
            frame.r8 = guarded::FAULT | frame.vector;
            frame.rip = fixup.resume;
        }
        None => {
            let address: u64;
            // SAFETY: reads a register. The guest ends by its own means.
            unsafe {
                core::arch::asm!("mov {}, cr2", out(reg) address);
                guest_fault(frame.vector, frame.rip, address)
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn interrupt(vector: u64) {
    irq::taken(vector, apic::id());
    apic::end_of_interrupt(vector);
}
