use super::*;
use crate::testing::{Log, Rig, device_properties, refuses};

/// 2025-02-28 23:59:57 UTC, a Friday.
const EPOCH: i64 = 1_740_787_197;
const NANOS: u64 = SECOND as u64;

fn rig() -> Rig<Rtc> {
    let (log, clock) = (Log::default(), Clock::manual(EPOCH));
    let config = RtcConfig { irq: log.line("irq"), clock: clock.clone(), memory: vec![(0x34, 0x80), (0x90, 7)] };
    Rig { device: Rtc::new(config), clock, log, regions: &[(0, 2), (1, 2)], poke: Box::new(|_| ()) }
}

device_properties!(rig);

fn get(rig: &Rig<Rtc>, index: u8) -> u8 {
    rig.write(0, 0, index);
    rig.read(0, 1)
}

fn set(rig: &Rig<Rtc>, index: u8, value: u8) {
    rig.write(0, 0, index);
    rig.write(0, 1, value);
}

fn shown(rig: &Rig<Rtc>) -> [u8; 8] {
    use register::*;
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| get(rig, index))
}

#[test]
fn it_shows_the_wall_clock_in_bcd_and_binary_and_both_hour_formats() {
    let rig = rig();
    assert_eq!(shown(&rig), [0x20, 0x25, 0x02, 0x28, 6, 0x23, 0x59, 0x57]);
    rig.clock.advance(3 * NANOS);
    assert_eq!(shown(&rig), [0x20, 0x25, 0x03, 0x01, 7, 0, 0, 0]);
    set(&rig, register::B, 0x04);
    assert_eq!(shown(&rig), [20, 25, 3, 1, 7, 12, 0, 0], "midnight is 12 AM");
    rig.clock.advance(13 * 3600 * NANOS);
    assert_eq!(get(&rig, register::HOURS), 0x81, "1 PM");
    assert_eq!(get(&rig, register::D), 0x80);
}

#[test]
fn the_guest_sets_the_time_while_it_holds_it() {
    let rig = rig();
    set(&rig, register::B, 0x82);
    rig.clock.advance(10 * NANOS);
    assert_eq!(get(&rig, register::SECONDS), 0x57, "it stands");
    for (index, value) in
        [(register::CENTURY, 0x19), (register::YEAR, 0x99), (register::MONTH, 0x12), (register::DAY, 0x31)]
    {
        set(&rig, index, value);
    }
    set(&rig, register::B, 0x02);
    assert_eq!(shown(&rig), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x57]);
    rig.clock.advance(3 * NANOS);
    assert_eq!(shown(&rig), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
    assert_eq!(rig.clock.wall(), i128::from(EPOCH + 13) * SECOND, "the machine's clock is not the guest's to set");
}

#[test]
fn update_in_progress_comes_before_the_update() {
    let rig = rig();
    rig.clock.advance(NANOS - 244_001);
    assert_eq!(get(&rig, register::A) & 0x80, 0);
    rig.clock.advance(1);
    assert_eq!(get(&rig, register::A) & 0x80, 0x80);
    rig.clock.advance(244_000);
    assert_eq!(get(&rig, register::A) & 0x80, 0);
}

#[test]
fn the_update_interrupt_comes_each_second_and_is_taken_by_reading_c() {
    let rig = rig();
    set(&rig, register::B, 0x12);
    rig.clock.advance(NANOS);
    assert_eq!(rig.log.take(), ["irq+"]);
    assert_eq!(get(&rig, register::C), 0xd0, "the periodic flag is there too, but not enabled");
    assert_eq!(rig.log.take(), ["irq-"]);
    assert_eq!(get(&rig, register::C), 0);
    rig.clock.advance(5 * NANOS);
    assert_eq!(rig.log.take(), ["irq+"], "until it is taken there is no other");
}

