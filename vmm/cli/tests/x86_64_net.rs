//! Networks as only a PC has them.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use support::talk::{talk, with_old_card};

/// As the oldest guests have it: a kernel that does not use the I/O APIC asks the LPC bridge, by ACPI, to route the card's pin to the PIC.
#[test]
fn an_old_network_card_interrupts_by_the_pic() {
    let machine = with_old_card("skep4").cmdline("noapic");
    let end = talk(machine, "skep4", 64 << 10, "grep eth0 /proc/interrupts", |machine| machine).finish();
    end.expect_code(0).expect_console("XT-PIC");
    assert!(!end.console.contains("nobody cared"), "{}", end.console);
}
