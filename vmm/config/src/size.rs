//! Sizes in bytes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

#[cfg(test)]
#[path = "size_test.rs"]
mod test;

/// A number of bytes, written as a whole number with a binary unit: `512M`, `1G`, `2MiB`, `65536B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

/// Letters of the units and their powers of two, smallest first.
const UNITS: [(&str, u32); 6] = [("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50), ("E", 60)];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It does not begin with a digit.
    #[error("`{0}` is not a size: write a whole number and a unit, such as `512M` or `4G`")]
    NoNumber(String),
    /// A number alone could mean bytes or mebibytes.
    #[error("size `{0}` has no unit: write `{0}M` for mebibytes, or `{0}B` for bytes")]
    NoUnit(String),
    /// The unit is not one of ours.
    #[error(
        "size `{text}` has the unknown unit `{unit}`: the units are B, K, M, G, T, P and E (or KiB, MiB, ...), powers of 1024"
    )]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// What follows the number.
        unit: String,
    },
    /// A fraction.
    #[error(
        "size `{0}` is not a whole number: use the next smaller unit, such as `1536M` for one and a half gibibytes"
    )]
    Fraction(String),
    /// More than 2^64 - 1 bytes.
    #[error("size `{0}` is beyond 64 bits")]
    TooLarge(String),
}

impl Size {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Size(n << 10)
    }

    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Size(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Size(n << 30)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let owned = || text.to_owned();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        if digits.is_empty() {
            return Err(SizeError::NoNumber(owned()));
        }
        if unit.is_empty() {
            return Err(SizeError::NoUnit(owned()));
        }
        if unit.starts_with('.') {
            return Err(SizeError::Fraction(owned()));
        }
        let shift = shift_of(unit).ok_or_else(|| SizeError::UnknownUnit { text: owned(), unit: unit.to_owned() })?;
        digits
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(1 << shift))
            .map(Size)
            .ok_or_else(|| SizeError::TooLarge(owned()))
    }
}

/// The power of two that a unit stands for. `K`, `k`, `KiB` and `kib` are the same; `KB` is none, for it means 1000 to some.
fn shift_of(unit: &str) -> Option<u32> {
    if unit.eq_ignore_ascii_case("B") {
        return Some(0);
    }
    let letter = match unit.len() {
        1 => unit,
        3 if unit.is_char_boundary(1) && unit[1..].eq_ignore_ascii_case("iB") => &unit[..1],
        _ => return None,
    };
    UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(letter)).map(|(_, shift)| *shift)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |shift: &u32| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        let text = match UNITS.iter().rev().find(|(_, shift)| divides(shift)) {
            Some((unit, shift)) => format!("{}{unit}", self.0 >> shift),
            None => format!("{}B", self.0),
        };
        f.pad(&text)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"512M\" or \"4G\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Size, E> {
        Err(E::custom(SizeError::NoUnit(number.to_string())))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Size, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}
