//! Dates, and the ways in which the chip's registers write them.

/// Seconds of a day.
pub(super) const DAY: i64 = 86_400;
/// Days of 400 years of the Gregorian calendar.
const ERA_DAYS: i64 = 146_097;
/// Days from 1 March of year 0 to the Unix epoch.
const EPOCH: i64 = 719_468;

/// A date and time of day, in UTC or whatever the guest keeps in its clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
    pub(super) hour: i64,
    pub(super) minute: i64,
    pub(super) second: i64,
}

impl DateTime {
    /// The date of a number of seconds since the Unix epoch.
    pub(super) fn from_seconds(seconds: i64) -> Self {
        // Years that begin in March have their leap day last.
        let days = seconds.div_euclid(DAY) + EPOCH;
        let (era, day_of_era) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let time = seconds.rem_euclid(DAY);
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    /// Seconds since the Unix epoch. Values beyond their range run over into the next field; a month beyond its range is brought into it.
    pub(super) fn seconds(self) -> i64 {
        let month = self.month.clamp(1, 12);
        let year = self.year - i64::from(month <= 2);
        let from_march = if month > 2 { month - 3 } else { month + 9 };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * from_march + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * ERA_DAYS + day_of_era - EPOCH;
        days * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// 1 is Sunday.
    pub(super) fn weekday(self) -> i64 {
        // The epoch was a Thursday.
        (self.seconds().div_euclid(DAY) + 4).rem_euclid(7) + 1
    }
}

/// How register B says that numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// Binary, not BCD.
    pub(super) binary: bool,
    /// Hours of 24, not of 12 with bit 7 for the afternoon.
    pub(super) hours24: bool,
}

const AFTERNOON: u8 = 0x80;

impl Format {
    pub(super) fn encode(self, value: i64) -> u8 {
        let value = value.rem_euclid(100) as u8;
        if self.binary { value } else { ((value / 10) << 4) | (value % 10) }
    }

    pub(super) fn decode(self, byte: u8) -> i64 {
        i64::from(if self.binary { byte } else { (byte >> 4) * 10 + (byte & 15) })
    }

    pub(super) fn encode_hour(self, hour: i64) -> u8 {
        if self.hours24 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    pub(super) fn decode_hour(self, byte: u8) -> i64 {
        if self.hours24 {
            return self.decode(byte);
        }
        let half = if byte & AFTERNOON != 0 { 12 } else { 0 };
        self.decode(byte & !AFTERNOON) % 12 + half
    }
}

/// The time of day of an alarm, as its registers write it. From 0xc0 on a register matches anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Alarm {
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
    pub(super) format: Format,
}

impl Alarm {
    fn matches(pattern: u8, byte: u8) -> bool {
        pattern >= 0xc0 || pattern == byte
    }

    /// The first second after `after` that it matches, if it ever does. Both since the Unix epoch.
    pub(super) fn next(self, after: i64) -> Option<i64> {
        let (midnight, first) = ((after + 1).div_euclid(DAY) * DAY, (after + 1).rem_euclid(DAY));
        let today = self.first_in_day(first).map(|time| midnight + time);
        today.or_else(|| self.first_in_day(0).map(|time| midnight + DAY + time))
    }

    /// The first second of a day from `from` on.
    fn first_in_day(self, from: i64) -> Option<i64> {
        let format = self.format;
        let hours = (from / 3600..24).filter(|hour| Self::matches(self.hour, format.encode_hour(*hour)));
        for hour in hours {
            let from = (from - hour * 3600).max(0);
            let minutes = (from / 60..60).filter(|minute| Self::matches(self.minute, format.encode(*minute)));
            for minute in minutes {
                let from = (from - minute * 60).max(0);
                let mut seconds = from..60;
                if let Some(second) = seconds.find(|second| Self::matches(self.second, format.encode(*second))) {
                    return Some(hour * 3600 + minute * 60 + second);
                }
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "calendar_test.rs"]
mod test;
