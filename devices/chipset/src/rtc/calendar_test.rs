use proptest::prelude::*;

use super::*;

const BCD: Format = Format { binary: false, hours24: true };

#[test]
fn known_dates() {
    for (seconds, (year, month, day), weekday) in [
        (0, (1970, 1, 1), 5),
        (951_782_400, (2000, 2, 29), 3),
        (1_709_164_800, (2024, 2, 29), 5),
        (4_107_542_400, (2100, 3, 1), 2),
        (-86_400, (1969, 12, 31), 4),
        (253_402_214_400, (9999, 12, 31), 6),
    ] {
        let date = DateTime::from_seconds(seconds);
        assert_eq!((date.year, date.month, date.day, date.weekday()), (year, month, day, weekday));
    }
}

#[test]
fn hours_of_twelve() {
    let format = Format { binary: false, hours24: false };
    for (hour, byte) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        assert_eq!((format.encode_hour(hour), format.decode_hour(byte)), (byte, hour));
    }
}

#[test]
fn an_alarm_may_never_come() {
    assert_eq!(Alarm { hour: 0x24, minute: 0, second: 0, format: BCD }.next(0), None);
    assert_eq!(Alarm { hour: 0xff, minute: 0xff, second: 0x60, format: BCD }.next(0), None);
}

proptest! {
    #[test]
    fn dates_and_seconds_agree(seconds in -62_000_000_000i64..500_000_000_000) {
        let date = DateTime::from_seconds(seconds);
        prop_assert_eq!(date.seconds(), seconds);
        prop_assert!((1..=12).contains(&date.month) && (1..=31).contains(&date.day));
    }

    #[test]
    fn hours_are_read_as_they_are_written(hour in 0i64..24, binary: bool, hours24: bool) {
        let format = Format { binary, hours24 };
        prop_assert_eq!(format.decode_hour(format.encode_hour(hour)), hour);
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_next_alarm_is_the_first_that_matches(
        after in 0i64..3 * DAY,
        hour in prop_oneof![Just(0xffu8), 0u8..0x24],
        minute in prop_oneof![Just(0xc0u8), 0u8..0x60],
        second in prop_oneof![Just(0xd5u8), 0u8..0x60],
    ) {
        let alarm = Alarm { hour, minute, second, format: BCD };
        let matches = |time: &i64| {
            let date = DateTime::from_seconds(*time);
            Alarm::matches(hour, BCD.encode(date.hour))
                && Alarm::matches(minute, BCD.encode(date.minute))
                && Alarm::matches(second, BCD.encode(date.second))
        };
        prop_assert_eq!(alarm.next(after), (after + 1..=after + DAY).find(matches));
    }
}
