//! The local APIC in either mode (Intel SDM volume 3, chapter 12), and the PIC where interrupts come through it.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::{cpu, memory};

const APIC_BASE_MSR: u32 = 0x1b;
const X2APIC_MODE: u64 = 0xc00;

/// Registers, by their offset in memory; their MSR is 0x800 + offset / 16.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const LOCAL_TIMER: u32 = 0x320;
const LOCAL_LINT0: u32 = 0x350;
const LOCAL_LINT1: u32 = 0x360;
const LOCAL_ERROR: u32 = 0x370;
const TIMER_COUNT: u32 = 0x380;
const TIMER_DIVIDER: u32 = 0x3e0;

const MASKED: u32 = 1 << 16;
const EXTERNAL: u32 = 7 << 8;
/// Software enable, and the spurious vector.
const ENABLED: u32 = 0x1ff;
const SPURIOUS_VECTOR: u64 = 0xff;
const COMMAND_PENDING: u32 = 1 << 12;
const INIT: u32 = 0x4500;
const STARTUP: u32 = 0x4600;

/// x2APIC mode in [`MODE`], which otherwise is the base address.
const X2APIC: u64 = 1;
/// How this guest speaks to all its local APICs; 0 before that is known.
static MODE: AtomicU64 = AtomicU64::new(0);
/// The first of 16 vectors that come through the PIC; 0 for none.
static PIC_VECTORS: AtomicU8 = AtomicU8::new(0);

/// Whether the CPU has x2APIC mode.
pub fn has_x2apic() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 21 != 0
}

/// Whether this CPU is in x2APIC mode already.
pub fn in_x2apic_mode() -> bool {
    cpu::rdmsr(APIC_BASE_MSR) & X2APIC_MODE == X2APIC_MODE
}

/// Whether [`init_x2apic`] or [`init_at`] was called, on any CPU.
pub fn is_enabled() -> bool {
    MODE.load(Ordering::Relaxed) != 0
}

/// Enable this CPU's local APIC in x2APIC mode, with its local interrupts masked. The CPU must have it.
pub fn init_x2apic() {
    // SAFETY: interrupts are off, and nothing uses the registers in memory from here on.
    unsafe { cpu::wrmsr(APIC_BASE_MSR, cpu::rdmsr(APIC_BASE_MSR) | X2APIC_MODE) };
    MODE.store(X2APIC, Ordering::Relaxed);
    init();
}

/// Enable this CPU's local APIC, whose registers are at `base`, with its local interrupts masked.
pub fn init_at(base: u64) {
    MODE.store(base, Ordering::Relaxed);
    init();
}

fn init() {
    for register in [LOCAL_TIMER, LOCAL_LINT0, LOCAL_LINT1, LOCAL_ERROR] {
        write(register, MASKED);
    }
    write(TASK_PRIORITY, 0);
    write(SPURIOUS, ENABLED);
}

fn read(register: u32) -> u32 {
    match MODE.load(Ordering::Relaxed) {
        X2APIC => cpu::rdmsr(0x800 + register / 16) as u32,
        // SAFETY: a register of the local APIC.
        base => unsafe { memory::read32(base + u64::from(register)) },
    }
}

fn write(register: u32, value: u32) {
    // SAFETY: a register of the local APIC.
    unsafe {
        match MODE.load(Ordering::Relaxed) {
            X2APIC => cpu::wrmsr(0x800 + register / 16, value.into()),
            base => memory::write32(base + u64::from(register), value),
        }
    }
}

/// This CPU's APIC id; 0 before the local APIC is known.
pub fn id() -> u64 {
    match MODE.load(Ordering::Relaxed) {
        0 => 0,
        X2APIC => read(ID).into(),
        _ => (read(ID) >> 24).into(),
    }
}

/// The local APIC's version register.
pub fn version() -> u32 {
    read(0x30)
}

/// Send a command to the CPU with APIC id `cpu`.
fn command(cpu: u64, command: u32) {
    match MODE.load(Ordering::Relaxed) {
        0 => {}
        // SAFETY: sends an interrupt.
        X2APIC => unsafe { cpu::wrmsr(0x800 + COMMAND / 16, cpu << 32 | u64::from(command)) },
        _ => {
            write(COMMAND_HIGH, (cpu << 24) as u32);
            write(COMMAND, command);
            while read(COMMAND) & COMMAND_PENDING != 0 {
                cpu::relax();
            }
        }
    }
}

/// Send `vector` to the CPU with APIC id `cpu`.
pub fn send(cpu: u64, vector: u8) {
    command(cpu, 0x4000 | u32::from(vector));
}

/// Reset the CPU with APIC id `cpu`, so that it waits for [`start_up`].
pub fn reset(cpu: u64) {
    command(cpu, INIT);
}

/// Let the CPU with APIC id `cpu` begin in real mode in the page at `page`, below 1 MiB.
pub fn start_up(cpu: u64, page: u64) {
    command(cpu, STARTUP | (page >> 12) as u32);
}

/// Let the timer raise `vector` every `count` bus clocks divided by 16; with a count of 0 it stops.
pub fn start_timer(vector: u8, count: u32) {
    const PERIODIC: u32 = 1 << 17;
    const DIVIDE_BY_16: u32 = 3;
    write(TIMER_DIVIDER, DIVIDE_BY_16);
    write(LOCAL_TIMER, if count == 0 { MASKED } else { PERIODIC | u32::from(vector) });
    write(TIMER_COUNT, count);
}

/// Let the timer raise `vector` once, when the time stamp counter reaches `deadline`. The CPU must have that mode.
pub fn start_deadline(vector: u8, deadline: u64) {
    const TSC_DEADLINE: u32 = 2 << 17;
    const TSC_DEADLINE_MSR: u32 = 0x6e0;
    write(LOCAL_TIMER, TSC_DEADLINE | u32::from(vector));
    // SAFETY: raises an interrupt.
    unsafe { cpu::wrmsr(TSC_DEADLINE_MSR, deadline) };
}

/// Let the PIC interrupt this CPU, with 16 vectors from `first` on; 0 shuts it out.
pub fn connect_pic(first: u8) {
    PIC_VECTORS.store(first, Ordering::Relaxed);
    write(LOCAL_LINT0, if first == 0 { MASKED } else { EXTERNAL });
}

/// End interrupt `vector`, where it came from.
pub fn end_of_interrupt(vector: u64) {
    let first = u64::from(PIC_VECTORS.load(Ordering::Relaxed));
    if first != 0 && (first..first + 16).contains(&vector) {
        const NON_SPECIFIC: u8 = 0x20;
        if vector >= first + 8 {
            cpu::outb(0xa0, NON_SPECIFIC);
        }
        cpu::outb(0x20, NON_SPECIFIC);
    } else if vector != SPURIOUS_VECTOR && MODE.load(Ordering::Relaxed) != 0 {
        write(END_OF_INTERRUPT, 0);
    }
}
