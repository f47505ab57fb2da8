//! Groups of keys that may be written as one comma-separated text, as a flag is, or as a table.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::Problem;
use crate::node::{Node, NodeError};

#[cfg(test)]
#[path = "group_test.rs"]
mod test;

/// A type that is made of named keys.
pub(crate) trait Group: Sized {
    /// The keys as written, each optional.
    type Keys: DeserializeOwned;
    /// The key that a text's first item sets when it is a value alone, such as the size in `4G,shared`.
    const LEADING: Option<&'static str>;

    /// Completes the keys, or says why they don't go together.
    fn from_keys(keys: Self::Keys) -> Result<Self, String>;
}

/// Gives a [`Group`] its `FromStr` and `Deserialize`; `$what` says what a value looks like.
macro_rules! group {
    ($type:ty, $what:literal) => {
        impl std::str::FromStr for $type {
            type Err = $crate::Problem;

            fn from_str(text: &str) -> Result<Self, $crate::Problem> {
                $crate::group::from_text(text)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::group::deserialize(deserializer, $what)
            }
        }
    };
}
pub(crate) use group;

/// Reads a group from a flag's text.
pub(crate) fn from_text<G: Group>(text: &str) -> Result<G, Problem> {
    let items = split(text).into_iter().enumerate().map(|(index, item)| match (item.split_once('='), G::LEADING) {
        (Some((key, value)), _) => (key.to_owned(), Node::bare(value)),
        (None, Some(leading)) if index == 0 => (leading.to_owned(), Node::bare(&item)),
        // Not a text: what takes one needs `key=value`.
        (None, _) => (item, Node::set()),
    });
    let keys = G::Keys::deserialize(Node::table(items)).map_err(NodeError::into_problem)?;
    G::from_keys(keys).map_err(Problem::Other)
}

/// Reads a group from a text, a number or a table.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, G: Group>(
    deserializer: D,
    what: &'static str,
) -> Result<G, D::Error> {
    deserializer.deserialize_any(GroupVisitor { what, group: PhantomData })
}

/// Splits at commas; a doubled comma is one that belongs to the item.
fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

struct GroupVisitor<G> {
    what: &'static str,
    group: PhantomData<G>,
}

impl<'de, G: Group> Visitor<'de> for GroupVisitor<G> {
    type Value = G;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<G, E> {
        from_text(text).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<G, E> {
        from_text(&number.to_string()).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<G, E> {
        from_text(&number.to_string()).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<G, A::Error> {
        let keys = G::Keys::deserialize(MapAccessDeserializer::new(map))?;
        G::from_keys(keys).map_err(A::Error::custom)
    }
}
