use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

fn rig() -> Rig<Pl061> {
    let (log, clock) = (Log::default(), Clock::manual(0));
    let device = Pl061::new(Pl061Config { irq: log.line("irq"), clock: clock.clone() });
    let poked = device.clone();
    let poke = Box::new(move |value: u64| {
        poked.press(value as u8 % 10);
    });
    Rig { device, clock, log, regions: &[(0, SIZE), (0, 0x400), (0, 0x10)], poke }
}

/// As random accesses meet its interrupt registers.
fn based_rig() -> Rig<Pl061> {
    let rig = rig();
    let device = rig.device.clone();
    let poke = Box::new(move |value: u64| {
        if value.is_multiple_of(3) {
            device.press((value >> 8) as u8 % 10);
        } else {
            let _ = device.write(0, 0x400 + (value >> 8) % 9 * 4, &(value >> 16).to_le_bytes()[..4]);
        }
    });
    Rig { poke, ..rig }
}

device_properties!("chipset-gpio", based_rig);

#[test]
fn it_is_identified_and_starts_as_inputs() {
    let rig = rig();
    let id: Vec<_> = (0..8).map(|i| rig.read32(0xfe0 + 4 * i)).collect();
    assert_eq!(id, [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    for register in (0..0x424).step_by(4) {
        assert_eq!(rig.read32(register), 0);
    }
}

#[test]
fn data_is_masked_by_the_address() {
    let rig = rig();
    rig.write32(0x3fc, 0xff);
    assert_eq!(rig.read32(0x3fc), 0, "inputs can't be set");
    rig.write32(0x400, 0xf0);
    rig.write32(0x3fc, 0xff);
    assert_eq!(rig.read32(0x3fc), 0xf0);
    rig.write32(0x30 << 2, 0x10);
    assert_eq!((rig.read32(0x3fc), rig.read32(0x20 << 2), rig.read32(0x10 << 2)), (0xd0, 0, 0x10));
}

#[test]
fn the_power_button_makes_two_edges() {
    let rig = rig();
    // As Linux's gpio-keys: both edges.
    assert!(!rig.device.press(POWER_BUTTON_PIN));
    rig.clock.advance(PRESS_NANOS);
    rig.write32(0x41c, 0xff);
    rig.write32(0x408, 0x08);
    rig.write32(0x410, 0x08);
    assert!(rig.device.press(POWER_BUTTON_PIN));
    assert_eq!((rig.log.take(), rig.read32(0x418), rig.read32(0x3fc)), (vec!["irq+".to_owned()], 8, 8));
    rig.write32(0x41c, 0x08);
    rig.clock.advance(PRESS_NANOS - 1);
    assert_eq!((rig.log.take(), rig.read32(0x08 << 2)), (vec!["irq-".to_owned()], 8), "it is held down");
    rig.clock.advance(1);
    assert_eq!((rig.log.take(), rig.read32(0x3fc)), (vec!["irq+".to_owned()], 0));
    assert!(!rig.device.press(8), "there is no such pin");
}

#[test]
fn one_edge_or_a_level() {
    let rig = rig();
    rig.write32(0x410, 0x08);
    rig.device.press(3);
    assert!(rig.log.take().is_empty(), "falling edges are asked for");
    rig.clock.advance(PRESS_NANOS);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.write32(0x41c, 0xff);
    rig.write32(0x40c, 0x08);
    rig.device.press(3);
    assert_eq!(rig.log.take(), ["irq-", "irq+"]);
    rig.write32(0x404, 0x08);
    rig.write32(0x41c, 0xff);
    assert_eq!((rig.read32(0x414), rig.log.take().len()), (8, 0), "a level can't be cleared");
    rig.clock.advance(PRESS_NANOS);
    assert_eq!((rig.read32(0x414), rig.log.take()), (0, vec!["irq-".to_owned()]));
    rig.write32(0x40c, 0);
    assert_eq!(rig.log.take(), ["irq+"], "a low level");
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let rig = rig();
    rig.device.press(3);
    let state = rig.device.save();
    refuses(&state, "edges", |s| (s.level_sense, s.edges) = (1, 1));
    refuses(&state, "presses", |s| s.presses[3] = PRESS_NANOS + 1);
}