#[test]
fn the_periodic_interrupt_has_its_rate() {
    let rig = rig();
    for (rate, per_second) in [(0x26, 1024), (0x2f, 2), (0x21, 256), (0x22, 128)] {
        set(&rig, register::A, rate);
        set(&rig, register::B, 0x42);
        rig.log.take();
        let mut count = 0;
        let end = rig.clock.now() + NANOS;
        while let Some(wait) = rig.clock.until_next().filter(|_| rig.clock.now() < end) {
            rig.clock.advance((wait.as_nanos() as u64).min(end - rig.clock.now()));
            if get(&rig, register::C) & 0x40 != 0 {
                count += 1;
            }
        }
        assert_eq!(count, per_second);
    }
}

#[test]
fn the_alarm_comes_at_its_time_with_dont_care_codes() {
    // (hour, minute, second) registers, and seconds from 23:59:57.
    for (alarm, after) in [
        ([0xff, 0xff, 0xff], 1),
        ([0x00, 0x00, 0x00], 3),
        ([0xff, 0xff, 0x57], 60),
        ([0xff, 0x59, 0x57], 3600),
        ([0x23, 0x59, 0x57], 86_400),
        ([0x23, 0x59, 0x58], 1),
        ([0xff, 0x00, 0xff], 3),
        ([0x01, 0xff, 0x30], 3 + 3600 + 30),
    ] {
        let rig = rig();
        for (index, value) in [5, 3, 1].into_iter().zip(alarm) {
            set(&rig, index, value);
        }
        set(&rig, register::B, 0x22);
        rig.clock.advance(after * NANOS - 1);
        assert!(rig.log.take().is_empty(), "{alarm:x?}");
        rig.clock.advance(1);
        assert_eq!(rig.log.take(), ["irq+"], "{alarm:x?}");
        assert_eq!(get(&rig, register::C) & 0xa0, 0xa0);
    }
    let rig = rig();
    set(&rig, register::HOURS_ALARM, 0x24);
    set(&rig, register::B, 0x22);
    rig.clock.advance(3 * 86_400 * NANOS);
    assert!(rig.log.take().is_empty(), "an hour that never comes");
}

#[test]
fn nobody_is_woken_for_a_clock_whose_interrupts_are_off() {
    let rig = rig();
    assert_eq!(rig.clock.until_next(), None);
    rig.clock.advance(2 * NANOS);
    assert_eq!(get(&rig, register::C), 0x50, "the flags are there all the same");
}

#[test]
fn memory_of_both_banks_is_kept_over_a_reset() {
    let rig = rig();
    assert_eq!(get(&rig, 0x34), 0x80);
    rig.write(1, 0, 0x10);
    assert_eq!((rig.read(1, 0), rig.read(1, 1)), (0x10, 7));
    set(&rig, 0x0f, 0x0a);
    set(&rig, register::B, 0x72);
    rig.device.reset();
    assert_eq!((get(&rig, 0x0f), get(&rig, register::B)), (0x0a, 0x02));
}

#[test]
fn every_day_of_four_centuries_is_itself() {
    let first = Moment { year: 1899, month: 12, day: 31, hour: 0, minute: 0, second: 0 }.epoch_seconds();
    let mut last = Moment::at(first);
    for day in 1..=146_097 {
        let moment = Moment::at(first + day * 86_400);
        assert_eq!(moment.epoch_seconds(), first + day * 86_400);
        let next_month = moment.day == 1 && (moment.month == last.month % 12 + 1);
        assert!(next_month || (moment.day == last.day + 1 && moment.month == last.month), "{moment:?}");
        assert_eq!(moment.weekday(), last.weekday() % 7 + 1);
        last = moment;
    }
    assert_eq!((last.year, last.month, last.day), (2299, 12, 31));
}

#[test]
fn bad_state_is_refused_by_name() {
    let rig = rig();
    let state = rig.device.save();
    refuses(&state, "cmos", |s| s.cmos.truncate(255));
    refuses(&state, "a", |s| s.a |= 0x80);
    refuses(&state, "flags", |s| s.flags = 0x80);
    refuses(&state, "offset_seconds", |s| s.offset_seconds = i64::MAX);
    refuses(&state, "offset_nanos", |s| s.offset_nanos = 1_000_000_000);
    refuses(&state, "held", |s| s.b |= 0x80);
}
