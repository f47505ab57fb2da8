//! The x86_64 machine, as a PVH guest sees it.
//!
//! All of this runs in user mode, and goes to kernel mode for single instructions: see `bare::x86_64::user`.

mod clock;
mod cpus;
mod devices;
mod ticks;
use core::arch::global_asm;

use bare::arch::cpu::outb;
use bare::arch::{acpi, cpu, power, serial, start, user};
use bare::say;

use crate::command::{Echo, End};

// The first line, 16 characters: as many as the FIFO of a 16550 takes at once. Then the common entry.
global_asm!(
    r#"
    .section .boot, "awx", @progbits
    .code32
pvh_start:
    mov dx, 0x3fa               # FIFO control
    mov al, 1
    out dx, al
    mov dx, 0x3f8
    mov esi, offset first_line
    mov ecx, 16
    cld
    rep outsb
    jmp start
first_line:
    .ascii "skep hello: up\r\n"
    .code64

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start
    .text
    "#
);

#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: u64) -> ! {
    user::enter(main, start_info)
}

extern "C" fn main(start_info: u64) -> ! {
    serial::init();
    let start = start::Start::at(start_info);
    let acpi = acpi::Acpi::at(start.rsdp());
    crate::report(&Machine { start, acpi })
}

/// What was found so far.
pub struct Machine {
    start: start::Start,
    acpi: acpi::Acpi,
}

impl Machine {
    /// The command line.
    pub fn command_line(&self) -> &str {
        self.start.command_line()
    }

    /// Say what there is, but for what takes other words.
    pub fn describe(&self) {
        say!("architecture: x86_64");
        self.start.describe();
        self.acpi.describe();
        devices::describe_interrupt_controllers(&self.acpi);
        clock::describe(&self.acpi);
        devices::describe(&self.acpi);
    }

    /// Start all CPUs and count them.
    pub fn count_cpus(&self) {
        cpus::count(&self.start, &self.acpi);
    }

    /// Say what an exit to the host costs.
    pub fn measure_exits(&self) {
        clock::measure_exits(&self.acpi);
    }

    /// Take interrupts from every source.
    pub fn tick(&self, slow: bool) {
        ticks::run(&self.acpi, slow);
    }

    /// Say what the clocks show.
    pub fn tell_clocks(&self) {
        say!("clocks: {} s of the day, {} ticks", devices::seconds(), cpu::counter());
    }

    /// Make [`Machine::read_byte`] possible.
    pub fn prepare_input(&self, echo: Echo) {
        ticks::prepare_input(&self.acpi, echo);
    }

    /// Wait for a byte from the serial port.
    pub fn read_byte(&self, echo: Echo) -> u8 {
        serial::read(echo == Echo::Interrupt)
    }

    /// End as asked. What can't be done halts.
    pub fn end(&self, end: End) -> ! {
        const PVPANIC: u16 = 0x505;
        const PANICKED: u8 = 1;
        match end {
            End::PowerOff => power::power_off(&self.acpi),
            End::Reset => power::reset(&self.acpi),
            End::I8042 => power::reset_by_keyboard_controller(),
            End::Panic => user::privileged(|| outb(PVPANIC, PANICKED)),
            End::Triple => user::privileged(|| cpu::triple_fault()),
            End::Halt => {}
            End::Spin => loop {
                cpu::relax();
            },
        }
        user::privileged(|| cpu::park())
    }
}
