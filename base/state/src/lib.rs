//! Versioned records of saved state.
//!
//! Every component of a machine describes its whole state by a type of skep's own, never by a kernel's structure. This crate says what such
//! a type must offer ([`State`]), how a component takes and gives it ([`Persist`]), and the envelope it travels in ([`Record`]).
//!
//! The encoding is CBOR (RFC 8949) by `minicbor`: maps with numbered fields, so that an old reader passes over a new
//! optional field and a new reader finds an old record's missing field absent.
//!
//! # Rules for changing a state type
//!
//! * A field's number is never used again for anything else.
//! * A new field is an `Option` (or has `#[cbor(default)]`), and its absence means what it meant before the field existed.
//! * Where that can't be had, [`State::VERSION`] is raised, and [`State::decode_older`] reads what came before.
//! * What can be derived from other state, or from the configuration, is not saved.
//! * What arrives is untrusted: [`State::check`] refuses, by the field's name, each value that no running component could hold. Where a component
//!   takes every value of the type, the field's description ends in "Any value."; docs/state.md shows either.
//!
//! What it does not do: the container on disk and the phases of save and restore are the monitor's.

#![forbid(unsafe_code)]

use std::fmt::{Debug, Display};

use minicbor::{Decode, Encode};

pub mod testing;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "state_test.rs"]
pub(crate) mod test;

/// Why a record can't be taken. Each names the record, and what would mend it where something would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The record is of another type than the component that it was handed to.
    #[error("the record is of type `{found}`, and the component takes `{expected}`")]
    WrongType {
        /// The type that the component takes.
        expected: &'static str,
        /// The type that the record names.
        found: String,
    },
    /// The record was made by a later skep.
    #[error(
        "record `{id}` has version {found}, and this skep reads up to version {newest}: use the skep that made it, or a later one"
    )]
    TooNew {
        /// The record's type.
        id: String,
        /// The version that the record names.
        found: u16,
        /// The newest version that this program reads.
        newest: u16,
    },
    /// The record was made by a skep so old that this one no longer reads it.
    #[error("record `{id}` has version {found}, which this skep no longer reads")]
    TooOld {
        /// The record's type.
        id: String,
        /// The version that the record names.
        found: u16,
    },
    /// The bytes are not what the type says.
    #[error("record `{id}` can't be decoded: {reason}")]
    Malformed {
        /// The record's type.
        id: String,
        /// What the decoder met.
        reason: String,
    },
    /// A field holds a value that no running component could.
    #[error("record `{id}`: field `{field}` is {value}, but {rule}")]
    Invalid {
        /// The record's type.
        id: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        value: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A backend refused to take or to give the state.
    #[error("{what}: {reason}")]
    Backend {
        /// What was being done.
        what: String,
        /// The backend's own error.
        reason: String,
    },
}

/// Refuses a field's value: `ensure(self.irr <= 0xff, Self::ID, "irr", self.irr, "8 lines exist")?`.
pub fn ensure(
    holds: bool,
    id: &'static str,
    field: &'static str,
    value: impl Debug,
    rule: &'static str,
) -> Result<(), StateError> {
    if holds { Ok(()) } else { Err(invalid(id, field, &value, rule)) }
}

#[cold]
#[inline(never)]
fn invalid(id: &'static str, field: &'static str, value: &dyn Debug, rule: &'static str) -> StateError {
    StateError::Invalid { id, field, value: format!("{value:?}"), rule }
}

/// A component's whole state, as plain data.
pub trait State: Encode<()> + for<'b> Decode<'b, ()> + Clone + PartialEq + Debug + Send {
    /// The type's name in a snapshot, for ever the same: `"i8259"`, `"x86_64-vcpu"`.
    const ID: &'static str;
    /// The version that this program writes.
    const VERSION: u16;

    /// Refuses each value that no running component could hold, by the field's name.
    fn check(&self) -> Result<(), StateError>;

    /// Reads a record of an older version. Without an answer of its own, a type that has had one version only refuses it.
    fn decode_older(version: u16, _body: &[u8]) -> Result<Self, StateError> {
        Err(StateError::TooOld { id: Self::ID.to_owned(), found: version })
    }
}

