//! The guests: 32-bit code in flat segments at CPL 0, without paging. Each ends by a write to [`END`], after which it halts.

use std::arch::global_asm;

/// A write here makes the test's device kick the vCPU.
pub(crate) const END: u16 = 0xf4;

/// The bytes of a guest between two of its symbols.
macro_rules! guest {
    ($(#[$doc:meta])* $name:ident, $begin:ident, $finish:ident, $($line:literal),+ $(,)?) => {
        global_asm!(
            ".pushsection .rodata",
            ".code32",
            concat!(stringify!($begin), ":"),
            $($line,)+
            "out 0xf4, al",
            "77: hlt",
            "jmp 77b",
            concat!(stringify!($finish), ":"),
            ".code64",
            ".popsection",
        );
        unsafe extern "C" {
            static $begin: u8;
            static $finish: u8;
        }
        $(#[$doc])*
        pub(crate) fn $name() -> &'static [u8] {
            let (begin, end) = (&raw const $begin, &raw const $finish);
            // SAFETY: both symbols delimit what was assembled above.
            unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
        }
    };
}

guest! {
    /// Writes EAX to port 0x200 and reads 0x210 into EBX, by each width; then 3 words of a string from ESI to 0x220, 4 bytes from 0x230 to EDI.
    ports, x86_ports, x86_ports_end,
    "mov dx, 0x200",
    "out dx, al",
    "out dx, ax",
    "out dx, eax",
    "mov dx, 0x210",
    "in al, dx",
    "mov bl, al",
    "in ax, dx",
    "shl ebx, 8",
    "in eax, dx",
    "mov ebp, eax",
    "cld",
    "mov dx, 0x220",
    "mov ecx, 3",
    "rep outsw",
    "mov dx, 0x230",
    "mov ecx, 4",
    "rep insb",
}

guest! {
    /// Writes EAX to EDI and reads it back into EBX, ECX and EDX, by each width.
    memory, x86_memory, x86_memory_end,
    "mov [edi], al",
    "mov [edi], ax",
    "mov [edi], eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "mov bl, [edi]",
    "mov cx, [edi]",
    "mov edx, [edi]",
}

guest! {
    /// Writes to ECX pages from EDI on.
    touch, x86_touch, x86_touch_end,
    "22: mov [edi], ecx",
    "add edi, 0x1000",
    "dec ecx",
    "jnz 22b",
}

guest! {
    /// Reads MSR ECX into EAX and EBX (EDX's half), adds 1, and writes it back.
    msr, x86_msr, x86_msr_end,
    "rdmsr",
    "mov ebx, edx",
    "add eax, 1",
    "wrmsr",
}

guest! {
    /// Reads MSR ECX into EDX and EAX.
    read_msr, x86_read_msr, x86_read_msr_end,
    "rdmsr",
}

guest! {
    /// Runs for ever.
    spin, x86_spin, x86_spin_end,
    "33: pause",
    "jmp 33b",
}

guest! {
    /// Halts for ever, with interrupts off.
    halt, x86_halt, x86_halt_end,
    "44: hlt",
    "jmp 44b",
}

guest! {
    /// Raises an exception that nothing can handle.
    triple_fault, x86_triple_fault, x86_triple_fault_end,
    "lidt [edi]",
    "ud2",
}

guest! {
    /// Jumps to EDI.
    jump, x86_jump, x86_jump_end,
    "jmp edi",
}

guest! {
    /// With the IDT at [EDI] waits for interrupts in HLT for ever. The handlers of vectors 0x30 and 0x31 follow: see [`crate::interrupts`].
    wait, x86_wait, x86_wait_end,
    "lidt [edi]",
    "55: sti",
    "hlt",
    "jmp 55b",
    // The PIC's: tells its number. A KVM without hardware virtualization does not know IRET: the frame is dropped.
    "66: mov al, 0x30",
    "out 0x80, al",
    "add esp, 12",
    "jmp 55b",
    // The local APIC's: the same, and the end of interrupt.
    "mov al, 0x31",
    "out 0x80, al",
    "mov dword ptr [0xfee000b0], 0",
    "add esp, 12",
    "jmp 55b",
}

guest! {
    /// The same, but it does not sleep: it writes to port 0x82 with interrupts on.
    busy, x86_busy, x86_busy_end,
    "lidt [edi]",
    "55: sti",
    "66: out 0x82, al",
    "jmp 66b",
    "mov al, 0x30",
    "out 0x80, al",
    "add esp, 12",
    "jmp 55b",
    "mov al, 0x31",
    "out 0x80, al",
    "mov dword ptr [0xfee000b0], 0",
    "add esp, 12",
    "jmp 55b",
}

guest! {
    /// Fills registers of every kind with values of their own.
    fill, x86_fill, x86_fill_end,
    "mov eax, 0x11223344",
    "mov dr0, eax",
    "mov eax, 0x55667788",
    "mov dr3, eax",
    "mov ecx, 0x277",
    "mov eax, 0x00070406",
    "mov edx, 0x00070405",
    "wrmsr",
    "mov ecx, 0x174",
    "mov eax, 0x8",
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x12345000",
    "mov cr3, eax",
    "mov dword ptr [0xfee00080], 0x20",
    "mov eax, 0xa1",
    "mov ebx, 0xb2",
    "mov ecx, 0xc3",
    "mov edx, 0xd4",
    "mov esi, 0xe5",
    "mov ebp, 0xf6",
    "stc",
}
