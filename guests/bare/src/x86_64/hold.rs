//! Holding values in registers while the host looks, saves and restores.
//!
//! The area: the word that ends it at 0, the stack pointer at 8, general registers from 0x100 and as they came back from 0x200, the images
//! of the others from 0x1000 and as they came back from 0x4000.

use core::arch::{asm, global_asm};
use core::ptr;

use skep_guest_protocol::{HOLD_AREA_SIZE, RegisterSet, held_value};

use super::{cpu, memory};

const VALUES: u64 = 0x100;
const RETURNED: u64 = 0x200;
const IMAGE: u64 = 0x1000;
const IMAGE_RETURNED: u64 = 0x4000;

/// Within an FXSAVE image.
const FCW: u64 = 0;
const MXCSR: u64 = 24;
const XMM: u64 = 160;
/// Within an XSAVE image.
const XSTATE_BV: u64 = 512;

const FCW_RESET: u16 = 0x37f;
/// All exceptions masked, rounding towards plus infinity.
const MXCSR_HELD: u32 = 0x5f80;
/// The components that are plain data: AVX, AVX-512's three, PKRU.
const PLAIN_COMPONENTS: u64 = 0x2e4;
const PKRU: u32 = 9;

// RSP holds the area, RAX is scratch: with interrupts off no stack is needed.
global_asm!(
    r#"
    .text
    .global hold_general
hold_general:                   # RDI: the area, RSI: the doorbell
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rdi + 8], rsp
    mov rsp, rdi
    mov rax, rsi
    mov rcx, [rsp + 0x108]
    mov rdx, [rsp + 0x110]
    mov rbx, [rsp + 0x118]
    mov rbp, [rsp + 0x128]
    mov rsi, [rsp + 0x130]
    mov rdi, [rsp + 0x138]
    mov r8, [rsp + 0x140]
    mov r9, [rsp + 0x148]
    mov r10, [rsp + 0x150]
    mov r11, [rsp + 0x158]
    mov r12, [rsp + 0x160]
    mov r13, [rsp + 0x168]
    mov r14, [rsp + 0x170]
    mov r15, [rsp + 0x178]
    mov [rax], eax
2:  pause
    mov rax, [rsp]
    test rax, rax
    jz 2b
    mov [rsp + 0x208], rcx
    mov [rsp + 0x210], rdx
    mov [rsp + 0x218], rbx
    mov [rsp + 0x228], rbp
    mov [rsp + 0x230], rsi
    mov [rsp + 0x238], rdi
    mov [rsp + 0x240], r8
    mov [rsp + 0x248], r9
    mov [rsp + 0x250], r10
    mov [rsp + 0x258], r11
    mov [rsp + 0x260], r12
    mov [rsp + 0x268], r13
    mov [rsp + 0x270], r14
    mov [rsp + 0x278], r15
    mov rsp, [rsp + 8]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
    "#
);

unsafe extern "C" {
    fn hold_general(area: u64, doorbell: u64);
}

/// Hold registers with interrupts off, as [`skep_guest_protocol::Operation::HoldRegisters`] says; `None` where the CPU lacks them.
///
/// # Safety
///
/// The area is RAM that nothing else uses, and a write of 4 bytes to `doorbell` breaks nothing.
pub unsafe fn hold(set: RegisterSet, pattern: u64, doorbell: u64, area: u64) -> Option<u64> {
    memory::map(area, HOLD_AREA_SIZE);
    memory::map(doorbell, 4);
    // SAFETY: the caller's.
    unsafe {
        match set {
            RegisterSet::General => Some(general(pattern, doorbell, area)),
            RegisterSet::Simd => simd(pattern, doorbell, area),
            RegisterSet::Extended => extended(pattern, doorbell, area),
        }
    }
}

unsafe fn write<T>(address: u64, value: T) {
    // SAFETY: the caller's.
    unsafe { ptr::write_volatile(address as *mut T, value) }
}

unsafe fn same<T: PartialEq>(address: u64, value: T) -> bool {
    // SAFETY: the caller's.
    unsafe { ptr::read_volatile(address as *const T) == value }
}

