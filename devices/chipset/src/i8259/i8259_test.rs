use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use skep_clock::Clock;

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

fn rig() -> Rig<I8259> {
    let log = Log::default();
    let device = Arc::new(I8259::new(I8259Config { intr: log.line("intr") }));
    let (poked, noted) = (device.clone(), log.clone());
    let poke = Box::new(move |value: u64| match value % 4 {
        0 => noted.note(format!("vector {:x}", poked.acknowledge())),
        _ => poked.set_level((value >> 8) as u32 % 16, value & 0x80 != 0),
    });
    Rig { device, clock: Clock::manual(0), log, regions: &[(MASTER, 2), (SLAVE, 2), (ELCR, 2)], poke }
}

/// As Linux sets it up: vectors from 0x30 on, nothing masked, with `icw4`.
fn set_up(icw4: u8) -> Rig<I8259> {
    let rig = rig();
    for (chip, icw2, icw3) in [(MASTER, 0x30, 4), (SLAVE, 0x38, 2)] {
        rig.write(chip, 0, 0x11);
        rig.write(chip, 1, icw2);
        rig.write(chip, 1, icw3);
        rig.write(chip, 1, icw4);
        rig.write(chip, 1, 0);
    }
    rig
}

fn pulse(rig: &Rig<I8259>, line: u32) {
    rig.device.set_level(line, true);
    rig.device.set_level(line, false);
}

fn isr(rig: &Rig<I8259>, chip: u32) -> u8 {
    rig.write(chip, 0, 0x0b);
    rig.read(chip, 0)
}

fn irr(rig: &Rig<I8259>, chip: u32) -> u8 {
    rig.write(chip, 0, 0x0a);
    rig.read(chip, 0)
}

device_properties!("chipset-i8259", rig);

#[test]
fn a_chip_that_was_never_initialised_requests_nothing() {
    let rig = rig();
    rig.write(MASTER, 1, 0xfb);
    assert_eq!(rig.read(MASTER, 1), 0xfb, "how Linux finds the chip");
    rig.write(MASTER, 1, 0);
    pulse(&rig, 0);
    assert_eq!(irr(&rig, MASTER), 1);
    assert!(rig.log.take().is_empty());
}

#[test]
fn interrupts_come_by_priority_and_wait_for_the_end() {
    let rig = set_up(1);
    pulse(&rig, 5);
    pulse(&rig, 3);
    assert_eq!(rig.log.take(), ["intr+"]);
    assert_eq!(rig.device.acknowledge(), 0x33);
    assert_eq!(rig.log.take(), ["intr-"], "5 waits for 3");
    pulse(&rig, 1);
    assert_eq!(rig.device.acknowledge(), 0x31, "1 does not");
    assert_eq!((isr(&rig, MASTER), irr(&rig, MASTER)), (0x0a, 0x20));
    rig.write(MASTER, 0, 0x20);
    assert_eq!(isr(&rig, MASTER), 0x08);
    rig.write(MASTER, 0, 0x63);
    assert_eq!(rig.log.take(), ["intr+", "intr-", "intr+"]);
    assert_eq!(rig.device.acknowledge(), 0x35);
}

#[test]
fn the_slave_is_at_input_2() {
    let rig = set_up(1);
    pulse(&rig, 12);
    pulse(&rig, 8);
    assert_eq!(rig.device.acknowledge(), 0x38);
    assert_eq!((isr(&rig, MASTER), isr(&rig, SLAVE)), (0x04, 0x01));
    pulse(&rig, 3);
    rig.log.take();
    rig.write(SLAVE, 0, 0x20);
    assert!(rig.log.take().is_empty(), "the master still serves the slave");
    rig.write(MASTER, 0, 0x20);
    assert_eq!(rig.log.take(), ["intr+"]);
    assert_eq!(rig.device.acknowledge(), 0x3c, "the slave's interrupts go before 3");
    rig.write(SLAVE, 0, 0x20);
    rig.write(MASTER, 0, 0x62);
    assert_eq!(rig.device.acknowledge(), 0x33);
    rig.device.set_level(2, true);
    assert_eq!(irr(&rig, MASTER), 0, "nobody else drives input 2");
}

