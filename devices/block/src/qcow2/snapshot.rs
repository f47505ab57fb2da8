//! Internal snapshots, as far as a reader of the active state meets them.

use super::entry::MOST_OFFSET;
use super::header::Header;
use crate::IoError;
use crate::storage::Storage;

/// The fixed part of an entry.
const FIXED: u64 = 40;
/// What an entry may bring along beyond what is known; QEMU's limit.
const MOST_EXTRA: u64 = 1024;

/// The entries of the snapshot table.
pub(super) struct Snapshots<'a> {
    storage: &'a dyn Storage,
    left: u32,
    at: u64,
}

/// One of them.
pub(super) struct Snapshot {
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    /// Where its entry ends.
    pub(super) end: u64,
    name_at: u64,
    name_len: usize,
}

impl<'a> Snapshots<'a> {
    pub(super) fn new(storage: &'a dyn Storage, header: &Header) -> Self {
        Self { storage, left: header.snapshots, at: header.snapshots_offset }
    }

    fn read(&self) -> Result<Snapshot, IoError> {
        let bytes = self.storage.bytes(self.at, FIXED as usize)?;
        let number =
            |at: usize, width: usize| bytes[at..at + width].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (id_len, name_len, extra) = (number(12, 2), number(14, 2), number(36, 4));
        if extra > MOST_EXTRA || number(0, 8) > MOST_OFFSET {
            return Err(IoError::Damaged);
        }
        let name_at = self.at + FIXED + extra + id_len;
        Ok(Snapshot {
            l1_offset: number(0, 8),
            l1_entries: number(8, 4),
            end: (name_at + name_len).next_multiple_of(8),
            name_at,
            name_len: name_len as usize,
        })
    }
}

impl Iterator for Snapshots<'_> {
    type Item = Result<Snapshot, IoError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let found = self.read();
        match &found {
            Ok(snapshot) => self.at = snapshot.end,
            Err(_) => self.left = 0,
        }
        Some(found)
    }
}

impl Snapshot {
    /// Its name, fit to be printed.
    pub(super) fn name(&self, storage: &dyn Storage) -> Result<String, IoError> {
        let bytes = storage.bytes(self.name_at, self.name_len.min(256))?;
        Ok(String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).collect())
    }
}
