//! Guest memory as a file: written by several threads, without what is zeroes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, PAGE_SIZE, Region, RegionKind, is_zero};
use xxhash_rust::xxh64::xxh64;

use super::FirmwareState;
use super::header::{Checksum, MemoryFile, RamRange};

#[cfg(test)]
#[path = "memory_test.rs"]
mod test;

/// Bytes that are taken at once.
pub(crate) const PIECE: u64 = 1 << 20;
/// Threads at most: more don't make a disk or a memory bus faster.
const MOST_THREADS: usize = 8;

/// How far it has come, for whoever asks.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that have been looked at.
    pub done: AtomicU64,
    /// Bytes that there are to look at.
    pub of: AtomicU64,
}

/// What firmware's code adds up to.
pub(crate) fn firmware(code: &Arc<Backing>) -> io::Result<FirmwareState> {
    let size = code.size();
    let region = Region::new("firmware", RegionKind::ReadOnly, 0, size, code.clone(), 0).map_err(io::Error::other)?;
    let sum = Sum::default();
    let mut page = [0; PAGE_SIZE as usize];
    for at in region.used()?.into_iter().flat_map(|range| range.step_by(PAGE_SIZE as usize)) {
        region.read_slice(&mut page, MemoryRegionAddress(at)).map_err(io::Error::other)?;
        sum.add(&page, at / PAGE_SIZE);
    }
    Ok(FirmwareState { size, xxh64: sum.get().1 })
}

/// A region, where it begins in the file, and a part of it.
pub(crate) type Piece<'a> = (&'a Region, u64, Range<u64>);

/// All of RAM that may be something else than zeroes, or these pages, in pieces.
pub(crate) fn parts<'a>(ram: &'a [Arc<Region>], changed: Option<&[Range<u64>]>) -> io::Result<Vec<Piece<'a>>> {
    pieces(ram, |region, before| match changed {
        Some(runs) => Ok(within(runs, region, before)),
        None => region.used(),
    })
}

/// The parts of RAM that `which` names, by a region and its place in the file, in pieces for threads.
fn pieces(
    ram: &[Arc<Region>],
    which: impl Fn(&Region, u64) -> io::Result<Vec<Range<u64>>>,
) -> io::Result<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut before = 0;
    for region in ram {
        for part in which(region, before)? {
            let starts = (part.start..part.end).step_by(PIECE as usize);
            pieces.extend(starts.map(|start| (&**region, before, start..part.end.min(start + PIECE))));
        }
        before += region.size();
    }
    Ok(pieces)
}

/// The bytes of a region that begins at `before` in the file which are in these pages of the file.
fn within(runs: &[Range<u64>], region: &Region, before: u64) -> Vec<Range<u64>> {
    let bytes = |run: &Range<u64>| {
        let (start, end) = (run.start * PAGE_SIZE, run.end * PAGE_SIZE);
        start.max(before) - before..end.min(before + region.size()).max(before) - before
    };
    runs.iter().map(bytes).filter(|range| !range.is_empty()).collect()
}

/// Writes RAM into `file`, which is new: all of it, or these pages. Nobody writes to it meanwhile. It goes on while `wanted` says so.
pub(crate) fn write(
    ram: &[Arc<Region>],
    changed: Option<&[Range<u64>]>,
    file: &File,
    progress: &Progress,
    wanted: impl Fn() -> bool + Sync,
) -> io::Result<MemoryFile> {
    let size = ram.iter().map(|region| region.size()).sum();
    file.set_len(size)?;
    let pieces = parts(ram, changed)?;
    progress.of.store(pieces.iter().map(|(_, _, range)| range.end - range.start).sum(), Ordering::Relaxed);
    let sum = Sum::default();
    in_parallel(&pieces, |(region, before, range), buffer| {
        if !wanted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        let whole = region.read_slice(bytes, MemoryRegionAddress(range.start));
        whole.map_err(io::Error::other)?;
        let place = before + range.start;
        for run in sum.add(bytes, place / PAGE_SIZE) {
            file.write_all_at(&bytes[run.clone()], place + run.start as u64)?;
        }
        progress.done.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(())
    })?;
    let (data, xxh64) = sum.get();
    let ram = ram.iter().map(|region| RamRange { address: region.gpa(), size: region.size() }).collect();
    Ok(MemoryFile { size, data, xxh64: Checksum(xxh64), ram })
}

