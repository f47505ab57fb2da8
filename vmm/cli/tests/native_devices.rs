//! Interrupts from every device and controller, counted by the guest that is built in: on any /dev/kvm of either architecture.

mod support;

use support::{Builder, is_x86_64};

#[test]
fn every_source_of_interrupts_is_heard() {
    let end = Builder::command(&["hello", "ticks=slow"]).finish();
    end.expect_code(0).expect_console("problems: 0\r\n");
    let counts: &[&str] = if is_x86_64() {
        &[
            "local apic timer: 10",
            "ipi to itself: 1",
            "pit irq0 via ioapic: 10",
            "pit irq0 via pic: 10",
            "rtc periodic irq8: 10",
            "rtc update irq8: 1",
            "rtc alarm irq8: 1",
            "uart thr-empty irq4: 1",
            "tsc deadline: 1",
        ]
    } else {
        &["virtual timer intid 27: 10", "sgi to itself: 1", "pl011 transmit irq: 1", "pl031 alarm irq: 1"]
    };
    for count in counts {
        end.expect_console(&format!("{count}\r\n"));
    }
    if !is_x86_64() {
        // By the frame of a GICv2, or the ITS of a GICv3.
        let message = if end.console.contains("interrupt controller: v2m") { "msi by v2m: 1" } else { "lpi by its: 1" };
        end.expect_console(&format!("{message}\r\n"));
    }
}

#[test]
fn memory_that_is_shared_and_taken_beforehand_is_a_guests_like_any() {
    let end = Builder::command(&["hello", "--memory", "256M,shared,prefault"]).finish();
    end.expect_code(0).expect_console("problems: 0\r\n");
    let memory =
        end.console.lines().find_map(|line| line.strip_prefix("memory: ")?.split_once(" KiB")).map(|(kib, _)| kib);
    // All of it but what the machine keeps below 1 MiB.
    let kib: u32 = memory.and_then(|kib| kib.parse().ok()).unwrap_or_default();
    assert!(((255 << 10)..=(256 << 10)).contains(&kib), "{}", end.console);
}

#[test]
fn the_machine_of_the_other_architecture_is_refused_and_this_ones_named() {
    let (ours, other) = if is_x86_64() { ("q35-1", "virt-1") } else { ("virt-1", "q35-1") };
    let end = Builder::command(&["hello", "first", "--machine", other]).finish();
    end.expect_code(1).expect_log(&format!("error: {other} is a")).expect_log(&format!("\n  try: --machine {ours}\n"));
}
