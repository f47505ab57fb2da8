//! Frames and what is in them.

use std::io::{self, Read, Write};

use minicbor::{Decode, Encode};
use skep_state::Record;

use super::MigrateError;
use crate::state::records::CENTURIES;
use crate::state::{DisksState, RamRange, Records};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "wire_test.rs"]
pub(crate) mod test;

/// The protocol's version.
pub const VERSION: u32 = 1;
/// What each frame begins with.
const MAGIC: [u8; 4] = *b"SKPM";
/// Bytes of a frame's header: magic, kind, length of the payload.
const HEADER: usize = 16;
/// Bytes of RAM in a frame at most.
pub(super) const MOST_PAGES: usize = 1 << 20;
/// Bytes of a message at most. A machine's records are large where it has many vCPUs.
const MOST_MESSAGE: usize = 256 << 20;
/// Bytes of a message that comes first, from who may be anybody.
const MOST_FIRST: usize = 4 << 20;
/// Bytes of a reason.
const MOST_REASON: usize = 4096;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Hello`]: the first of a source.
    Hello,
    /// Nothing: the target has room for the machine; of a source, that it has heard what it was told last.
    Accept,
    /// The number of the first page in the order of RAM (8 bytes), and whole pages.
    Pages,
    /// The number of the first page, and how many there are that are zeroes (8 bytes each).
    Zeroes,
    /// [`State`]: the guest stands still.
    State,
    /// Nothing: the target holds the state.
    Ready,
    /// Nothing: the machine is the target's.
    Go,
    /// Nothing: it runs there.
    Running,
    /// A text: why not.
    Refused,
    /// A session's number (16 bytes): does it run? The first of a source that has lost the connection.
    Ask,
    /// 1 where it runs, 0 where it never will (1 byte).
    Answer,
}

const KINDS: [Kind; 11] = [
    Kind::Hello,
    Kind::Accept,
    Kind::Pages,
    Kind::Zeroes,
    Kind::State,
    Kind::Ready,
    Kind::Go,
    Kind::Running,
    Kind::Refused,
    Kind::Ask,
    Kind::Answer,
];

impl Kind {
    fn most(self) -> usize {
        match self {
            Self::Hello => MOST_FIRST,
            Self::Accept | Self::Ready | Self::Go | Self::Running => 0,
            Self::Pages => MOST_PAGES + 8,
            Self::Zeroes | Self::Ask => 16,
            Self::State => MOST_MESSAGE,
            Self::Refused => MOST_REASON,
            Self::Answer => 1,
        }
    }
}

/// A session's number, which nobody guesses.
pub type Session = [u8; 16];

/// What a machine is that wants to come.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// [`VERSION`].
    #[n(0)]
    pub protocol: u32,
    /// skep's own version.
    #[n(1)]
    pub skep: String,
    /// What a target must know of beyond that version of the protocol, by name.
    #[n(2)]
    pub requires: Vec<String>,
    /// By which the source asks later.
    #[n(3)]
    #[cbor(with = "minicbor::bytes")]
    pub session: Session,
    /// The guest's architecture.
    #[n(4)]
    pub architecture: String,
    /// The machine's config, in TOML.
    #[n(5)]
    pub config: String,
    /// The pieces of RAM, by address and size in bytes, in the order in which pages are counted.
    #[n(6)]
    pub ram: Vec<(u64, u64)>,
    /// What the guest was shown of its CPUs.
    #[n(7)]
    pub cpus: Record,
    /// The disks' images.
    #[n(8)]
    pub disks: DisksState,
}

impl Hello {
    /// The pieces of RAM.
    pub(crate) fn ram(&self) -> Vec<RamRange> {
        self.ram.iter().map(|&(address, size)| RamRange { address, size }).collect()
    }
}

/// A machine that stands still.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct State {
    /// Its records, as in a snapshot.
    #[n(0)]
    pub records: Records,
    /// How long it had stood still when this was sent, in nanoseconds.
    #[n(1)]
    pub stood_nanos: u64,
    /// Somebody had paused it: it is not to run before it is resumed.
    #[n(2)]
    pub paused: bool,
}

impl State {
    /// Decodes what has come.
    ///
    /// # Errors
    /// What is none, or has stood for longer than any clock goes.
    pub(crate) fn open(bytes: &[u8]) -> Result<Self, MigrateError> {
        let state: Self = decode(bytes)?;
        match state.stood_nanos {
            0..=CENTURIES => Ok(state),
            nanos => {
                Err(MigrateError::Protocol(format!("it says that the machine has stood for {nanos} ns, centuries")))
            }
        }
    }
}

pub(crate) fn encode(message: &impl Encode<()>) -> Vec<u8> {
    minicbor::to_vec(message).expect("a Vec takes all that is written to it")
}

pub(crate) fn decode<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> Result<T, MigrateError> {
    minicbor::decode(bytes).map_err(|error| MigrateError::Protocol(error.to_string()))
}

/// Writes a frame of these parts.
pub(crate) fn send(mut to: impl Write, kind: Kind, parts: &[&[u8]]) -> Result<(), MigrateError> {
    let length = parts.iter().map(|part| part.len()).sum();
    let Some((first, rest)) = parts.split_first() else { return begin(to, kind, length, &[]) };
    // What is short goes in one piece.
    let (early, late) = first.split_at(first.len().min(64));
    begin(&mut to, kind, length, early)?;
    let mut parts = std::iter::once(&late).chain(rest).filter(|part| !part.is_empty());
    parts.try_for_each(|part| to.write_all(part)).map_err(lost)
}

/// Writes the header of a frame with `length` bytes of payload, and the first of them, in one piece.
pub(super) fn begin(mut to: impl Write, kind: Kind, length: usize, first: &[u8]) -> Result<(), MigrateError> {
    let mut head = [MAGIC, (kind as u32).to_le_bytes()].concat();
    head.extend_from_slice(&(length as u64).to_le_bytes());
    head.extend_from_slice(first);
    to.write_all(&head).map_err(lost)
}

/// Reads a frame of any kind into `payload`.
#[cfg(any(test, fuzzing))]
pub(crate) fn receive(mut from: impl Read, payload: &mut Vec<u8>) -> Result<Kind, MigrateError> {
    let (kind, length) = head(&mut from)?;
    body(from, length, payload)?;
    Ok(kind)
}

/// Reads the header of a frame: its kind, and the bytes of its payload, which are to be read next and are no more than the kind has.
pub(super) fn head(mut from: impl Read) -> Result<(Kind, usize), MigrateError> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header).map_err(lost)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let kind = usize::try_from(number(&header[4..8])).ok().and_then(|kind| KINDS.get(kind));
    let Some(kind) = kind.filter(|_| header[..4] == MAGIC) else {
        return Err(MigrateError::Protocol("a frame begins with something else".to_owned()));
    };
    let length = usize::try_from(number(&header[8..])).ok().filter(|length| *length <= kind.most());
    let Some(length) = length else {
        return Err(MigrateError::Protocol(format!("a frame ({kind:?}) is larger than any")));
    };
    Ok((*kind, length))
}

/// Reads the `length` bytes of a payload.
pub(super) fn body(from: impl Read, length: usize, payload: &mut Vec<u8>) -> Result<(), MigrateError> {
    // Memory is taken as bytes come.
    payload.clear();
    let read = from.take(length as u64).read_to_end(payload).map_err(lost)?;
    if read < length { Err(lost(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
}

/// What the connection ends with, in words.
pub(super) fn lost(error: io::Error) -> MigrateError {
    MigrateError::Lost(match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the other side has hung up"),
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the other side is silent"),
        _ => error,
    })
}

/// Waits for a frame of one kind, or for a refusal.
pub(super) fn expect(mut from: impl Read, wanted: Kind, payload: &mut Vec<u8>) -> Result<(), MigrateError> {
    let (kind, length) = head(&mut from)?;
    // What nobody waits for may be long.
    if kind != wanted && kind != Kind::Refused {
        return Err(unexpected(kind));
    }
    body(from, length, payload)?;
    if kind == wanted { Ok(()) } else { Err(refused(payload)) }
}

pub(super) fn refused(payload: &[u8]) -> MigrateError {
    MigrateError::Refused(String::from_utf8_lossy(payload).into_owned())
}

pub(super) fn unexpected(kind: Kind) -> MigrateError {
    MigrateError::Protocol(format!("a frame that does not belong here ({kind:?})"))
}

/// Says why not. Who does not hear it sees the connection end.
pub(super) fn refuse(to: impl Write, reason: &str) {
    let mut end = reason.len().min(MOST_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    if let Err(error) = send(to, Kind::Refused, &[&reason.as_bytes()[..end]]) {
        tracing::debug!("the other side does not hear why it is refused: {error}");
    }
}
