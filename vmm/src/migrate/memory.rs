//! Pages on their way.

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep_memory::vm_memory::{Bytes, GuestMemoryError, MemoryRegionAddress, ReadVolatile, WriteVolatile};
use skep_memory::{Backing, PAGE_SIZE, Region, RegionKind};

use super::MigrateError;
use super::wire::{self, Kind, MOST_PAGES};
use crate::state::memory::{self, PIECE, Piece};
use crate::state::{Progress, RamRange};

#[cfg(test)]
#[path = "memory_test.rs"]
mod test;

/// Bytes of a frame's payload before its pages: the first one's number.
const NUMBER: usize = 8;

// A piece goes in one frame.
const _: () = assert!(PIECE as usize == MOST_PAGES);

fn protocol(error: impl ToString) -> MigrateError {
    MigrateError::Protocol(error.to_string())
}

/// What ends a transfer between guest memory and the connection: the connection, as a rule.
fn broken(error: GuestMemoryError) -> MigrateError {
    match error {
        GuestMemoryError::IOError(error) => wire::lost(error),
        error => protocol(error),
    }
}

/// Sends RAM: what may be something else than zeroes, of a target that has nothing else yet; or these pages. Answers the bytes that were sent of it, which
/// are added to `all` as they go.
pub(super) fn send(
    ram: &[Arc<Region>],
    changed: Option<&[Range<u64>]>,
    to: &mut (impl Write + WriteVolatile),
    progress: &Progress,
    all: &AtomicU64,
) -> Result<u64, MigrateError> {
    let pieces = memory::parts(ram, changed).map_err(MigrateError::Lost)?;
    progress.done.store(0, Ordering::Relaxed);
    progress.of.store(pieces.iter().map(|(_, _, range)| range.end - range.start).sum(), Ordering::Relaxed);
    let mut sent = 0;
    for piece in pieces {
        let bytes = send_piece(&piece, changed.is_some(), to)?;
        sent += bytes;
        all.fetch_add(bytes, Ordering::Relaxed);
        progress.done.fetch_add(piece.2.end - piece.2.start, Ordering::Relaxed);
    }
    Ok(sent)
}

/// Sends what is no zeroes straight from guest memory; `zeroes` as well, where the target may have something else. The guest may write meanwhile, so that a
/// page goes as it is neither before nor after: the dirty log, which was taken before, knows it, and it is sent again.
fn send_piece(
    (region, before, range): &Piece<'_>,
    zeroes: bool,
    to: &mut (impl Write + WriteVolatile),
) -> Result<u64, MigrateError> {
    let number = |offset: u64| ((before + offset) / PAGE_SIZE).to_le_bytes();
    let zeroes_to = |to: &mut dyn Write, from: u64, end: u64| match end > from && zeroes {
        true => wire::send(to, Kind::Zeroes, &[&number(from), &((end - from) / PAGE_SIZE).to_le_bytes()]),
        false => Ok(()),
    };
    let (mut next, mut sent) = (range.start, 0);
    for run in data_runs(region, range)? {
        zeroes_to(to, next, run.start)?;
        let length = (run.end - run.start) as usize;
        wire::begin(&mut *to, Kind::Pages, NUMBER + length, &number(run.start))?;
        region.write_all_volatile_to(MemoryRegionAddress(run.start), to, length).map_err(broken)?;
        sent += run.end - run.start;
        next = run.end;
    }
    zeroes_to(to, next, range.end)?;
    Ok(sent)
}

/// Where those pages of a part of a region are that are no zeroes.
fn data_runs(region: &Region, range: &Range<u64>) -> Result<Vec<Range<u64>>, MigrateError> {
    let mut runs = Vec::new();
    for page in range.clone().step_by(PAGE_SIZE as usize) {
        if !region.is_zero_page(page).map_err(protocol)? {
            memory::extend(&mut runs, page..page + PAGE_SIZE);
        }
    }
    Ok(runs)
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

    /// Takes a frame of pages, or of zeroes, whose payload of `length` bytes is what `from` has next. Where they belong is looked at first; then pages are
    /// read straight into memory, which has what came of a frame that ends early.
    pub(super) fn take(
        &self,
        kind: Kind,
        length: usize,
        from: &mut (impl Read + ReadVolatile),
    ) -> Result<(), MigrateError> {
        let length = length.checked_sub(NUMBER).ok_or_else(|| protocol("pages without a number"))? as u64;
        let first = number(from)?;
        if kind == Kind::Zeroes {
            let count = if length == NUMBER as u64 { number(from)? } else { 0 };
            let length = count.checked_mul(PAGE_SIZE).filter(|length| *length > 0);
            return self.clear(first, length.ok_or_else(|| protocol("zeroes without end"))?);
        }
        if length == 0 || !length.is_multiple_of(PAGE_SIZE) {
            return Err(protocol("a part of a page"));
        }
        for (region, part) in self.parts(first, length)? {
            let (place, length) = (MemoryRegionAddress(part.start), (part.end - part.start) as usize);
            region.read_exact_volatile_from(place, from, length).map_err(broken)?;
        }
        Ok(())
    }

    fn clear(&self, first: u64, length: u64) -> Result<(), MigrateError> {
        for (region, part) in self.parts(first, length)? {
            for at in part.step_by(PAGE_SIZE as usize) {
                region.write_slice(&[0; PAGE_SIZE as usize], MemoryRegionAddress(at)).map_err(protocol)?;
            }
        }
        Ok(())
    }

    /// What `length` bytes from page `first` on are of the regions, if they are RAM to the last.
    fn parts(&self, first: u64, length: u64) -> Result<Vec<(&Region, Range<u64>)>, MigrateError> {
        let size = self.regions.iter().map(Region::size).sum();
        let start = first.checked_mul(PAGE_SIZE);
        let bytes = start.and_then(|start| Some(start..start.checked_add(length)?)).filter(|bytes| bytes.end <= size);
        let bytes = bytes.ok_or_else(|| protocol(format!("page {first} and {length} bytes, which is no RAM")))?;
        let mut before = 0;
        let part = |region| {
            let (from, size) = (before, Region::size(region));
            before += size;
            (region, bytes.start.max(from) - from..bytes.end.clamp(from, from + size) - from)
        };
        Ok(self.regions.iter().map(part).filter(|(_, part)| !part.is_empty()).collect())
    }
}

fn number(from: &mut impl Read) -> Result<u64, MigrateError> {
    let mut bytes = [0; NUMBER];
    from.read_exact(&mut bytes).map_err(wire::lost)?;
    Ok(u64::from_le_bytes(bytes))
}