/// A state on its way: its type's name, its version and its CBOR.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// [`State::ID`] of the type inside: what takes the record looks at all of it. Any value.
    #[n(0)]
    pub id: String,
    /// [`State::VERSION`] of the type inside. Any value.
    #[n(1)]
    pub version: u16,
    /// The state, encoded. Any value.
    #[n(2)]
    #[cbor(with = "minicbor::bytes")]
    pub body: Vec<u8>,
}

impl Record {
    /// Encodes a state.
    pub fn of<S: State>(state: &S) -> Self {
        let body = minicbor::to_vec(state).expect("a Vec takes all that is written to it");
        Self { id: S::ID.to_owned(), version: S::VERSION, body }
    }

    /// Decodes and checks a state.
    ///
    /// # Errors
    /// Those of [`StateError`]: another type, a version that can't be read, bytes that are not the type's, a value out of its range.
    pub fn open<S: State>(&self) -> Result<S, StateError> {
        let state = if self.is_current(S::ID, S::VERSION)? {
            let mut decoder = minicbor::Decoder::new(&self.body);
            let state = decoder.decode().map_err(|error| self.malformed(&error))?;
            self.ends(decoder.position())?;
            state
        } else {
            S::decode_older(self.version, &self.body)?
        };
        state.check()?;
        Ok(state)
    }

    // What follows is apart since `open` is made anew for every type.

    /// Whether it is of the version that this program writes, and not of an older one.
    fn is_current(&self, id: &'static str, newest: u16) -> Result<bool, StateError> {
        if self.id != id {
            return Err(StateError::WrongType { expected: id, found: self.id.clone() });
        }
        if self.version > newest {
            return Err(StateError::TooNew { id: self.id.clone(), found: self.version, newest });
        }
        Ok(self.version == newest)
    }

    /// Whether the state takes the whole body.
    fn ends(&self, position: usize) -> Result<(), StateError> {
        match self.body.len() - position {
            0 => Ok(()),
            more => Err(self.malformed(&format_args!("{more} bytes follow the end"))),
        }
    }

    #[cold]
    fn malformed(&self, reason: &dyn Display) -> StateError {
        StateError::Malformed { id: self.id.clone(), reason: reason.to_string() }
    }
}

/// A component that can be saved, restored and reset. What it needs besides its state (lines, memory, clocks) it already holds.
pub trait Persist {
    /// The state's type.
    type State: State;

    /// Lets what time alone has brought about by now have come, interrupts included, while the clock may stand and no timer runs. All components of a
    /// machine do so before any of it is saved: to save one then moves no line, whose controller may have been saved before.
    fn catch_up(&self) {}

    /// The whole state, of a component that is stopped.
    fn save(&self) -> Self::State;

    /// Takes on a state that [`State::check`] has passed, without side effects that the guest or the host could see twice: a line that
    /// was high is high again without making an edge.
    ///
    /// # Errors
    /// Where the state does not fit this component's configuration.
    fn restore(&self, state: &Self::State) -> Result<(), StateError>;

    /// The power-on state, in place.
    fn reset(&self);
}

/// [`Persist`] without its type: what a machine keeps a list of.
pub trait Component: Send + Sync {
    /// [`Persist::catch_up`].
    fn catch_up_component(&self);
    /// [`Persist::save`], encoded.
    fn save_record(&self) -> Record;
    /// [`Persist::restore`] of a record, decoded and checked first.
    ///
    /// # Errors
    /// Those of [`Record::open`] and of the component.
    fn restore_record(&self, record: &Record) -> Result<(), StateError>;
    /// [`Persist::reset`].
    fn reset_component(&self);
}

impl<T: Persist + Send + Sync> Component for T {
    fn catch_up_component(&self) {
        self.catch_up();
    }

    fn save_record(&self) -> Record {
        Record::of(&self.save())
    }

    fn restore_record(&self, record: &Record) -> Result<(), StateError> {
        self.restore(&record.open()?)
    }

    fn reset_component(&self) {
        self.reset();
    }
}

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::test::fuzz_records as state_records;
}
