//! What a guest's memory has changed by since a snapshot: followed by the dirty log, saved as a difference.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_memory::{Consumer, DirtyLog, PAGE_SIZE, Region, RegionKind};

use super::SnapshotError;
use super::header::Checksum;

#[cfg(test)]
#[path = "changes_test.rs"]
mod test;

/// Pages of the memory file, in ascending order, by their numbers there.
pub(crate) type Runs = Vec<Range<u64>>;

/// Bytes of a run in a file: its first page, and how many there are, in little-endian order.
const RUN: usize = 16;

/// A bit for each page, by a region's address.
pub(crate) type Bits = BTreeMap<u64, Vec<u64>>;

/// A snapshot that differences are to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Its folder.
    pub(crate) folder: std::path::PathBuf,
    /// XXH64 of its header, which holds the checksums of the rest.
    pub(crate) header: Checksum,
}

struct Inner {
    log: Arc<DirtyLog>,
    consumer: Consumer,
    /// What was changed and is in no snapshot yet.
    bits: Bits,
    /// `None` until a snapshot is whole.
    origin: Option<Origin>,
}

/// Follows a machine's changes.
#[derive(Clone)]
pub(crate) struct Tracker(Arc<Mutex<Inner>>);

impl Tracker {
    /// One that sees what is changed from now on, since `origin` if that is what memory holds now.
    pub(crate) fn begin(log: Arc<DirtyLog>, origin: Option<Origin>) -> Result<Self, SnapshotError> {
        let consumer = log.subscribe("snapshot").map_err(SnapshotError::DirtyLog)?;
        Ok(Self(Arc::new(Mutex::new(Inner { log, consumer, bits: Bits::new(), origin }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What differences are to, if there is anything.
    pub(crate) fn origin(&self) -> Option<Origin> {
        self.lock().origin.clone()
    }

    /// Takes what has changed, of a machine that stands still.
    pub(crate) fn take(&self) -> Result<Changes, SnapshotError> {
        let mut inner = self.lock();
        let new = inner.log.take(inner.consumer).map_err(SnapshotError::DirtyLog)?;
        merge(&mut inner.bits, new);
        let (bits, origin) = (std::mem::take(&mut inner.bits), inner.origin.clone());
        Ok(Changes { tracker: self.clone(), bits, origin })
    }
}

/// The pages of `ram` whose bits are set. What is no RAM to the memory map all the time is taken to have changed.
pub(crate) fn runs(bits: &Bits, ram: &[Arc<Region>]) -> Runs {
    let mut runs = Runs::new();
    let mut before = 0;
    for region in ram {
        let pages = region.size() / PAGE_SIZE;
        let bits = bits.get(&region.gpa()).map_or(&[][..], Vec::as_slice);
        let all = region.kind() != RegionKind::Ram;
        let is_set = |page: u64| all || bits.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1);
        let mut page = 0;
        while page < pages {
            let start = page;
            while page < pages && is_set(page) {
                page += 1;
            }
            if page > start {
                runs.push(before + start..before + page);
            }
            page += 1;
        }
        before += pages;
    }
    runs
}

/// Adds pages to others.
pub(crate) fn merge(into: &mut Bits, from: impl IntoIterator<Item = (u64, Vec<u64>)>) {
    for (gpa, bits) in from {
        let known = into.entry(gpa).or_insert_with(|| vec![0; bits.len()]);
        for (known, new) in known.iter_mut().zip(bits) {
            *known |= new;
        }
    }
}

/// Changes on their way into a snapshot. Those of one that is not finished are still to be saved.
pub(crate) struct Changes {
    tracker: Tracker,
    bits: Bits,
    /// What they are the difference to.
    pub(crate) origin: Option<Origin>,
}

impl Changes {
    /// The changed pages of `ram`.
    pub(crate) fn runs(&self, ram: &[Arc<Region>]) -> Runs {
        runs(&self.bits, ram)
    }

    /// What they are the difference to, if to anything, and the changed pages of `ram`.
    pub(crate) fn difference(&self, ram: &[Arc<Region>]) -> Option<(Origin, Runs)> {
        Some((self.origin.clone()?, self.runs(ram)))
    }

    /// They are in a snapshot: what follows is the difference to that.
    pub(crate) fn saved(mut self, now: Origin) {
        self.bits.clear();
        self.tracker.lock().origin = Some(now);
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        merge(&mut self.tracker.lock().bits, std::mem::take(&mut self.bits));
    }
}

pub(crate) fn encode(runs: &[Range<u64>]) -> Vec<u8> {
    runs.iter().flat_map(|run| [run.start, run.end - run.start]).flat_map(u64::to_le_bytes).collect()
}

/// Runs within `pages` pages, from a file that is not trusted.
pub(crate) fn decode(bytes: &[u8], pages: u64) -> Result<Runs, String> {
    let (runs, rest) = bytes.as_chunks::<RUN>();
    if !rest.is_empty() {
        return Err(format!("it has {} bytes, which is no multiple of {RUN}", bytes.len()));
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let mut from = 0;
    let one = |run: &[u8; RUN]| {
        let (first, count) = (number(&run[..8]), number(&run[8..]));
        let end = first.checked_add(count).filter(|end| count > 0 && first >= from && *end <= pages);
        from =
            end.ok_or_else(|| format!("it names {count} pages from page {first} on, after page {from} of {pages}"))?;
        Ok(first..from)
    };
    runs.iter().map(one).collect()
}
