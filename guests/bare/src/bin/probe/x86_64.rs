//! The operations that only x86_64 has.

use core::arch::global_asm;
use core::ptr;

use bare::arch::{apic, cpu, guarded, memory};
use bare::irq;
use skep_guest_protocol::{Operation, X86_64_TRAMPOLINE};

use crate::Trouble;

// Another CPU begins in real mode at the start of the trampoline's page, where a copy of the first part lies, and goes on in the second.
global_asm!(
    r#"
    .section .boot, "awx", @progbits
    .code16
    .global trampoline
trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    lgdt [gdt_offset]           # 24 bits of address do
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea            # a far jump with a 32-bit offset
    .long further_cpu
    .short 0x18
trampoline_gdt:
    .short 0x1f
    .long gdt
    .set gdt_offset, trampoline_gdt - trampoline
    .balign 8
    .global trampoline_mailbox
trampoline_mailbox:
    .skip 24
    .set mailbox, {trampoline} + trampoline_mailbox - trampoline
    .global trampoline_end
trampoline_end:

    .code32
further_cpu:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ebx, offset mailbox
    mov esi, offset further_cpu_long
    jmp enter_long_mode

    .code64
further_cpu_long:
    mov rdi, [rbx]
    mov rsp, [rbx + 8]
    mov dword ptr [rbx + 16], 1
    call guest_main
    .text
    "#,
    trampoline = const X86_64_TRAMPOLINE,
);

/// What a CPU that begins finds in the trampoline's page.
#[repr(C)]
struct Mailbox {
    list: u64,
    stack: u64,
    taken: u64,
}

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_mailbox: u8;
    static trampoline_end: u8;
}

/// Carry out an operation that `main` leaves to the architecture.
///
/// # Safety
///
/// The operation breaks nothing that the guest relies on.
pub unsafe fn carry_out(operation: Operation) -> Result<u64, Trouble> {
    use Operation::*;
    match operation {
        ReadPort { port, width } => return Ok(guarded::read_port(port, width).ok_or(Trouble::Unsupported)??),
        WritePort { port, value, width } => guarded::write_port(port, value, width).ok_or(Trouble::Unsupported)??,
        ReadPortString { port, address, count, width } => {
            // SAFETY: the caller's.
            unsafe { guarded::read_port_string(port, address, count, width) }.ok_or(Trouble::Unsupported)??;
        }
        WritePortString { port, address, count, width } => {
            // SAFETY: the caller's.
            unsafe { guarded::write_port_string(port, address, count, width) }.ok_or(Trouble::Unsupported)??;
        }
        ReadMsr { index } => return Ok(guarded::rdmsr(index)?),
        // SAFETY: the caller's.
        WriteMsr { index, value } => unsafe { guarded::wrmsr(index, value)? },
        ReadCpuid { leaf, subleaf, address } => {
            let found = cpu::cpuid(leaf, subleaf);
            // SAFETY: the caller's.
            unsafe {
                memory::pointer::<[u32; 4]>(address).write_volatile([found.eax, found.ebx, found.ecx, found.edx])
            };
        }
        InitLocalApic { base, table } => {
            irq::set_table(table);
            apic::init_at(base);
        }
        InitX2Apic { table } => {
            if !apic::has_x2apic() {
                return Err(Trouble::Unsupported);
            }
            irq::set_table(table);
            apic::init_x2apic();
        }
        SendIpi { .. } | StartCpu { .. } if !apic::is_enabled() => return Err(Trouble::Unsupported),
        SendIpi { cpu, irq } => apic::send(cpu, irq as u8),
        // SAFETY: the caller's.
        StartCpu { cpu, list, stack } => unsafe { start_cpu(cpu, list, stack) },
        TripleFault => cpu::triple_fault(),
        _ => return Err(Trouble::Unsupported),
    }
    Ok(0)
}

unsafe fn start_cpu(cpu: u64, list: u64, stack: u64) {
    // The stack is used before anything can map it.
    memory::map(stack - 1, 1);
    let page: *mut u8 = memory::pointer(X86_64_TRAMPOLINE);
    // SAFETY: the page is the trampoline's, and the code between the symbols fits into it.
    unsafe {
        let begin = &raw const trampoline;
        ptr::copy_nonoverlapping(begin, page, (&raw const trampoline_end).offset_from_unsigned(begin));
        let mailbox = page.add((&raw const trampoline_mailbox).offset_from_unsigned(begin)).cast::<Mailbox>();
        mailbox.write_volatile(Mailbox { list, stack, taken: 0 });
        apic::reset(cpu);
        apic::start_up(cpu, X86_64_TRAMPOLINE);
        // The next CPU will find other things there.
        while (&raw const (*mailbox).taken).read_volatile() == 0 {
            cpu::relax();
        }
    }
}

/// End in a way that the host sees.
pub fn shut_down() -> ! {
    cpu::triple_fault()
}
