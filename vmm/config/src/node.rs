//! What the user wrote, as a tree in which each node knows its place; serde reads the schema's types from it.
//!
//! A deserializer of our own, because only it sees an unknown key together with the known ones and can say which was meant, and where.

use std::fmt::Display;
use std::vec;

use serde::de::value::{SeqDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Problem;

/// A value and where it begins, as a byte offset into the file.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    value: Value,
    at: Option<usize>,
}

#[derive(Debug, Clone)]
enum Value {
    /// From a flag: the type that reads it decides what it is.
    Bare(String),
    String(String),
    Integer(i64),
    Bool(bool),
    /// What no key of ours takes, by its description.
    Foreign(&'static str),
    Array(Vec<Node>),
    Table(Vec<(Key, Node)>),
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    at: Option<usize>,
}

impl Node {
    /// A value from a flag.
    pub(crate) fn bare(text: &str) -> Self {
        Node { value: Value::Bare(text.to_owned()), at: None }
    }

    /// What a key alone stands for.
    pub(crate) fn set() -> Self {
        Node { value: Value::Bool(true), at: None }
    }

    /// A table of values from a flag.
    pub(crate) fn table(entries: impl IntoIterator<Item = (String, Node)>) -> Self {
        let entries = entries.into_iter().map(|(name, node)| (Key { name, at: None }, node));
        Node { value: Value::Table(entries.collect()), at: None }
    }

    /// The tree of a TOML document.
    pub(crate) fn from_toml(document: Spanned<DeTable<'_>>) -> Self {
        let at = Some(document.span().start);
        Node { value: Value::from_toml_table(document.into_inner()), at }
    }

    /// Adds an entry to a table that lacks it.
    pub(crate) fn or_insert(&mut self, name: &str, text: &str) {
        if let Value::Table(entries) = &mut self.value
            && entries.iter().all(|(key, _)| key.name != name)
        {
            entries.push((Key { name: name.to_owned(), at: None }, Node::bare(text)));
        }
    }

    /// The error for a visitor that can't take this node.
    fn mismatch(&self, expected: &dyn Expected) -> NodeError {
        let found = match &self.value {
            Value::Bare(text) | Value::String(text) => Unexpected::Str(text),
            Value::Integer(number) => Unexpected::Signed(*number),
            Value::Bool(value) => Unexpected::Bool(*value),
            Value::Foreign(what) => Unexpected::Other(what),
            Value::Array(_) => Unexpected::Seq,
            Value::Table(_) => Unexpected::Map,
        };
        de::Error::invalid_type(found, expected)
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.value {
            Value::Bare(text) => {
                match text.parse::<i128>().map(|number| (u64::try_from(number), i64::try_from(number))) {
                    Ok((Ok(number), _)) => visitor.visit_u64(number),
                    Ok((_, Ok(number))) => visitor.visit_i64(number),
                    Ok(_) => Err(de::Error::invalid_value(Unexpected::Str(text), &visitor)),
                    Err(_) => Err(self.mismatch(&visitor)),
                }
            }
            _ => self.deserialize_any(visitor),
        }
    }
}

impl Value {
    fn from_toml(value: DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Foreign("a number beyond 64 bits"),
            },
            DeValue::Float(_) => Value::Foreign("a number with a fraction"),
            DeValue::Boolean(value) => Value::Bool(value),
            DeValue::Datetime(_) => Value::Foreign("a date or time"),
            DeValue::Array(items) => Value::Array(items.into_iter().map(Node::from_toml_value).collect()),
            DeValue::Table(table) => Value::from_toml_table(table),
        }
    }

    fn from_toml_table(table: DeTable<'_>) -> Self {
        let entry = |(key, value): (Spanned<_>, _)| {
            let at = Some(key.span().start);
            (Key { name: String::from(key.into_inner()), at }, Node::from_toml_value(value))
        };
        let mut entries: Vec<_> = table.into_iter().map(entry).collect();
        // In the file's order, so that the first mistake is the one reported.
        entries.sort_unstable_by_key(|(key, _)| key.at);
        Value::Table(entries)
    }
}

impl Node {
    fn from_toml_value(value: Spanned<DeValue<'_>>) -> Self {
        let at = Some(value.span().start);
        Node { value: Value::from_toml(value.into_inner()), at }
    }
}

