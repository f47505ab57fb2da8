//! Which parts of guest memory the host has ever had to keep.
#![allow(unsafe_code)] // lseek's SEEK_DATA and sysconf have no safe form in std.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

#[cfg(test)]
#[path = "used_test.rs"]
mod test;

/// Pages that this process has written or read, of private memory at `start`: those that it has not are zeroes, or what is in the file behind them.
/// A host that does not tell has touched all.
pub(crate) fn touched(start: *const u8, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    /// Documentation/admin-guide/mm/pagemap.rst: bits 63 and 62.
    const PRESENT_OR_SWAPPED: u64 = 3 << 62;
    const ENTRY: u64 = 8;
    let Ok(pagemap) = File::open("/proc/self/pagemap") else { return Ok(vec![range]) };
    // SAFETY: it reads a constant of the system.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(crate::PAGE_SIZE);
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut entries = vec![0; 32 << 10];
    let mut at = range.start / page * page;
    while at < range.end {
        let wanted = usize::try_from((range.end - at).div_ceil(page) * ENTRY).unwrap_or(usize::MAX).min(entries.len());
        let place = (start as u64 + at) / page * ENTRY;
        let read = pagemap.read_at(&mut entries[..wanted], place)?;
        if read < ENTRY as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for entry in entries[..read].as_chunks::<{ ENTRY as usize }>().0 {
            if u64::from_ne_bytes(*entry) & PRESENT_OR_SWAPPED != 0 {
                push(&mut found, at.max(range.start)..(at + page).min(range.end));
            }
            at += page;
        }
    }
    Ok(found)
}

/// Where a file has data, and not holes. A file system that does not tell has data everywhere.
pub(crate) fn data(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let begin = match seek(file, at, libc::SEEK_DATA) {
            Ok(begin) => begin,
            // There is none behind this.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(vec![range]),
            Err(error) => return Err(error),
        };
        if begin >= range.end {
            break;
        }
        let end = seek(file, begin, libc::SEEK_HOLE)?.min(range.end);
        let (begin, end) = (begin / crate::PAGE_SIZE * crate::PAGE_SIZE, end.next_multiple_of(crate::PAGE_SIZE));
        push(&mut found, begin.max(range.start)..end.min(range.end));
        at = end;
    }
    Ok(found)
}

/// The file's own position moves, which nobody else uses.
fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open; the call touches no memory.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        at @ 0.. => Ok(at.unsigned_abs()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ranges that ascend and touch no other.
pub(crate) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged = Vec::with_capacity(ranges.len());
    ranges.into_iter().for_each(|range| push(&mut merged, range));
    merged
}

fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
        _ if next.is_empty() => {}
        _ => ranges.push(next),
    }
}
