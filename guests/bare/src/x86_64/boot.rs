//! From 32-bit protected mode to `guest_main` in long mode.

use core::arch::global_asm;

// `start`: the PVH entry (Xen's x86/HVM direct boot ABI). EBX becomes the argument of guest_main.
//
// `enter_long_mode`: for further CPUs too; paging is off. EBX is kept, and it goes on at ESI with no stack.
//
// The tables here map the first 2 MiB, where the guest lies, for kernel and user mode; `memory::map` adds the rest on demand.
global_asm!(
    r#"
    .section .boot.start, "awx", @progbits
    .code32
    .global start
start:
    cli
    cld
    mov dword ptr [page_map], offset page_directories + 7
    mov dword ptr [page_directories], offset page_directory + 7
    mov dword ptr [page_directory], 0x87
    mov esi, offset first_cpu

    .global enter_long_mode
enter_long_mode:
    lgdt [gdt_pointer]
    mov eax, 0x20               # PAE
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    mov eax, 0x100              # LME
    xor edx, edx
    wrmsr
    mov eax, 0x80010033         # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xea                  # a far jump: Intel syntax has none to a symbol
    .long long_mode
    .short 0x08

    .code64
long_mode:
    mov eax, 0x10
    mov ss, eax
    lidt [idt_pointer]
    mov esi, esi
    jmp rsi

first_cpu:
    mov esp, offset stack_top
    mov edi, ebx
    call guest_main

    .balign 8
    .global gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    # 0x08 64-bit kernel code
    .quad 0x00cf93000000ffff    # 0x10 kernel data
    .quad 0x00cf9b000000ffff    # 0x18 32-bit kernel code
    .quad 0x00cff3000000ffff    # 0x20 user data
    .quad 0x00affb000000ffff    # 0x28 64-bit user code
    .global task_segment
task_segment:
    .quad 0, 0                  # 0x30 task state
    .global gdt_pointer
gdt_pointer:
    .short . - gdt - 1
    .quad gdt

    .section .bss.pages, "aw", @nobits
    .balign 4096
    .global page_map
page_map: .skip 4096
page_directories: .skip 4096
page_directory: .skip 4096

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip 0x4000
    .global stack_top
stack_top:
    .text
    "#
);