/// How many bytes of a memory file are no zeroes, and their checksum.
pub(super) fn sum(file: &File) -> io::Result<(u64, u64)> {
    let size = file.metadata()?.len();
    // Holes are found by mapping it: what nobody has put there is not read.
    let used = Backing::of_file(file.try_clone()?).and_then(|backing| {
        let what = "memory from a file";
        let failed = |source| skep_memory::MemoryError::Host { what, size, source, mend: String::new() };
        backing.used(0, size).map_err(failed)
    });
    let used = used.map_err(io::Error::other)?;
    let piece = |used: Range<u64>| {
        let end = used.end;
        (used.start..end).step_by(PIECE as usize).map(move |start| start..end.min(start + PIECE))
    };
    let pieces: Vec<_> = used.into_iter().flat_map(piece).collect();
    let sum = Sum::default();
    in_parallel(&pieces, |range, buffer| {
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        file.read_exact_at(bytes, range.start)?;
        sum.add(bytes, range.start / PAGE_SIZE);
        Ok(())
    })?;
    Ok(sum.get())
}

/// Reads a memory file into RAM: these pages, zeroes as well; or all of it into new RAM that can't be mapped from it, since it is shared, or on huge
/// pages.
pub(crate) fn read(file: &File, changed: Option<&[Range<u64>]>, ram: &[Arc<Region>]) -> io::Result<()> {
    let pieces = pieces(ram, |region, before| match changed {
        Some(runs) => Ok(within(runs, region, before)),
        None => Ok(vec![Range { start: 0, end: region.size() }]),
    })?;
    in_parallel(&pieces, |(region, before, range), buffer| {
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        file.read_exact_at(bytes, before + range.start)?;
        let runs = match changed {
            Some(_) => vec![Range { start: 0, end: bytes.len() }],
            None => Sum::default().add(bytes, 0),
        };
        for run in runs {
            let place = MemoryRegionAddress(range.start + run.start as u64);
            region.write_slice(&bytes[run], place).map_err(io::Error::other)?;
        }
        Ok(())
    })
}

/// Where those pages are that are no zeroes; `each` is told of them, by their numbers.
pub(crate) fn data_runs(bytes: &[u8], mut each: impl FnMut(u64, &[u8])) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    for (number, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
        if !is_zero(page) {
            each(number as u64, page);
            let start = number * PAGE_SIZE as usize;
            extend(&mut runs, start..start + page.len());
        }
    }
    runs
}

/// Adds what comes next to runs that ascend.
pub(crate) fn extend<T: PartialEq>(runs: &mut Vec<Range<T>>, next: Range<T>) {
    match runs.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => runs.push(next),
    }
}

/// What the pages add up to.
#[derive(Default)]
struct Sum {
    data: AtomicU64,
    xxh64: AtomicU64,
}

impl Sum {
    /// Adds pages from number `first` on, and answers where those are that are no zeroes.
    fn add(&self, bytes: &[u8], first: u64) -> Vec<Range<usize>> {
        let (mut data, mut sum) = (0, 0_u64);
        let runs = data_runs(bytes, |number, page| {
            data += page.len() as u64;
            sum = sum.wrapping_add(xxh64(page, first + number));
        });
        self.data.fetch_add(data, Ordering::Relaxed);
        self.xxh64.fetch_add(sum, Ordering::Relaxed);
        runs
    }

    fn get(&self) -> (u64, u64) {
        (self.data.load(Ordering::Relaxed), self.xxh64.load(Ordering::Relaxed))
    }
}

/// Does `work` on each piece, on as many threads as are of use, each with a buffer of [`PIECE`] bytes. The first that fails ends it.
fn in_parallel<T: Sync>(pieces: &[T], work: impl Fn(&T, &mut [u8]) -> io::Result<()> + Sync) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<io::Error>> = Mutex::default();
    let run = || {
        let mut buffer = vec![0; PIECE as usize];
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(piece, &mut buffer) {
                next.store(pieces.len(), Ordering::Relaxed);
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, |count| count.get()).min(MOST_THREADS).min(pieces.len());
    thread::scope(|scope| {
        for _ in 1..threads {
            // A host that refuses a thread has this one.
            if thread::Builder::new().name("memory".to_owned()).spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