impl<'de> Deserializer<'de> for Node {
    type Error = NodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match self.value {
            Value::Bare(text) | Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => match u64::try_from(number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(number),
            },
            Value::Bool(value) => visitor.visit_bool(value),
            Value::Foreign(_) => Err(self.mismatch(&visitor)),
            Value::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.into_iter())),
            Value::Table(entries) => visitor.visit_map(TableAccess { entries: entries.into_iter(), value: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        match &self.value {
            Value::Bare(text) => match text.parse() {
                Ok(value) => visitor.visit_bool(value),
                Err(_) => Err(self.mismatch(&visitor)),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.number(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.number(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.number(visitor)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        self.number(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, NodeError> {
        visitor.visit_newtype_struct(self)
    }

    /// A table and nothing else: serde's own types would take a list as the fields in their order.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match self.value {
            Value::Table(_) => self.deserialize_any(visitor),
            _ => Err(self.mismatch(&"a table")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, NodeError> {
        match self.value {
            Value::Bare(text) | Value::String(text) => {
                IntoDeserializer::<NodeError>::into_deserializer(text).deserialize_enum(name, variants, visitor)
            }
            _ => Err(self.mismatch(&format!("one of {}", variants.join(", ")).as_str())),
        }
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map identifier
        ignored_any
    }
}

impl IntoDeserializer<'_, NodeError> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// Reads a table, and adds to an error the key it came from.
struct TableAccess {
    entries: vec::IntoIter<(Key, Node)>,
    value: Option<(Key, Node)>,
}

impl<'de> MapAccess<'de> for TableAccess {
    type Error = NodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, NodeError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        let name: StringDeserializer<NodeError> = key.name.clone().into_deserializer();
        let read = seed.deserialize(name).map_err(|error| NodeError { at: error.at.or(key.at), ..error })?;
        self.value = Some((key, node));
        Ok(Some(read))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, NodeError> {
        let Some((key, node)) = self.value.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        let at = node.at;
        seed.deserialize(node).map_err(|mut error| {
            error.at = error.at.or(at);
            error.path.insert(0, key.name);
            error
        })
    }
}

/// Why a tree is not a config.
#[derive(Debug)]
pub(crate) struct NodeError {
    /// Byte offset into the file, where known.
    pub(crate) at: Option<usize>,
    /// The keys that lead there.
    path: Vec<String>,
    problem: Problem,
}

impl NodeError {
    fn new(problem: Problem) -> Self {
        NodeError { at: None, path: Vec::new(), problem }
    }

    /// The problem, under the keys that lead to it.
    pub(crate) fn into_problem(self) -> Problem {
        if self.path.is_empty() {
            self.problem
        } else {
            Problem::In { key: self.path.join("."), problem: Box::new(self.problem) }
        }
    }
}

impl Display for NodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for NodeError {}

impl de::Error for NodeError {
    fn custom<T: Display>(message: T) -> Self {
        NodeError::new(Problem::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expectation(expected);
        let found = match found {
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unsigned(number) => format!("`{number}`"),
            Unexpected::Signed(number) => format!("`{number}`"),
            Unexpected::Str(text) => format!("`{text}`"),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            Unexpected::Other(what) => what.to_owned(),
            other => other.to_string(),
        };
        NodeError::new(Problem::Mismatch { found, expected })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        NodeError::new(Problem::unknown_key(key, known))
    }

    fn unknown_variant(choice: &str, known: &'static [&'static str]) -> Self {
        NodeError::new(Problem::unknown_choice(choice, known))
    }

    fn missing_field(key: &'static str) -> Self {
        NodeError::new(Problem::MissingKey(key))
    }

    fn duplicate_field(key: &'static str) -> Self {
        NodeError::new(Problem::DuplicateKey(key))
    }
}

/// Serde's and std's words for what a type takes, in a user's.
fn expectation(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    let up_to = |max: u64| format!("a whole number up to {max}");
    match text.as_str() {
        "a boolean" => "true or false".to_owned(),
        "path string" => "a path".to_owned(),
        "a string" => "a text".to_owned(),
        "a sequence" => "a list, such as [[disk]] makes".to_owned(),
        "u8" => up_to(u8::MAX.into()),
        "u16" => up_to(u16::MAX.into()),
        "u32" => up_to(u32::MAX.into()),
        "u64" => up_to(u64::MAX),
        _ => text,
    }
}