unsafe fn general(pattern: u64, doorbell: u64, area: u64) -> u64 {
    const RAX: u64 = 0;
    const RSP: u64 = 4;
    let mut changed = 0;
    // SAFETY: `hold`'s.
    unsafe {
        for register in 0..16 {
            write(area + VALUES + register * 8, held_value(pattern, register));
        }
        hold_general(area, doorbell);
        for register in (0..16).filter(|&register| register != RAX && register != RSP) {
            let unchanged = same(area + RETURNED + register * 8, held_value(pattern, register));
            changed |= u64::from(!unchanged) << register;
        }
    }
    changed
}

unsafe fn simd(pattern: u64, doorbell: u64, area: u64) -> Option<u64> {
    const FXSR_AND_SSE: u32 = 1 << 24 | 1 << 25;
    if cpu::cpuid(1, 0).edx & FXSR_AND_SSE != FXSR_AND_SSE {
        return None;
    }
    let mut changed = 0;
    // SAFETY: `hold`'s. This code uses none of these registers itself.
    unsafe {
        cpu::set_cr4(cpu::CR4_OSFXSR);
        write(area + IMAGE + FCW, FCW_RESET);
        write(area + IMAGE + MXCSR, MXCSR_HELD);
        for word in 0..32 {
            write(area + IMAGE + XMM + word * 8, held_value(pattern, word));
        }
        asm!(
            "fxrstor64 [{area} + 0x1000]",
            "mov [{doorbell}], {doorbell:e}",
            "2: pause",
            "cmp qword ptr [{area}], 0",
            "je 2b",
            "fxsave64 [{area} + 0x4000]",
            area = in(reg) area,
            doorbell = in(reg) doorbell,
        );
        for word in 0..32 {
            let unchanged = same(area + IMAGE_RETURNED + XMM + word * 8, held_value(pattern, word));
            changed |= u64::from(!unchanged) << (word / 2);
        }
        changed |= u64::from(!same(area + IMAGE_RETURNED + MXCSR, MXCSR_HELD)) << 32;
    }
    Some(changed)
}

unsafe fn extended(pattern: u64, doorbell: u64, area: u64) -> Option<u64> {
    const XSAVE: u32 = 1 << 26;
    const LEGACY: u64 = 3;
    if cpu::cpuid(1, 0).ecx & XSAVE == 0 {
        return None;
    }
    let components = u64::from(cpu::cpuid(0xd, 0).eax) & PLAIN_COMPONENTS;
    if components == 0 {
        return None;
    }
    // What lies where: the offset and the size of a component, as far as it holds data.
    let held = |component: u32| {
        let place = cpu::cpuid(0xd, component);
        let size = if component == PKRU { 4 } else { place.eax };
        (0..u64::from(size) / 4).map(move |word| (u64::from(place.ebx) + word * 4, held_value(pattern, word) as u32))
    };
    let numbers = || (0..64).filter(|component| components >> component & 1 != 0);
    let mut changed = 0;
    // SAFETY: `hold`'s. This code uses none of these registers itself.
    unsafe {
        cpu::set_cr4(cpu::CR4_OSFXSR | cpu::CR4_OSXSAVE);
        cpu::xsetbv(components | LEGACY);
        write(area + IMAGE + FCW, FCW_RESET);
        write(area + IMAGE + MXCSR, MXCSR_HELD);
        write(area + IMAGE + XSTATE_BV, components);
        for component in numbers() {
            for (offset, value) in held(component) {
                write(area + IMAGE + offset, value);
            }
        }
        asm!(
            "xrstor64 [{area} + 0x1000]",
            "mov [{doorbell}], {doorbell:e}",
            "2: pause",
            "cmp qword ptr [{area}], 0",
            "je 2b",
            "xsave64 [{area} + 0x4000]",
            area = in(reg) area,
            doorbell = in(reg) doorbell,
            in("eax") components as u32,
            in("edx") 0,
        );
        for component in numbers() {
            let unchanged = held(component).all(|(offset, value)| same(area + IMAGE_RETURNED + offset, value));
            changed |= u64::from(!unchanged) << component;
        }
    }
    Some(changed)
}
