//! `hello`: says what it finds in the machine, a line for each fact, on the first serial port.
//!
//! Boots as a PVH ELF file on x86_64 and as a Linux `Image` on aarch64. The first line, `skep hello: up`, comes as early as can be: what it takes
//! is measured. The words of the command line are described where the guest is embedded, in `skep-guests`.

#![no_std]
#![no_main]

mod command;
#[cfg_attr(target_arch = "x86_64", path = "x86_64/mod.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64/mod.rs")]
mod machine;
use core::panic::PanicInfo;

use bare::arch::cpu;
use bare::{console, problem, say};

use command::{Command, Echo};

/// Say everything that the command line asks for, and end.
fn report(machine: &machine::Machine) -> ! {
    let command = Command::parse(machine.command_line());
    if command.first {
        machine.end(command.end);
    }
    if command.cpus_only {
        machine.count_cpus();
    } else {
        say!("command line: {}", machine.command_line());
        machine.describe();
        machine.count_cpus();
        machine.measure_exits();
    }
    if command.ticks {
        machine.tick(command.slow_ticks);
    }
    if let Some(echo) = command.echo {
        echo_lines(machine, echo);
    }
    say!("problems: {}", console::problems());
    say!("end: {}", command.end.word());
    machine.end(command.end)
}

/// Write every line that is read, until `bye`; and what the clocks show, where one says `clocks`.
fn echo_lines(machine: &machine::Machine, echo: Echo) {
    let mut line = [0; 128];
    let mut length = 0;
    say!("echo: ready");
    machine.prepare_input(echo);
    loop {
        let byte = machine.read_byte(echo);
        if byte != b'\r' && byte != b'\n' {
            if let Some(place) = line.get_mut(length) {
                *place = byte;
                length += 1;
            }
            continue;
        }
        let text = line.get(..length).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or("?");
        if length != 0 {
            say!("echo: {text}");
        }
        match text {
            "bye" => return,
            "clocks" => machine.tell_clocks(),
            _ => {}
        }
        length = 0;
    }
}

/// An exception that nothing here allows for.
#[unsafe(no_mangle)]
extern "C" fn guest_fault(number: u64, instruction: u64, address: u64) -> ! {
    problem!("exception {number:#x} at {instruction:#x}, address {address:#x}");
    cpu::park()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    problem!("{}", info.message());
    cpu::park()
}

/// How long is waited for what must come.
const PATIENCE_MS: u64 = 5000;
