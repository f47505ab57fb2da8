//! Time as the clock's registers hold it. The calendar is the proleptic Gregorian one.

use super::state::HeldTime;

/// A moment as a guest sets it: fields may be out of their ranges, and count on from there, as a mechanical clock's would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) year: i32,
    /// 1 to 12.
    pub(super) month: u8,
    /// From 1.
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

/// Days from 1970-01-01 to the first of a month. Years begin in March, so that the leap day ends one.
fn days_to_month(year: i64, month: i64) -> i64 {
    let (year, month) = (year + (month - 1).div_euclid(12), (month - 1).rem_euclid(12) + 1);
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    days + (153 * month + 2) / 5 - 719_468
}

impl Moment {
    /// The moment `seconds` after 1970-01-01.
    pub(super) fn at(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // An era is 400 years, which repeat exactly.
        let from_march_0 = days + 719_468;
        let (era, day) = (from_march_0.div_euclid(146_097), from_march_0.rem_euclid(146_097));
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let (year, month_of_year) =
            (era * 400 + year + i64::from(month > 9), if month > 9 { month - 9 } else { month + 3 });
        Self {
            year: year as i32,
            month: month_of_year as u8,
            day: (of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds after 1970-01-01.
    pub(super) fn epoch_seconds(&self) -> i64 {
        let days = days_to_month(self.year.into(), self.month.into()) + i64::from(self.day) - 1;
        days * 86_400 + self.second_of_day()
    }

    fn second_of_day(&self) -> i64 {
        i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second)
    }

    /// 1 is Sunday.
    pub(super) fn weekday(&self) -> u8 {
        ((self.epoch_seconds().div_euclid(86_400) + 4).rem_euclid(7) + 1) as u8
    }
}

impl From<Moment> for HeldTime {
    fn from(m: Moment) -> Self {
        Self { year: m.year, month: m.month, day: m.day, hour: m.hour, minute: m.minute, second: m.second }
    }
}

impl From<&HeldTime> for Moment {
    fn from(t: &HeldTime) -> Self {
        Self { year: t.year, month: t.month, day: t.day, hour: t.hour, minute: t.minute, second: t.second }
    }
}

/// How the registers hold numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    pub(super) binary: bool,
    pub(super) hours_24: bool,
}

/// In an hour register of the 12-hour format.
const PM: u8 = 1 << 7;
/// An alarm register with both bits set matches always.
const DONT_CARE: u8 = 0xc0;

impl Format {
    pub(super) fn encode(self, number: u8) -> u8 {
        if self.binary { number } else { ((number / 10 % 16) << 4) | (number % 10) }
    }

    pub(super) fn decode(self, value: u8) -> u8 {
        if self.binary { value } else { (value >> 4) * 10 + (value & 15) }
    }

    pub(super) fn encode_hour(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        let afternoon = if hour % 24 >= 12 { PM } else { 0 };
        self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 }) | afternoon
    }

    pub(super) fn decode_hour(self, value: u8) -> u8 {
        if self.hours_24 {
            return self.decode(value);
        }
        self.decode(value & !PM) % 12 + if value & PM != 0 { 12 } else { 0 }
    }

    /// Seconds from `now` until the alarm registers (hour, minute, second) match, 1 to 86400; `None` if they never do.
    pub(super) fn until(self, now: Moment, [hour, minute, second]: [u8; 3]) -> Option<i64> {
        let wanted = |value: u8, number: u8| (value & DONT_CARE != DONT_CARE).then_some(i64::from(number));
        let hours = Field::new(wanted(hour, self.decode_hour(hour)), 24)?;
        let minutes = Field::new(wanted(minute, self.decode(minute)), 60)?;
        let seconds = Field::new(wanted(second, self.decode(second)), 60)?;
        let of_day = now.second_of_day().rem_euclid(86_400);
        // The first match after now, today or tomorrow.
        let first_from = |from: i64| {
            let (h, m, s) = (from / 3600, from / 60 % 60, from % 60);
            let same_hour = || {
                let same_minute = || Some(h * 3600 + m * 60 + seconds.from(s)?);
                same_minute()
                    .filter(|_| minutes.from(m) == Some(m))
                    .or_else(|| Some(h * 3600 + minutes.from(m + 1)? * 60 + seconds.from(0)?))
            };
            same_hour()
                .filter(|_| hours.from(h) == Some(h))
                .or_else(|| Some(hours.from(h + 1)? * 3600 + minutes.from(0)? * 60 + seconds.from(0)?))
        };
        let today = first_from(of_day + 1).filter(|at| of_day + 1 < 86_400 && *at < 86_400);
        today.or_else(|| Some(first_from(0)? + 86_400)).map(|at| at - of_day)
    }
}

/// What one alarm register asks for.
#[derive(Clone, Copy)]
struct Field {
    wanted: Option<i64>,
    end: i64,
}

impl Field {
    /// `None` for a number that never comes.
    fn new(wanted: Option<i64>, end: i64) -> Option<Self> {
        wanted.is_none_or(|number| number < end).then_some(Self { wanted, end })
    }

    /// The first matching number that is not below `least`.
    fn from(self, least: i64) -> Option<i64> {
        match self.wanted {
            Some(number) => (number >= least).then_some(number),
            None => (least < self.end).then_some(least),
        }
    }
}
