//! A block that is erased and written anew, of which the file has nothing until it is whole.
//!
//! A driver may change a variable by the erase of the block that holds all of them, which it then programs anew from its beginning, by buffers
//! (edk2's for aarch64 does so where bits have to be set, or many bytes). A chip that loses its power meanwhile has lost them all; a process that is killed
//! need not have. So the file keeps what the block was until that is over, and then has all of it:
//!
//! - at once, where the guest begins with something else (another block, an address below, single bytes, locks), or has programmed the block to its last byte;
//! - where it leaves the block alone, after 100 ms of guest time ([`PATIENCE`]), or 2 s where the block holds less than it did ([`PATIENCE_WITH_LESS`]). A machine that stood still meanwhile, or was saved, restored or sent, has them
//!   anew from the moment that it goes on ([`super::Flash::resumed`]);
//! - at the machine's end, where the guest ends it, or the block holds as much as it did. What is held is part of a saved state, and of a machine that has been
//!   saved and does not go on the file stays as it is: it is the next one's.
//!
//! So what is set by a state that is programmed after all else, at an address below, is not held; nor is what a fault-tolerant write has rewritten, which is noted
//! in another block. What a driver sets by the block's rewrite alone, states and all, is held for as long as that takes and so much guest time more: a
//! process that is killed meanwhile leaves the file with all variables as they were before.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use skep_clock::GuestNanos;
use xxhash_rust::xxh64::xxh64;

use super::Geometry;
use super::store::Media;

/// How long more is waited for, in nanoseconds of guest time: none may come, since what is empty is not programmed.
pub(super) const PATIENCE: u64 = 100_000_000;
/// The same while the block holds less than it did: it may be half of what it is to be, of a guest whose host is busy, or that has just come from another one.
pub(super) const PATIENCE_WITH_LESS: u64 = 2_000_000_000;

/// An erased block.
pub(super) struct Held {
    pub(super) block: u32,
    /// What the file has of it.
    pub(super) old: Vec<u8>,
    /// As far as it is programmed anew.
    pub(super) end: u64,
    /// When it is waited for no longer.
    pub(super) until: GuestNanos,
    /// As far as it was programmed before.
    old_end: u64,
}

impl Held {
    /// A block at `start` that is erased `now`.
    pub(super) fn new(block: u32, start: u64, old: Vec<u8>, now: GuestNanos) -> Self {
        let used = old.iter().rposition(|byte| *byte != 0xff).map_or(0, |last| last as u64 + 1);
        Self { block, old, end: start, until: now, old_end: start + used }
    }

    /// Waits for more from `now` on.
    pub(super) fn wait(&mut self, now: GuestNanos) {
        let patience = if self.is_as_long_as_it_was() { PATIENCE } else { PATIENCE_WITH_LESS };
        self.until = now.saturating_add(patience);
    }

    /// Whether all that it held has its place in it again, or another: no more is missing than what is new.
    pub(super) fn is_as_long_as_it_was(&self) -> bool {
        self.end >= self.old_end
    }
}

/// Linux writes so many bytes of a file at once, whatever ends the process. A block of no more is not held: its driver has to reckon with an end between
/// its erase and what follows.
pub(super) const PAGE: u32 = 4096;
const MAGIC: &[u8; 8] = b"skepheld";
/// Bytes before the block: [`MAGIC`], where it belongs, its size and its XXH64, little-endian.
const HEADER: usize = 32;

/// Writes a block to a file of `size` bytes, so that it has all of it or what was there, whenever the process is killed or the host loses its power: the
/// block stands behind the file's end first, from where [`mend`] takes it. It stays there where the block may not be whole in its place: nothing may be
/// written to the file any more then.
pub(super) fn write(file: &dyn Media, size: u64, at: u64, block: &[u8]) -> io::Result<()> {
    let result = file.write(&journal(at, block), size).and_then(|()| file.sync());
    if let Err(error) = result {
        // What is not whole there would be in the way.
        let _ = file.cut(size);
        return Err(error);
    }
    file.write(block, at)?;
    file.sync()?;
    file.cut(size)
}

/// What stands behind the file's end meanwhile.
pub(super) fn journal(at: u64, block: &[u8]) -> Vec<u8> {
    let fields = [at, block.len() as u64, xxh64(block, 0)];
    let header = MAGIC.iter().copied().chain(fields.into_iter().flat_map(u64::to_le_bytes));
    header.chain(block.iter().copied()).collect()
}

/// Mends a file of variables for a bank of `size` bytes, whose process ended while it wrote a block. Says whether it had to. What is no such file stays
/// as it is.
///
/// # Errors
/// The host's.
pub fn mend(file: &File, size: u64, geometry: Geometry) -> io::Result<bool> {
    let behind = file.metadata()?.len().saturating_sub(size);
    if behind == 0 || behind > u64::from(geometry.block) + HEADER as u64 {
        return Ok(false);
    }
    let mut bytes = vec![0; behind as usize];
    file.read_exact_at(&mut bytes, size)?;
    // The host may have lost what it was to keep there, but for the size. A file of another size is none of ours.
    let nothing = behind == u64::from(geometry.block) + HEADER as u64 && bytes.iter().all(|byte| *byte == 0);
    if !nothing && !bytes.starts_with(MAGIC) {
        return Ok(false);
    }
    if let Some((at, block)) = whole(&bytes).filter(|(at, block)| at.saturating_add(block.len() as u64) <= size) {
        file.write_all_at(block, at)?;
        file.sync_data()?;
    }
    file.set_len(size)?;
    Ok(true)
}

/// A block that is all there, and where it belongs.
fn whole(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (header, block) = bytes.split_at_checked(HEADER)?;
    let field = |number: usize| Some(u64::from_le_bytes(header.get(number * 8..)?.first_chunk().copied()?));
    let (at, length, wanted) = (field(1)?, field(2)?, field(3)?);
    (header.starts_with(MAGIC) && block.len() as u64 == length && xxh64(block, 0) == wanted).then_some((at, block))
}
