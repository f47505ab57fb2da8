use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

/// 2024-02-28 23:59:50 UTC, a Wednesday.
const START: i64 = 1_709_164_790;
const SECOND_NANOS: u64 = 1_000_000_000;

fn rig() -> Rig<Rtc> {
    let (log, clock) = (Log::default(), Clock::manual(START));
    let memory = memory_size(0x8000_0000, 0x1_4000_0000);
    let device = Rtc::new(RtcConfig { irq: log.line("irq"), clock: clock.clone(), memory });
    Rig { device, clock, log, regions: &[(STANDARD, 2), (STANDARD, 2), (EXTENDED, 2)], poke: Box::new(|_| ()) }
}

/// As [`rig`], but what is indexed is mostly a register, so that random accesses meet them.
fn indexed_rig() -> Rig<Rtc> {
    let rig = rig();
    let device = rig.device.clone();
    let poke = Box::new(move |value: u64| {
        let _ = device.write(STANDARD, 0, &[value as u8 & 0x0f]);
        let _ = device.write(STANDARD, 1, &[(value >> 8) as u8]);
    });
    Rig { poke, ..rig }
}

impl Rig<Rtc> {
    fn get(&self, place: u8) -> u8 {
        self.write(STANDARD, 0, place);
        self.read(STANDARD, 1)
    }
    fn put(&self, place: u8, value: u8) {
        self.write(STANDARD, 0, place);
        self.write(STANDARD, 1, value);
    }
    /// Century, year, month, day, weekday, hour, minute, second.
    fn time(&self) -> [u8; 8] {
        [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|place| self.get(place))
    }
}

device_properties!("chipset-rtc", indexed_rig);

#[test]
fn time_is_told_in_every_format() {
    let rig = rig();
    assert_eq!(rig.time(), [0x20, 0x24, 0x02, 0x28, 0x04, 0x23, 0x59, 0x50]);
    rig.clock.advance(10 * SECOND_NANOS);
    assert_eq!(rig.time(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x00, 0x00, 0x00]);
    rig.put(0x0b, 0x06);
    assert_eq!(rig.time(), [20, 24, 2, 29, 5, 0, 0, 0]);
    rig.put(0x0b, 0x04);
    assert_eq!(rig.get(0x04), 12);
    rig.clock.advance(13 * 3600 * SECOND_NANOS);
    assert_eq!(rig.get(0x04), 0x81);
    rig.put(0x0b, 0x00);
    assert_eq!(rig.get(0x04), 0x81);
    assert_eq!((rig.get(0x0a), rig.get(0x0d), rig.read(STANDARD, 0)), (0x26, 0x80, 0xff));
}

#[test]
fn time_is_set_as_linux_sets_it() {
    let rig = rig();
    rig.clock.advance(SECOND_NANOS / 4);
    rig.put(0x0b, 0x82);
    rig.put(0x0a, 0x76);
    for (place, value) in
        [(0x32, 0x19), (0x09, 0x99), (0x08, 0x12), (0x07, 0x31), (0x04, 0x23), (0x02, 0x59), (0x00, 0x59)]
    {
        rig.put(place, value);
    }
    rig.clock.advance(5 * SECOND_NANOS);
    assert_eq!(rig.get(0x00), 0x59, "it stands");
    rig.put(0x0b, 0x02);
    rig.clock.advance(5 * SECOND_NANOS);
    rig.put(0x0a, 0x26);
    rig.clock.advance(SECOND_NANOS / 2 - 1);
    assert_eq!(rig.time(), [0x19, 0x99, 0x12, 0x31, 0x06, 0x23, 0x59, 0x59]);
    rig.clock.advance(1);
    assert_eq!(rig.time(), [0x20, 0x00, 0x01, 0x01, 0x07, 0x00, 0x00, 0x00], "half a second after the release");
    rig.put(0x02, 0x30);
    rig.clock.advance(SECOND_NANOS);
    assert_eq!(rig.time()[5..], [0x00, 0x30, 0x01], "without SET it can be set as well");
    rig.device.reset();
    assert_eq!(rig.time()[..2], [0x20, 0x00], "the chip has a battery");
}

#[test]
fn set_holds_the_time_and_the_phase_goes_on() {
    let rig = rig();
    rig.clock.advance(SECOND_NANOS / 4);
    rig.put(0x0b, 0x92);
    assert_eq!(rig.get(0x0b), 0x82, "SET clears UIE");
    rig.clock.advance(3 * SECOND_NANOS);
    assert_eq!((rig.get(0x00), rig.get(0x0c)), (0x50, 0x40));
    rig.put(0x0b, 0x02);
    assert_eq!(rig.get(0x00), 0x50);
    rig.clock.advance(3 * SECOND_NANOS / 4);
    assert_eq!(rig.get(0x00), 0x51);
}

#[test]
fn an_update_is_announced() {
    let rig = rig();
    rig.clock.advance(SECOND_NANOS - 244_001);
    assert_eq!(rig.get(0x0a), 0x26);
    rig.clock.advance(1);
    assert_eq!((rig.get(0x0a), rig.get(0x00)), (0xa6, 0x50));
    rig.clock.advance(244_000);
    assert_eq!((rig.get(0x0a), rig.get(0x00)), (0x26, 0x51));
    rig.put(0x0b, 0x82);
    rig.clock.advance(SECOND_NANOS - 1);
    assert_eq!(rig.get(0x0a), 0x26, "not while it is set");
}

