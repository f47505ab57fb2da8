//! PSCI 1.0 (Arm DEN0022), called by `HVC`.

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use super::memory;

const CPU_ON: u64 = 0xc400_0003;
const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const VERSION: u64 = 0x8400_0000;

unsafe extern "C" {
    static further_cpu: u8;
    static count_cpu: u8;
}

/// A call of four registers.
fn call(arguments: [u64; 4]) -> u64 {
    let [function, a, b, c] = arguments;
    let result;
    // SAFETY: by the SMC calling convention X4 to X17 may change.
    unsafe {
        asm!("hvc #0", inout("x0") function => result, inout("x1") a => _, inout("x2") b => _, inout("x3") c => _,
            out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _);
    }
    result
}

/// Let the CPU with these affinity fields begin with `function` and its argument, on the stack that ends at `stack`. The result is PSCI's.
///
/// # Safety
///
/// Nothing else uses the stack.
pub unsafe fn start_cpu(cpu: u64, stack: u64, function: extern "C" fn(u64) -> !, argument: u64) -> u64 {
    // SAFETY: the caller's. The new CPU reads it with its caches on.
    unsafe { memory::pointer::<[u64; 2]>(stack - 16).write_volatile([function as usize as u64, argument]) };
    call([CPU_ON, cpu, &raw const further_cpu as u64, stack])
}

/// Let the CPU with these affinity fields add one to the counter, and wait for ever. The result is PSCI's.
pub fn start_counting(cpu: u64, counter: &'static AtomicU32) -> u64 {
    call([CPU_ON, cpu, &raw const count_cpu as u64, counter.as_ptr() as u64])
}

/// PSCI's version: major in the high half of 32 bits, minor in the low one.
pub fn version() -> u32 {
    call([VERSION, 0, 0, 0]) as u32
}

/// Turn the machine off.
pub fn system_off() -> ! {
    call([SYSTEM_OFF, 0, 0, 0]);
    super::cpu::park()
}

/// Reset the machine.
pub fn system_reset() -> ! {
    call([SYSTEM_RESET, 0, 0, 0]);
    super::cpu::park()
}
