//! Pages on their way.

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, PAGE_SIZE, Region, RegionKind};

use super::MigrateError;
use super::wire::{self, Kind, MOST_PAGES};
use crate::state::memory::{self, PIECE, Piece, data_runs};
use crate::state::{Progress, RamRange};

#[cfg(test)]
#[path = "memory_test.rs"]
mod test;

// A piece goes in one frame.
const _: () = assert!(PIECE as usize == MOST_PAGES);

fn protocol(error: impl ToString) -> MigrateError {
    MigrateError::Protocol(error.to_string())
}

/// Sends RAM: what may be something else than zeroes, of a target that has nothing else yet; or these pages. Answers the bytes that were sent of it, which
/// are added to `all` as they go.
pub(super) fn send(
    ram: &[Arc<Region>],
    changed: Option<&[Range<u64>]>,
    mut to: impl Write,
    progress: &Progress,
    all: &AtomicU64,
) -> Result<u64, MigrateError> {
    let pieces = memory::parts(ram, changed).map_err(MigrateError::Lost)?;
    progress.done.store(0, Ordering::Relaxed);
    progress.of.store(pieces.iter().map(|(_, _, range)| range.end - range.start).sum(), Ordering::Relaxed);
    let mut buffer = vec![0; PIECE as usize];
    let mut sent = 0;
    for piece in pieces {
        let length = piece.2.end - piece.2.start;
        let bytes = send_piece(&piece, &mut buffer[..length as usize], changed.is_some(), &mut to)?;
        sent += bytes;
        all.fetch_add(bytes, Ordering::Relaxed);
        progress.done.fetch_add(length, Ordering::Relaxed);
    }
    Ok(sent)
}

/// `zeroes` are sent as well, where the target may have something else.
fn send_piece(
    (region, before, range): &Piece<'_>,
    bytes: &mut [u8],
    zeroes: bool,
    mut to: impl Write,
) -> Result<u64, MigrateError> {
    // The guest may write meanwhile: the dirty log knows, and the page is sent again.
    region.read_slice(bytes, MemoryRegionAddress(range.start)).map_err(protocol)?;
    let page = |offset: usize| (before + range.start + offset as u64) / PAGE_SIZE;
    let mut next = 0;
    let mut sent = 0;
    let zeroes_until = |end: usize, next: usize, to: &mut dyn Write| match end > next && zeroes {
        true => {
            let (first, count) = (page(next), (end - next) as u64 / PAGE_SIZE);
            wire::send(to, Kind::Zeroes, &[&first.to_le_bytes(), &count.to_le_bytes()])
        }
        false => Ok(()),
    };
    for run in data_runs(bytes, |_, _| {}) {
        zeroes_until(run.start, next, &mut to)?;
        wire::send(&mut to, Kind::Pages, &[&page(run.start).to_le_bytes(), &bytes[run.clone()]])?;
        sent += run.len() as u64;
        next = run.end;
    }
    zeroes_until(bytes.len(), next, &mut to)?;
    Ok(sent)
}

/// RAM that a machine is received into.
pub(super) struct Incoming {
    regions: Vec<Region>,
    pub(super) backing: Arc<Backing>,
}

impl Incoming {
    /// These pieces in `backing`, one after the other.
    pub(super) fn new(backing: Arc<Backing>, ram: &[RamRange]) -> Result<Self, MigrateError> {
        let mut offset = 0;
        let mut regions = Vec::new();
        for RamRange { address, size } in ram {
            let region = Region::new("RAM", RegionKind::Ram, *address, *size, backing.clone(), offset);
            regions.push(region.map_err(protocol)?);
            offset += size;
        }
        Ok(Self { regions, backing })
    }

    /// Takes a frame of pages, or of zeroes.
    pub(super) fn take(&self, kind: Kind, payload: &[u8]) -> Result<(), MigrateError> {
        let Some((first, mut rest)) =
            payload.split_first_chunk().map(|(first, rest)| (u64::from_le_bytes(*first), rest))
        else {
            return Err(protocol("pages without a number"));
        };
        if kind == Kind::Pages {
            if rest.is_empty() || !rest.len().is_multiple_of(PAGE_SIZE as usize) {
                return Err(protocol("a part of a page"));
            }
            let length = rest.len() as u64;
            return self.fill(first, length, &mut rest);
        }
        let count = rest.first_chunk().map(|count| u64::from_le_bytes(*count)).unwrap_or_default();
        let length = count.checked_mul(PAGE_SIZE).filter(|length| *length > 0);
        self.fill(first, length.ok_or_else(|| protocol("zeroes without end"))?, &mut std::io::repeat(0))
    }

    /// Writes `length` bytes from page `first` on.
    fn fill(&self, first: u64, length: u64, from: &mut dyn Read) -> Result<(), MigrateError> {
        let outside = || protocol(format!("page {first} and {length} bytes, which is no RAM"));
        let start = first.checked_mul(PAGE_SIZE).ok_or_else(outside)?;
        let end = start.checked_add(length).ok_or_else(outside)?;
        let mut before = 0;
        let mut done = 0;
        let mut page = [0; PAGE_SIZE as usize];
        for region in &self.regions {
            let part = start.max(before)..end.min(before + region.size());
            for at in part.step_by(PAGE_SIZE as usize) {
                from.read_exact(&mut page).map_err(MigrateError::Lost)?;
                region.write_slice(&page, MemoryRegionAddress(at - before)).map_err(protocol)?;
                done += PAGE_SIZE;
            }
            before += region.size();
        }
        if done == length { Ok(()) } else { Err(outside()) }
    }
}
