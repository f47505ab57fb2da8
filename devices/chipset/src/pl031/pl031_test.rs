use super::*;
use crate::testing::{Log, Rig, device_properties};

const EPOCH: i64 = 1_750_000_000;

fn rig() -> Rig<Pl031> {
    let (log, clock) = (Log::default(), Clock::manual(EPOCH));
    let device = Pl031::new(Pl031Config { irq: log.line("irq"), clock: clock.clone() });
    Rig { device, clock, log, regions: &[(0, SIZE)], poke: Box::new(|_| ()) }
}

device_properties!("chipset-pl031", rig);

#[test]
fn it_shows_the_wall_clock_and_is_what_it_says() {
    let rig = rig();
    assert_eq!(rig.read32(register::DR), EPOCH as u32);
    rig.clock.advance(3 * SECOND + SECOND / 2);
    assert_eq!(rig.read32(register::DR), EPOCH as u32 + 3);
    let id: Vec<_> = (0..8).map(|n| rig.read32(register::IDENTIFICATION + 4 * n)).collect();
    assert_eq!(id, [0x31, 0x10, 0x04, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn it_can_be_set_and_wraps() {
    let rig = rig();
    rig.write32(register::LR, u32::MAX);
    assert_eq!((rig.read32(register::LR), rig.read32(register::DR)), (u32::MAX, u32::MAX));
    rig.clock.advance(SECOND);
    assert_eq!(rig.read32(register::DR), 0);
}

#[test]
fn the_alarm_interrupts_when_its_second_begins() {
    let rig = rig();
    rig.clock.advance(SECOND / 4);
    rig.write32(register::MR, EPOCH as u32 + 2);
    rig.write32(register::IMSC, 1);
    rig.clock.advance(SECOND * 7 / 4 - 1);
    assert!(rig.log.take().is_empty());
    rig.clock.advance(1);
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!((rig.read32(register::RIS), rig.read32(register::MIS)), (1, 1));
    rig.write32(register::ICR, 1);
    assert_eq!(rig.log.take(), ["irq-"]);
    rig.clock.advance(100 * SECOND);
    assert!(rig.log.take().is_empty(), "once");
}

#[test]
fn a_match_that_nobody_waited_for_is_seen_all_the_same() {
    let rig = rig();
    rig.write32(register::MR, EPOCH as u32 + 2);
    rig.clock.advance(10 * SECOND);
    assert_eq!((rig.read32(register::RIS), rig.read32(register::MIS)), (1, 0));
    rig.write32(register::IMSC, 1);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.device.reset();
    assert_eq!(rig.log.take(), ["irq-"]);
    assert_eq!(rig.read32(register::DR), EPOCH as u32 + 10, "a reset leaves the time alone");
}