#[test]
fn special_fully_nested_mode_lets_the_slave_interrupt_itself() {
    for (icw4, interrupts) in [(0x01, false), (0x11, true)] {
        let rig = set_up(icw4);
        pulse(&rig, 12);
        rig.device.acknowledge();
        rig.log.take();
        pulse(&rig, 9);
        assert_eq!(rig.log.take() == ["intr+"], interrupts);
    }
}

#[test]
fn a_request_that_has_gone_is_spurious() {
    let rig = set_up(1);
    rig.write(ELCR, 0, 0xff);
    rig.write(ELCR, 1, 0xff);
    assert_eq!((rig.read(ELCR, 0), rig.read(ELCR, 1)), (0xf8, 0xde));
    rig.device.set_level(5, true);
    rig.device.set_level(5, false);
    assert_eq!(rig.log.take(), ["intr+", "intr-"]);
    assert_eq!(rig.device.acknowledge(), 0x37);
    assert_eq!((isr(&rig, MASTER), irr(&rig, MASTER)), (0, 0));
    // The slave's request is latched in the master before it goes.
    rig.device.set_level(10, true);
    rig.device.set_level(10, false);
    assert_eq!(rig.device.acknowledge(), 0x3f);
    assert_eq!((isr(&rig, MASTER), isr(&rig, SLAVE)), (0x04, 0));
}

#[test]
fn a_level_requests_until_it_falls_and_an_edge_once() {
    let rig = set_up(1);
    rig.write(ELCR, 0, 0x20);
    rig.device.set_level(5, true);
    rig.device.set_level(6, true);
    assert_eq!(rig.device.acknowledge(), 0x35);
    assert_eq!(irr(&rig, MASTER), 0x60);
    rig.write(MASTER, 0, 0x20);
    assert_eq!(rig.device.acknowledge(), 0x35);
    rig.device.set_level(5, false);
    rig.write(MASTER, 0, 0x20);
    assert_eq!(rig.device.acknowledge(), 0x36);
    rig.write(MASTER, 0, 0x20);
    assert_eq!(irr(&rig, MASTER), 0, "it is still high, and was an edge");
    rig.write(ELCR, 0, 0x40);
    assert_eq!(irr(&rig, MASTER), 0x40, "now it is a level");
    rig.write(ELCR, 0, 0);
    assert_eq!(irr(&rig, MASTER), 0);
}

#[test]
fn automatic_ends_and_rotation() {
    let rig = set_up(3);
    pulse(&rig, 4);
    assert_eq!(rig.device.acknowledge(), 0x34);
    assert_eq!(isr(&rig, MASTER), 0);
    rig.write(MASTER, 0, 0x80);
    pulse(&rig, 4);
    rig.device.acknowledge();
    pulse(&rig, 3);
    pulse(&rig, 5);
    assert_eq!([rig.device.acknowledge(), rig.device.acknowledge()], [0x35, 0x33], "4 has become the lowest");

    let rig = set_up(1);
    pulse(&rig, 3);
    rig.device.acknowledge();
    rig.write(MASTER, 0, 0xa0);
    pulse(&rig, 3);
    pulse(&rig, 7);
    assert_eq!(rig.device.acknowledge(), 0x37);
    rig.write(MASTER, 0, 0xe7);
    assert_eq!(rig.device.acknowledge(), 0x33);
    rig.write(MASTER, 0, 0x20);
    rig.write(MASTER, 0, 0xc0);
    pulse(&rig, 0);
    pulse(&rig, 7);
    assert_eq!(rig.device.acknowledge(), 0x37, "0 is the lowest now");
}

