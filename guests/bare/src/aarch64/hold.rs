//! Holding values in registers while the host looks, saves and restores.
//!
//! The area: the word that ends it at 0, the stack pointer at 8, general registers from 0x100 and as they came back from 0x200, the others
//! from 0x1000 and as they came back from 0x4000.

use core::arch::global_asm;

use skep_guest_protocol::{RegisterSet, held_value};

use super::memory::pointer;
use crate::{read_register, write_register};

const VALUES: u64 = 0x100;
const RETURNED: u64 = 0x200;
const IMAGE: u64 = 0x1000;
const IMAGE_RETURNED: u64 = 0x4000;
/// `FPCR` and `FPSR` lie behind 32 registers of 16 bytes.
const CONTROL: u64 = 0x200;

/// Rounding towards zero, and every cumulative flag.
const CONTROL_HELD: [u64; 2] = [0x00c0_0000, 0x0800_009f];

// Each is called with the area in X0 and the doorbell in X1.
global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

    // Ring with X1, and wait for the area's first word.
    .macro ring
    str w1, [x1]
0:  yield
    ldr x1, [x0]
    cbz x1, 0b
    .endm

    .text
    // SP holds the area, X0 is scratch: with interrupts off no stack is needed.
    .global hold_general
hold_general:
    stp x19, x20, [sp, #-96]!
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    mov x2, sp
    str x2, [x0, #8]
    mov sp, x0
    mov x0, x1
    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    ldr x\n, [sp, #(0x100 + 8 * \n)]
    .endr
    str w0, [x0]
0:  yield
    ldr x0, [sp]
    cbz x0, 0b
    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    str x\n, [sp, #(0x200 + 8 * \n)]
    .endr
    ldr x2, [sp, #8]
    mov sp, x2
    ldp x29, x30, [sp, #80]
    ldp x27, x28, [sp, #64]
    ldp x25, x26, [sp, #48]
    ldp x23, x24, [sp, #32]
    ldp x21, x22, [sp, #16]
    ldp x19, x20, [sp], #96
    ret

    .global hold_simd
hold_simd:
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr q\n, [x0, #(0x1000 + 16 * \n)]
    .endr
    ldr x2, [x0, #0x1200]
    ldr x3, [x0, #0x1208]
    msr fpcr, x2
    msr fpsr, x3
    ring
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str q\n, [x0, #(0x4000 + 16 * \n)]
    .endr
    mrs x2, fpcr
    mrs x3, fpsr
    str x2, [x0, #0x4200]
    str x3, [x0, #0x4208]
    ret

    .global hold_sve
hold_sve:
    add x2, x0, #0x1000
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    ldr z\n, [x2, #\n, mul vl]
    .endr
    ring
    add x2, x0, #0x4000
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str z\n, [x2, #\n, mul vl]
    .endr
    ret

    .global sve_length
sve_length:
    rdvl x0, #1
    ret

    .purgem ring
    .arch_extension nosve
    .arch_extension nosimd
    .arch_extension nofp
    "#
);

unsafe extern "C" {
    fn hold_general(area: u64, doorbell: u64);
    fn hold_simd(area: u64, doorbell: u64);
    fn hold_sve(area: u64, doorbell: u64);
    fn sve_length() -> u64;
}

/// Hold registers with interrupts off, as [`skep_guest_protocol::Operation::HoldRegisters`] says; `None` where the CPU lacks them.
///
/// # Safety
///
/// The area is RAM that nothing else uses, and a write of 4 bytes to `doorbell` breaks nothing.
pub unsafe fn hold(set: RegisterSet, pattern: u64, doorbell: u64, area: u64) -> Option<u64> {
    let features = read_register!("id_aa64pfr0_el1");
    // SAFETY: the caller's. This code uses none of the further registers itself.
    unsafe {
        match set {
            RegisterSet::General => {
                fill(area + VALUES, pattern, 31);
                hold_general(area, doorbell);
                // Register 0 is scratch.
                Some(changed(area + RETURNED, pattern, 31, 1) & !1)
            }
            RegisterSet::Simd => {
                write_register!("cpacr_el1", FP_ENABLED);
                fill(area + IMAGE, pattern, 64);
                pointer::<[u64; 2]>(area + IMAGE + CONTROL).write_volatile(CONTROL_HELD);
                hold_simd(area, doorbell);
                let control = pointer::<[u64; 2]>(area + IMAGE_RETURNED + CONTROL).read_volatile() != CONTROL_HELD;
                Some(changed(area + IMAGE_RETURNED, pattern, 64, 2) | u64::from(control) << 32)
            }
            RegisterSet::Extended => {
                const SVE: u64 = 0xf << 32;
                const ZEN_ENABLED: u64 = 3 << 16;
                const LONGEST: u64 = 0xf;
                if features & SVE == 0 {
                    return None;
                }
                write_register!("cpacr_el1", FP_ENABLED | ZEN_ENABLED);
                write_register!("S3_0_C1_C2_0", LONGEST); // ZCR_EL1
                let words = sve_length() / 8;
                fill(area + IMAGE, pattern, 32 * words);
                hold_sve(area, doorbell);
                Some(changed(area + IMAGE_RETURNED, pattern, 32 * words, words))
            }
        }
    }
}

const FP_ENABLED: u64 = 3 << 20;

unsafe fn fill(address: u64, pattern: u64, words: u64) {
    for word in 0..words {
        // SAFETY: the area.
        unsafe { pointer::<u64>(address + word * 8).write_volatile(held_value(pattern, word)) };
    }
}

/// A bit for each register of `size` words that is not as [`fill`] made it.
unsafe fn changed(address: u64, pattern: u64, words: u64, size: u64) -> u64 {
    let mut changed = 0;
    for word in 0..words {
        // SAFETY: the area.
        let unchanged = unsafe { pointer::<u64>(address + word * 8).read_volatile() } == held_value(pattern, word);
        changed |= u64::from(!unchanged) << (word / size);
    }
    changed
}
