//! From EL1 with the MMU off to `guest_main` with caches.

use core::arch::global_asm;

// `start`: X0 becomes the argument of guest_main, as it is for a Linux Image or a probe.
//
// `further_cpu`: where PSCI starts another CPU. X0 is the top of its stack, and what lies below that the function and its argument.
//
// `count_cpu`: the same without a stack. X0 is the address of a counter of 4 bytes.
//
// The MMU comes first: without it memory is uncached, and exclusive accesses need not work. The one table is made at link time and maps
// 512 GiB by 1 GiB blocks: devices, from 1 GiB on memory, and from 256 GiB on devices again.
global_asm!(
    r#"
    .section .boot.start, "awx", @progbits
    .global start
start:
    mov x19, x0
    bl enable_mmu
    adrp x1, stack_top
    add x1, x1, :lo12:stack_top
    mov sp, x1

    adrp x1, bss
    add x1, x1, :lo12:bss
    adrp x2, bss_end
    add x2, x2, :lo12:bss_end
0:  cmp x1, x2
    b.eq 1f
    stp xzr, xzr, [x1], #16
    b 0b

1:  adrp x0, image              // R_AARCH64_RELATIVE: offset, type, addend
    add x0, x0, :lo12:image
    adrp x1, relocations
    add x1, x1, :lo12:relocations
    adrp x2, relocations_end
    add x2, x2, :lo12:relocations_end
2:  cmp x1, x2
    b.eq 3f
    ldp x3, x4, [x1], #16
    ldr x4, [x1], #8
    add x4, x4, x0
    str x4, [x0, x3]
    b 2b

3:  mov x0, x19
    mov x29, xzr
    bl guest_main

    .global count_cpu
count_cpu:
    mov x19, x0
    bl enable_mmu
4:  ldaxr w1, [x19]
    add w1, w1, #1
    stlxr w2, w1, [x19]
    cbnz w2, 4b
5:  wfi
    b 5b

    .global further_cpu
further_cpu:
    mov x19, x0
    bl enable_mmu
    mov sp, x19
    ldp x1, x0, [sp, #-16]
    mov x29, xzr
    blr x1

enable_mmu:
    adrp x1, vectors
    add x1, x1, :lo12:vectors
    msr vbar_el1, x1
    adrp x1, blocks
    add x1, x1, :lo12:blocks
    msr ttbr0_el1, x1
    mov x1, #0xff04             // MAIR: 0 is Device-nGnRE, 1 is write-back memory
    msr mair_el1, x1
    mrs x1, id_aa64mmfr0_el1    // the physical addresses that this CPU has, 48 bits at most
    and x1, x1, #0xf
    mov x2, #5
    cmp x1, x2
    csel x1, x1, x2, lo
    lsl x1, x1, #32
    mov x2, #0x3519             // TCR: 39 bits, 4 KiB granule, walks inner shareable write-back
    movk x2, #0x80, lsl #16     // no second half
    orr x1, x1, x2
    msr tcr_el1, x1
    tlbi vmalle1
    ic iallu
    dsb nsh
    isb
    mov x1, #0x1805             // SCTLR: I, EOS, C, M
    movk x1, #0x30d0, lsl #16   // what must be one
    msr sctlr_el1, x1
    isb
    ret

    .section .rodata.blocks, "a", @progbits
    .balign 4096
blocks:
    .set block, 0
    .rept 512
    .if (block == 0) || (block >= 256)
    .quad (block << 30) | 0x0060000000000401
    .else
    .quad (block << 30) | 0x0000000000000705
    .endif
    .set block, block + 1
    .endr
    .text
    "#
);
