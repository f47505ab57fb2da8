//! Power-off and reset.

use super::acpi::Acpi;
use super::cpu::{self, inb, outb, outw};
use super::user::privileged;
use crate::problem;

/// ACPI S5, by the PM1a control register (ACPI 6.5, section 4.8.3.2.1).
pub fn power_off(acpi: &Acpi) {
    const SLEEP_ENABLE: u16 = 1 << 13;
    const X_PM1A_CONTROL: u64 = 172;
    const PM1A_CONTROL: u64 = 64;
    match (acpi.port(X_PM1A_CONTROL, PM1A_CONTROL), acpi.sleep_type()) {
        (Some(port), Some(sleep_type)) => privileged(|| outw(port, u16::from(sleep_type) << 10 | SLEEP_ENABLE)),
        _ => problem!("ACPI does not say how to power off"),
    }
}

/// Reset by the FADT's reset register.
pub fn reset(acpi: &Acpi) {
    const RESET_REGISTER: u64 = 116;
    const RESET_VALUE: u64 = 128;
    const NONE: u64 = u64::MAX / 2;
    let value = acpi.find(b"FACP").and_then(|fadt| fadt.get::<u8>(RESET_VALUE));
    match (acpi.port(RESET_REGISTER, NONE), value) {
        (Some(port), Some(value)) => privileged(|| outb(port, value)),
        _ => problem!("ACPI has no reset register"),
    }
}

/// Reset by the keyboard controller.
pub fn reset_by_keyboard_controller() {
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
