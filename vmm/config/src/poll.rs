//! How long a thread polls, as people write it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Unexpected, Visitor};
use serde::ser::{Serialize, Serializer};

#[cfg(test)]
#[path = "poll_test.rs"]
mod test;

/// How long a thread looks for work at most before it sleeps, in microseconds: `32us`, `1ms`; `0` turns polling off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Poll(u32);

/// Why a text is not such a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not how long to poll: write whole microseconds such as `32us`, 10ms at most, or 0 for never")]
pub struct PollError(String);

impl Poll {
    /// In microseconds: what longer polling earns, a sleep of this length hardly costs.
    const MOST: u32 = 10_000;

    /// The time.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_micros(self.0.into())
    }
}

impl Default for Poll {
    /// What a sleep and the wake-up after it cost.
    fn default() -> Self {
        Poll(32)
    }
}

impl FromStr for Poll {
    type Err = PollError;

    fn from_str(text: &str) -> Result<Self, PollError> {
        let refused = || PollError(text.to_owned());
        let (digits, factor) = match (text.strip_suffix("us"), text.strip_suffix("ms")) {
            _ if text == "0" => (text, 1),
            (Some(digits), _) => (digits, 1),
            (_, Some(digits)) => (digits, 1000),
            _ => return Err(refused()),
        };
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let count = digits.parse::<u32>().ok().filter(|_| whole);
        count.and_then(|count| count.checked_mul(factor)).filter(|&us| us <= Self::MOST).map(Poll).ok_or_else(refused)
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            us => write!(f, "{us}us"),
        }
    }
}

impl Serialize for Poll {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Poll {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PollVisitor)
    }
}

struct PollVisitor;

impl Visitor<'_> for PollVisitor {
    type Value = Poll;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("how long to poll, such as \"32us\", or 0")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Poll, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Poll, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Poll, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}
