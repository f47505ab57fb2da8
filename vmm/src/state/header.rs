//! A snapshot's header: what can be read of it without decoding the rest.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh64::xxh64;

/// What a header begins with.
pub const MAGIC: &str = "skep-snapshot";
/// The container's version: what this page's module says of files, names and checksums.
pub const CONTAINER: u32 = 1;
/// Bytes of a header at most.
pub(super) const MOST: u64 = 64 << 10;

/// A checksum, written as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum(pub u64);

impl TryFrom<String> for Checksum {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u64::from_str_radix(&text, 16).ok().filter(|_| plain);
        value.map(Self).ok_or_else(|| "a checksum is 16 hexadecimal digits".to_owned())
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checksum({self})")
    }
}

/// A file of a snapshot's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordsFile {
    /// Bytes.
    pub size: u64,
    /// XXH64 of all of it.
    pub xxh64: Checksum,
}

impl RecordsFile {
    /// That of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { size: bytes.len() as u64, xxh64: Checksum(xxh64(bytes, 0)) }
    }
}

/// A piece of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamRange {
    /// Its guest physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// The memory file: the pieces of RAM, one after the other. What is not written in it is zeroes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Bytes of all of it.
    pub size: u64,
    /// Bytes that are something else than zeroes, in pages of 4096.
    pub data: u64,
    /// The sum, modulo 2^64, of the XXH64 of each of those pages, with its number in the file as the seed.
    pub xxh64: Checksum,
    /// The pieces of RAM in the file.
    pub ram: Vec<RamRange>,
}

/// The snapshot that one is the difference to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Its folder: beside this one where it begins with `..`.
    pub folder: PathBuf,
    /// XXH64 of its header.
    pub header: Checksum,
    /// The file that names the pages that differ, each run by its first page and their number, 8 bytes each.
    pub changed: RecordsFile,
}

/// [`Header::requires`] of a difference.
pub const REQUIRES_BASE: &str = "base";

/// What is in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Header {
    /// [`MAGIC`].
    pub magic: String,
    /// [`CONTAINER`].
    pub container: u32,
    /// The version of skep that wrote it.
    pub skep: String,
    /// The machine and its version.
    pub machine: String,
    /// The guest's architecture.
    pub architecture: String,
    /// When it was saved: seconds since the Unix epoch, by the host's clock.
    pub saved: u64,
    /// What a reader must know of beyond this version of the container, by name: [`REQUIRES_BASE`].
    #[serde(default)]
    pub requires: Vec<String>,
    /// Of a difference: to what. Its memory file has the pages that differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Base>,
    /// The records.
    pub records: RecordsFile,
    /// Guest memory.
    pub memory: MemoryFile,
}