#[test]
fn special_mask_mode_lets_lower_ones_through() {
    let rig = set_up(1);
    pulse(&rig, 3);
    rig.device.acknowledge();
    rig.write(MASTER, 1, 0x08);
    rig.write(MASTER, 0, 0x68);
    pulse(&rig, 6);
    assert_eq!(rig.device.acknowledge(), 0x36);
    rig.write(MASTER, 0, 0x20);
    assert_eq!(isr(&rig, MASTER), 0x08, "the masked one is left out");
    rig.write(MASTER, 0, 0x48);
    rig.write(MASTER, 0, 0x20);
    assert_eq!(isr(&rig, MASTER), 0);
}

#[test]
fn polling_acknowledges() {
    let rig = set_up(1);
    rig.write(MASTER, 0, 0x0c);
    assert_eq!(rig.read(MASTER, 0), 0);
    pulse(&rig, 14);
    for chip in [MASTER, SLAVE] {
        rig.write(chip, 0, 0x0c);
    }
    assert_eq!((rig.read(MASTER, 0), rig.read(SLAVE, 0)), (0x82, 0x86));
    assert_eq!((isr(&rig, MASTER), isr(&rig, SLAVE)), (0x04, 0x40));
    assert_eq!(rig.log.take(), ["intr+", "intr-"]);
}

#[test]
fn initialisation_forgets_edges_and_takes_as_many_words_as_it_says() {
    let rig = set_up(1);
    rig.device.set_level(6, true);
    rig.write(MASTER, 1, 0xff);
    rig.write(MASTER, 0, 0x12);
    assert_eq!((rig.read(MASTER, 1), rig.read(MASTER, 0)), (0, 0));
    rig.write(MASTER, 1, 0x47);
    rig.write(MASTER, 1, 0xa5);
    assert_eq!(rig.read(MASTER, 1), 0xa5, "single and without word 4: two words");
    rig.write(MASTER, 1, 0);
    rig.device.set_level(6, false);
    rig.device.set_level(6, true);
    assert_eq!(rig.device.acknowledge(), 0x46, "the low bits of the vector are the input's");
}

#[test]
fn listeners_hear_of_ends() {
    let rig = set_up(1);
    let heard = Arc::new(AtomicU32::new(0));
    let subscriptions: Vec<_> = [5, 10]
        .map(|line| {
            let heard = heard.clone();
            rig.device.on_eoi(
                line,
                Arc::new(move || {
                    heard.fetch_add(line, Ordering::Relaxed);
                }),
            )
        })
        .into();
    for line in [5, 10] {
        pulse(&rig, line);
        rig.device.acknowledge();
    }
    rig.write(SLAVE, 0, 0x20);
    assert_eq!(heard.load(Ordering::Relaxed), 10);
    rig.write(MASTER, 0, 0x62);
    rig.write(MASTER, 0, 0x64);
    assert_eq!(heard.load(Ordering::Relaxed), 10);
    rig.write(MASTER, 0, 0x65);
    assert_eq!(heard.load(Ordering::Relaxed), 15);
    drop(subscriptions);
}

#[test]
fn reset_keeps_the_inputs_only() {
    let rig = set_up(3);
    rig.device.set_level(3, true);
    rig.log.take();
    rig.device.reset();
    assert_eq!(rig.log.take(), ["intr-"]);
    let mut fresh = self::rig().device.save();
    fresh.master.inputs = 0x08;
    assert_eq!(rig.device.save(), fresh);
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let state = set_up(1).device.save();
    refuses(&state, "elcr", |s| s.master.elcr = 1);
    refuses(&state, "elcr", |s| s.slave.elcr = 0x20);
    refuses(&state, "vectors", |s| s.slave.vectors = 0x31);
    refuses(&state, "lowest", |s| s.master.lowest = 8);
    refuses(&state, "irr", |s| (s.slave.elcr, s.slave.irr) = (0x80, 0x80));
}
