//! The ways to end.

use bare::arch::cpu::{self, inb, outb, outw};
use bare::arch::user::privileged;

use super::acpi::Acpi;
use crate::command::End;
use crate::console::problem;

const PVPANIC: u16 = 0x505;
const PVPANIC_PANICKED: u8 = 1;

/// End as asked. What can't be done halts.
pub fn end(acpi: &Acpi, end: End) -> ! {
    match end {
        End::PowerOff => power_off(acpi),
        End::Reset => reset(acpi),
        End::I8042 => reset_by_keyboard_controller(),
        End::Panic => privileged(|| outb(PVPANIC, PVPANIC_PANICKED)),
        End::Triple => privileged(|| cpu::triple_fault()),
        End::Halt => {}
        End::Spin => loop {
            cpu::relax();
        },
    }
    privileged(|| cpu::park())
}

/// ACPI S5, by the PM1a control register (ACPI 6.5, section 4.8.3.2.1).
fn power_off(acpi: &Acpi) {
    const SLEEP_ENABLE: u16 = 1 << 13;
    const X_PM1A_CONTROL: u64 = 172;
    const PM1A_CONTROL: u64 = 64;
    match (acpi.port(X_PM1A_CONTROL, PM1A_CONTROL), acpi.sleep_type()) {
        (Some(port), Some(sleep_type)) => privileged(|| outw(port, u16::from(sleep_type) << 10 | SLEEP_ENABLE)),
        _ => problem!("ACPI does not say how to power off"),
    }
}

/// The FADT's reset register.
fn reset(acpi: &Acpi) {
    const RESET_REGISTER: u64 = 116;
    const RESET_VALUE: u64 = 128;
    const NONE: u64 = u64::MAX / 2;
    let value = acpi.find(b"FACP").and_then(|fadt| fadt.get::<u8>(RESET_VALUE));
    match (acpi.port(RESET_REGISTER, NONE), value) {
        (Some(port), Some(value)) => privileged(|| outb(port, value)),
        _ => problem!("ACPI has no reset register"),
    }
}

fn reset_by_keyboard_controller() {
    const COMMAND: u16 = 0x64;
    const INPUT_FULL: u8 = 2;
    const PULSE_RESET: u8 = 0xfe;
    privileged(|| {
        while inb(COMMAND) & INPUT_FULL != 0 && inb(COMMAND) != 0xff {
            cpu::relax();
        }
        outb(COMMAND, PULSE_RESET);
    });
}
