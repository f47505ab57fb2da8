//! A block that is erased and written anew, of which the file has nothing until it is whole.
//!
//! A driver may change a variable by the erase of the block that holds all of them, which it then programs anew from its beginning, by buffers
//! (edk2's for aarch64 does so where bits have to be set, or many bytes). A chip that loses its power meanwhile has lost them all; a process that is killed
//! need not have. So the file keeps what the block was until that is over: the guest begins with something else, or has left the block alone for a while. A
//! variable is set when its state says so, which is programmed after all else, at an address below: nothing that is set is held.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use skep_clock::GuestNanos;

use super::Geometry;

/// How long more is waited for, in nanoseconds of guest time: none may come, since what is empty is not programmed.
pub(super) const PATIENCE: u64 = 100_000_000;

/// An erased block.
pub(super) struct Held {
    pub(super) block: u32,
    /// What the file has of it.
    pub(super) old: Vec<u8>,
    /// As far as it is programmed anew.
    pub(super) end: u64,
    /// When it is waited for no longer.
    pub(super) until: GuestNanos,
}

/// Linux writes so many bytes of a file at once, whatever ends the process. A block of no more is not held: its driver has to reckon with an end between
/// its erase and what follows.
pub(super) const PAGE: u32 = 4096;
const MAGIC: &[u8; 8] = b"skepheld";
/// Bytes before the block: [`MAGIC`], where it belongs, its size and its sum, little-endian.
const HEADER: usize = 32;

/// Writes a block to a file of `size` bytes, so that it has all of it or what was there, whenever the process is killed or the host loses its power: the
/// block stands behind the file's end first, from where [`mend`] takes it.
pub(super) fn write(file: &File, size: u64, at: u64, block: &[u8]) -> io::Result<()> {
    let result = file.write_all_at(&journal(at, block), size).and_then(|()| file.sync_data());
    let result = result.and_then(|()| file.write_all_at(block, at));
    let result = result.and_then(|()| file.sync_data());
    // What is not whole there would be in the way, and what is has been taken.
    file.set_len(size).and(result)
}

/// What stands behind the file's end meanwhile.
pub(super) fn journal(at: u64, block: &[u8]) -> Vec<u8> {
    let fields = [at, block.len() as u64, sum(block)];
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
    // The host may have lost what it was to keep there, but for the size.
    let nothing = bytes.iter().all(|byte| *byte == 0);
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
    (header.starts_with(MAGIC) && block.len() as u64 == length && sum(block) == wanted).then_some((at, block))
}

/// FNV-1a of 64 bits.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
