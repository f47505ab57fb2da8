//! User mode, and the way back.
//!
//! A KVM without hardware virtualization emulates kernel-mode code one instruction at a time, but runs user mode at full speed: so what takes long
//! runs there. It is no protection: user mode may do everything, by [`privileged`].

use core::arch::{asm, global_asm};
use core::mem::{ManuallyDrop, MaybeUninit};

// The way back is an undefined instruction: SYSCALL and INT don't do everywhere. The handler calls RAX and goes on behind it.
//
// The I/O permission bitmap is missing, so port accesses in user mode fault.
global_asm!(
    r#"
    .section .boot, "awx", @progbits
    .global enter_user_mode
enter_user_mode:                # RDI: the argument, RSI: the function
    lea rax, [rip + task_state]
    lea rcx, [rip + stack_top]
    mov [rip + task_state + 4], rcx
    mov word ptr [rip + task_state + 0x66], 0x68
    mov word ptr [rip + task_segment], 0x67
    mov word ptr [rip + task_segment + 2], ax
    shr eax, 16
    mov byte ptr [rip + task_segment + 4], al
    mov byte ptr [rip + task_segment + 5], 0x89
    mov byte ptr [rip + task_segment + 7], ah
    mov eax, 0x30
    ltr ax
    lea rax, [rip + user_stack_top - 8]
    push 0x23
    push rax
    push 0x02
    push 0x2b
    push rsi
    iretq

    .global user_gate
user_gate:
    test byte ptr [rsp + 8], 3
    jz exception_undefined
    add qword ptr [rsp], 2
    sub rsp, 8
    call rax
    add rsp, 8
    iretq

    .section .bss.user, "aw", @nobits
    .balign 16
task_state: .skip 0x68
    .balign 16
    .skip 0x4000
user_stack_top:
    .text
    "#
);

unsafe extern "C" {
    fn enter_user_mode(argument: u64, function: extern "C" fn(u64) -> !) -> !;
}

/// Go on with `function` in user mode, for ever.
pub fn enter(function: extern "C" fn(u64) -> !, argument: u64) -> ! {
    // SAFETY: the boot code's tables have the segments, and every page is a user page.
    unsafe { enter_user_mode(argument, function) }
}

/// In user mode: do something in kernel mode, with interrupts off.
pub fn privileged<R, F: FnOnce() -> R>(action: F) -> R {
    struct Call<R, F> {
        action: ManuallyDrop<F>,
        result: MaybeUninit<R>,
    }
    extern "C" fn carry_out<R, F: FnOnce() -> R>(call: &mut Call<R, F>) {
        // SAFETY: it is taken once.
        let action = unsafe { ManuallyDrop::take(&mut call.action) };
        call.result.write(action());
    }
    let mut call = Call { action: ManuallyDrop::new(action), result: MaybeUninit::uninit() };
    let function: extern "C" fn(&mut Call<R, F>) = carry_out;
    // SAFETY: the handler calls the function as the ABI says, and that writes the result.
    unsafe {
        asm!("ud2", in("rax") function, in("rdi") &raw mut call, clobber_abi("sysv64"));
        call.result.assume_init()
    }
}