#[test]
fn updates_interrupt_once_until_they_are_taken() {
    let rig = rig();
    rig.put(0x0b, 0x12);
    rig.clock.advance(SECOND_NANOS);
    assert_eq!(rig.log.take(), ["irq+"]);
    rig.clock.advance(5 * SECOND_NANOS);
    assert!(rig.log.take().is_empty());
    assert_eq!((rig.get(0x0c), rig.get(0x0c)), (0xd0, 0x00));
    assert_eq!(rig.log.take(), ["irq-"]);
    rig.clock.advance(SECOND_NANOS);
    assert_eq!((rig.log.take(), rig.get(0x0c) & 0x90), (vec!["irq+".to_owned()], 0x90));
}

#[test]
fn periods_keep_their_phase() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let rig = rig();
        rig.put(0x0a, 0x20 | rate);
        rig.put(0x0b, 0x42);
        rig.clock.advance(SECOND_NANOS / hertz - 1);
        assert!(rig.log.take().is_empty());
        let mut seen = 0;
        for _ in 0..hertz {
            rig.clock.advance(SECOND_NANOS / hertz);
            seen += u64::from(rig.get(0x0c) & 0xc0 == 0xc0);
        }
        assert_eq!(seen, hertz);
        rig.log.take();
        rig.put(0x0a, 0x20);
        rig.clock.advance(SECOND_NANOS);
        assert!(rig.log.take().is_empty());
    }
}

#[test]
fn alarms_match_what_they_are_set_to() {
    for (hour, minute, second, first, then) in [
        (0x23, 0x59, 0x55, 5, 86_400),
        (0xff, 0xff, 0x00, 10, 60),
        (0xc0, 0x00, 0x05, 15, 3600),
        (0xff, 0xff, 0xff, 1, 1),
    ] {
        let rig = rig();
        for (place, value) in [(0x05, hour), (0x03, minute), (0x01, second), (0x0b, 0x22)] {
            rig.put(place, value);
        }
        rig.clock.advance(first * SECOND_NANOS - 1);
        assert!(rig.log.take().is_empty());
        rig.clock.advance(1);
        assert_eq!((rig.log.take(), rig.get(0x0c) & 0xa0), (vec!["irq+".to_owned()], 0xa0));
        rig.clock.advance(then * SECOND_NANOS - 1);
        assert_eq!(rig.log.take(), ["irq-"]);
        rig.clock.advance(1);
        assert_eq!(rig.log.take(), ["irq+"]);
    }
}

#[test]
fn who_does_not_listen_costs_no_wake_up() {
    let rig = rig();
    let woken = Arc::new(AtomicUsize::new(0));
    rig.clock.set_waker(Box::new({
        let woken = woken.clone();
        move || {
            woken.fetch_add(1, Ordering::Relaxed);
        }
    }));
    rig.time();
    for place in [0x01, 0x03, 0x05] {
        rig.put(place, 0xff);
    }
    rig.clock.advance(3 * SECOND_NANOS);
    assert_eq!((rig.get(0x0c), woken.load(Ordering::Relaxed)), (0x70, 0), "flags are set all the same");
    assert!(rig.clock.until_next().is_none());
}

#[test]
fn memory_tells_the_size_of_ram_and_both_banks_keep_what_is_written() {
    let rig = rig();
    let size = |places: &[u8]| places.iter().rev().fold(0, |value, place| value << 8 | u32::from(rig.get(*place)));
    assert_eq!((size(&[0x15, 0x16]), size(&[0x17, 0x18]), size(&[0x30, 0x31])), (640, 0xffff, 0xffff));
    assert_eq!((size(&[0x34, 0x35]), size(&[0x5b, 0x5c, 0x5d])), (0x7f00, 0x1_4000));
    rig.put(0x0f, 0x0a);
    rig.put(0x34, 0);
    rig.write(EXTENDED, 0, 0x7f);
    rig.write(EXTENDED, 1, 0x5a);
    rig.device.reset();
    assert_eq!((rig.get(0x0f), rig.read(EXTENDED, 1), rig.get(0x35)), (0x0a, 0x5a, 0x7f));
    assert_eq!(memory_size(2 << 20, 0)[6..], [(0x34, 0), (0x35, 0), (0x5b, 0), (0x5c, 0), (0x5d, 0)]);
}

#[test]
fn a_restored_clock_follows_the_wall_clock_with_the_guests_difference() {
    let rig = rig();
    rig.put(0x09, 0x30);
    let state = rig.device.save();
    let other = self::rig();
    other.clock.set_wall(i128::from(START + 60) * SECOND);
    other.device.restore(&state).unwrap();
    assert_eq!(other.time(), [0x20, 0x30, 0x03, 0x01, 0x06, 0x00, 0x00, 0x50]);
}

#[test]
fn out_of_range_state_is_refused_by_name() {
    let state = rig().device.save();
    refuses(&state, "memory", |s| s.memory.truncate(255));
    refuses(&state, "index", |s| s.index = 0x80);
    refuses(&state, "extended_index", |s| s.extended_index = 0x80);
    refuses(&state, "register_a", |s| s.register_a = 0x80);
    refuses(&state, "register_b", |s| s.register_b = 0x90);
    refuses(&state, "flags", |s| s.flags = 0x80);
    refuses(&state, "ahead_seconds", |s| s.ahead_seconds = i64::MAX);
    refuses(&state, "ahead_nanos", |s| s.ahead_nanos = 1_000_000_000);
}
