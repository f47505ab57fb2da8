//! The machine's UUID.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};

#[cfg(test)]
#[path = "uuid_test.rs"]
mod test;

/// A UUID (RFC 9562), in the order in which it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

/// Digits of its groups.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{text}` is no UUID: write it as 01234567-89ab-cdef-0123-456789abcdef");
        if !text.split('-').map(str::len).eq(GROUPS) {
            return Err(malformed());
        }
        let digits: Option<Vec<u32>> = text.chars().filter(|&c| c != '-').map(|digit| digit.to_digit(16)).collect();
        let digits = digits.filter(|digits| digits.len() == 32).ok_or_else(malformed)?;
        let mut uuid = [0; 16];
        for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair.iter().fold(0, |byte, digit| byte << 4 | *digit as u8);
        }
        Ok(Uuid(uuid))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.0.iter();
        for (number, digits) in GROUPS.into_iter().enumerate() {
            if number > 0 {
                f.write_str("-")?;
            }
            bytes.by_ref().take(digits / 2).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
