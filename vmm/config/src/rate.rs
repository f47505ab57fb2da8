//! Rates, as people write them.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

use crate::size::Size;

#[cfg(test)]
#[path = "rate_test.rs"]
mod test;

/// What a rate counts.
pub trait Counted: Copy {
    /// What a rate looks like.
    const EXAMPLE: &'static str;

    /// Reads a number of it.
    ///
    /// # Errors
    /// Why it is none.
    fn parse(text: &str) -> Result<u64, String>;

    /// Writes a number of it.
    ///
    /// # Errors
    /// Where there can't be written.
    fn write(count: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Requests, or frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requests;

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes;

impl Counted for Requests {
    const EXAMPLE: &'static str = "`1000`, or `1000/5000` with 5000 at once after a rest";

    fn parse(text: &str) -> Result<u64, String> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).ok_or_else(|| format!("`{text}` is no whole number"))
    }

    fn write(count: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{count}")
    }
}

impl Counted for Bytes {
    const EXAMPLE: &'static str = "`100M`, or `100M/1G` with 1 GiB at once after a rest";

    fn parse(text: &str) -> Result<u64, String> {
        text.parse().map(Size::bytes).map_err(|error| error.to_string())
    }

    fn write(count: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Size(count))
    }
}

/// So many in a second, and so many at once after a rest: `1000/5000`; without the second number, a tenth of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate<T> {
    /// How many in a second, in the long run.
    pub per_second: u64,
    /// How many at once after a rest.
    pub burst: u64,
    counted: PhantomData<T>,
}

impl<T: Counted> FromStr for Rate<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rate, burst) = text.split_once('/').map_or((text, None), |(rate, burst)| (rate, Some(burst)));
        let parse = |text| match T::parse(text) {
            Ok(0) => Err(format!("a rate must be at least 1: write it as {}", T::EXAMPLE)),
            Ok(count) => Ok(count),
            Err(error) => Err(format!("{error}; a rate in a second is written as {}", T::EXAMPLE)),
        };
        let per_second = parse(rate)?;
        let burst = burst.map_or_else(|| Ok(per_second.div_ceil(10)), parse)?;
        Ok(Rate { per_second, burst, counted: PhantomData })
    }
}

impl<T: Counted> fmt::Display for Rate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::write(self.per_second, f)?;
        f.write_str("/")?;
        T::write(self.burst, f)
    }
}

impl<T: Counted> Serialize for Rate<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: Counted> Deserialize<'de> for Rate<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RateVisitor(PhantomData))
    }
}

struct RateVisitor<T>(PhantomData<T>);

impl<T: Counted> Visitor<'_> for RateVisitor<T> {
    type Value = Rate<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a rate in a second, such as {}", T::EXAMPLE)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Rate<T>, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Rate<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Rate<T>, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}
