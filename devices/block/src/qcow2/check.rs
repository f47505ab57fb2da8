//! Whether an image's tables agree with one another, and how they are made to.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::entry::{COPIED, Geometry, Mapping};
use super::header::Header;
use super::image::Image;
use super::layer::{self, Layer, Purpose};
use super::meta::{Meta, Reserved, each_entry};
use super::references::{Counted, References};
use super::snapshot::Snapshots;
use super::{ImageFormat, cache::Kind};
use crate::storage::Storage;
use crate::{BlockError, FileOptions, IoError};

/// Entries of all level 1 tables together that are looked at: those of 4 TiB in small clusters, or of many snapshots.
const MOST_L1_ENTRIES: u64 = 8 << 20;
/// Contradictions that are described.
const MOST_MESSAGES: usize = 20;

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Contradictions by which data is lost, or will be when the image is written.
    pub errors: u64,
    /// Clusters that nothing uses, and that are not free.
    pub leaks: u64,
    /// Clusters that are used.
    pub used: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// The first errors, in words.
    pub messages: Vec<String>,
}

/// Checks the qcow2 image at `path`, and mends its reference counts if `repair`. The images behind it are not looked at. Answers what was found,
/// and what is left where something was mended.
///
/// # Errors
/// [`BlockError::Host`], [`BlockError::Locked`] where somebody uses it, [`BlockError::Unusable`] where there are no tables to look at.
pub fn check(path: &Path, repair: bool) -> Result<(CheckReport, Option<CheckReport>), BlockError> {
    let unusable = |reason: String| BlockError::Unusable { path: path.to_owned(), reason };
    let failed = |error: IoError| match error {
        IoError::Damaged => unusable("its tables are too damaged, or too many, to be checked".to_owned()),
        error => unusable(format!("it can't be checked: {error}")),
    };
    let options = FileOptions { read_only: !repair, ..FileOptions::default() };
    let Layer::Qcow2(image) = layer::open(path, ImageFormat::Qcow2, &options, Purpose::Check)? else {
        return Err(unusable("it is raw".to_owned()));
    };
    check_image(&image, repair).map_err(failed)
}

pub(super) fn check_image(image: &Image, repair: bool) -> Result<(CheckReport, Option<CheckReport>), IoError> {
    let tables = Tables::read(&image.storage, &image.header)?;
    let before = tables.report()?;
    let marked = image.header.dirty || image.header.corrupt;
    if !repair || before.errors == 0 && before.leaks == 0 && !marked {
        return Ok((before, None));
    }
    tables.mend(&image.header)?;
    let after = Tables::read(&image.storage, &image.header.with_table(&*image.storage)?)?.report()?;
    if after.errors == 0 && image.header.geometry.version >= 3 {
        Header::set_mended(&*image.storage)?;
    }
    image.storage.sync()?;
    Ok((before, Some(after)))
}

/// Two tables that disagree.
enum Wrong {
    /// A cluster's count.
    Count { cluster: u64, stored: u64, counted: u64 },
    /// There is no block for the counts of `len` used clusters.
    NoBlock { cluster: u64, len: u64 },
    /// The block with that index is nowhere, or twice.
    Block { index: u64 },
    /// The mark of an entry at `place`.
    Mark { place: u64, entry: u64 },
}

/// What all tables but those of counts say.
struct Tables {
    storage: Arc<dyn Storage>,
    header: Header,
    geometry: Geometry,
    /// The file's clusters.
    end: u64,
    /// Level 2 tables of the active state.
    active: Vec<u64>,
    counted: Counted,
    errors: u64,
    messages: Vec<String>,
}

impl Tables {
    /// Follows all tables.
    fn read(storage: &Arc<dyn Storage>, header: &Header) -> Result<Self, IoError> {
        let geometry = header.geometry;
        let mut tables = Self {
            end: geometry.clusters(storage.end()?),
            storage: storage.clone(),
            header: header.clone(),
            geometry,
            active: Vec::new(),
            counted: Counted::default(),
            errors: 0,
            messages: Vec::new(),
        };
        let mut found = References::default();
        found.add(0, 1, 1);
        found.add(geometry.cluster(header.table_offset), header.table_clusters, 1);
        let storage = storage.clone();
        each_entry(&*storage, header.table_offset, header.table_bytes(), |_, entry| {
            if let Some(block) = tables.place(entry) {
                found.add(geometry.cluster(block), 1, 1);
            }
            Ok(())
        })?;
        let all = tables.level_two(&mut found)?;
        for same in all.chunk_by(|one, other| one == other) {
            tables.data(same[0], same.len() as u64, &mut found)?;
        }
        tables.counted = found.counted();
        Ok(tables)
    }

    /// The level 2 tables of the active state and of all snapshots, in order, each as often as it is used.
    fn level_two(&mut self, found: &mut References) -> Result<Vec<u64>, IoError> {
        let (storage, header) = (self.storage.clone(), self.header.clone());
        let mut lists = vec![(header.l1_offset, header.l1_entries, true)];
        let mut end = header.snapshots_offset;
        for snapshot in Snapshots::new(&*storage, &header) {
            match snapshot {
                Ok(snapshot) => {
                    lists.push((snapshot.l1_offset, snapshot.l1_entries, false));
                    end = snapshot.end;
                }
                Err(IoError::Damaged) => self.say(|| "a snapshot's entry is none".to_owned()),
                Err(error) => return Err(error),
            }
        }
        let first = self.geometry.cluster(header.snapshots_offset);
        found.add(first, self.geometry.clusters(end) - first, 1);
        if lists.iter().map(|(_, entries, _)| entries).sum::<u64>() > MOST_L1_ENTRIES {
            return Err(IoError::Damaged);
        }
        let mut all = Vec::new();
        for (offset, entries, active) in lists {
            if self.geometry.within(offset) != 0 {
                self.say(|| format!("a level 1 table is at {offset:#x}, which is no place of a cluster"));
                continue;
            }
            found.add(self.geometry.cluster(offset), self.geometry.clusters(entries * 8), 1);
            each_entry(&*storage, offset, entries * 8, |index, entry| {
                match self.place(entry) {
                    Some(table) => {
                        all.push(table);
                        found.add(self.geometry.cluster(table), 1, 1);
                        if active {
                            self.active.push(table);
                        }
                    }
                    None => self.say(|| format!("level 1 entry {index} is {entry:#x}, which is no place in the file")),
                }
                Ok(())
            })?;
        }
        all.sort_unstable();
        self.active.sort_unstable();
        self.active.dedup();
        Ok(all)
    }

    /// The clusters that the level 2 table at `table` uses, `times` times.
    fn data(&mut self, table: u64, times: u64, found: &mut References) -> Result<(), IoError> {
        let (storage, geometry) = (self.storage.clone(), self.geometry);
        each_entry(&*storage, table, geometry.cluster_size(), |index, entry| {
            match geometry.mapping(entry).map(|mapping| mapping.clusters(&geometry)) {
                Ok(None) => {}
                // The last of a compressed cluster's sectors need not be there.
                Ok(Some((first, len))) if first < self.end => found.add(first, len.min(self.end - first), times),
                _ => self.say(|| {
                    format!(
                        "entry {index} of the level 2 table at {table:#x} is {entry:#x}, which is no place in the file"
                    )
                }),
            }
            Ok(())
        })
    }

    /// The offset of a table in the file, by an entry.
    fn place(&self, entry: u64) -> Option<u64> {
        let place = self.geometry.table(entry).ok().flatten();
        place.filter(|offset| self.geometry.cluster(*offset) < self.end)
    }

    fn say(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        if self.messages.len() < MOST_MESSAGES {
            self.messages.push(text());
        }
    }

    /// What is wrong.
    fn report(&self) -> Result<CheckReport, IoError> {
        let mut report = CheckReport {
            errors: self.errors,
            leaks: 0,
            used: self.counted.used(),
            cluster_size: self.geometry.cluster_size(),
            messages: self.messages.clone(),
        };
        self.compare(|wrong| {
            let (errors, text) = match wrong {
                Wrong::Count { stored, counted, .. } if stored > counted => {
                    report.leaks += 1;
                    return Ok(());
                }
                Wrong::Count { cluster, stored, counted } => {
                    (1, format!("cluster {cluster:#x} is used {counted} times, and its count is {stored}"))
                }
                Wrong::NoBlock { cluster, len } => (len, format!("{len} clusters from {cluster:#x} on have no counts")),
                Wrong::Block { index } => (1, format!("the block {index} of counts is at no place of its own")),
                Wrong::Mark { place, entry } => (
                    1,
                    format!(
                        "the entry {entry:#x} at {place:#x} is marked wrongly as one of which there are others, or not"
                    ),
                ),
            };
            report.errors += errors;
            if report.messages.len() < MOST_MESSAGES {
                report.messages.push(text);
            }
            Ok(())
        })?;
        Ok(report)
    }

    /// Calls `act` with all that is wrong with counts, and then with marks.
    fn compare(&self, mut act: impl FnMut(Wrong) -> Result<(), IoError>) -> Result<(), IoError> {
        let (per_block, geometry) = (self.geometry.refcounts(), self.geometry);
        let table = self.storage.bytes(self.header.table_offset, self.header.table_bytes() as usize)?;
        let mut seen = HashSet::new();
        let mut last = 0;
        for (index, entry) in (0_u64..).zip(table.chunks_exact(8)) {
            let entry = u64::from_be_bytes(entry.try_into().unwrap_or_default());
            let range = index * per_block..(index + 1) * per_block;
            last = range.end;
            let place = self.place(entry).filter(|place| !seen.contains(place));
            if entry != 0 && place.is_none() {
                act(Wrong::Block { index })?;
            }
            let Some(block) = place else {
                self.uncounted(range.start, range.end, &mut act)?;
                continue;
            };
            seen.insert(block);
            let bytes = self.storage.bytes(block, geometry.cluster_size() as usize)?;
            for (place, cluster) in (0..).zip(range) {
                let (stored, counted) = (stored(&bytes, place, geometry.refcount_order), self.counted.times(cluster));
                if stored != counted && !(stored > counted && self.header.bitmaps) {
                    act(Wrong::Count { cluster, stored, counted })?;
                }
            }
        }
        self.uncounted(last, u64::MAX, &mut act)?;
        self.marks(act)
    }

    /// Used clusters that no block counts.
    fn uncounted(
        &self,
        from: u64,
        end: u64,
        act: &mut impl FnMut(Wrong) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let runs = self.counted.runs().map(|(first, last)| (first.max(from), last.min(end)));
        for (first, last) in runs.filter(|(first, last)| first < last) {
            act(Wrong::NoBlock { cluster: first, len: last - first })?;
        }
        Ok(())
    }

    /// An entry of the active state is marked where its cluster is used once, and only there.
    fn marks(&self, mut act: impl FnMut(Wrong) -> Result<(), IoError>) -> Result<(), IoError> {
        let (header, geometry) = (&self.header, self.geometry);
        let mut look = |place: u64, entry: u64, host: Option<u64>| match host {
            Some(host) if (self.counted.times(geometry.cluster(host)) == 1) != (entry & COPIED != 0) => {
                act(Wrong::Mark { place, entry })
            }
            _ => Ok(()),
        };
        each_entry(&*self.storage, header.l1_offset, header.l1_entries * 8, |index, entry| {
            look(header.l1_offset + index * 8, entry, self.place(entry))
        })?;
        for table in &self.active {
            each_entry(&*self.storage, *table, geometry.cluster_size(), |index, entry| {
                let host = match geometry.mapping(entry) {
                    Ok(Mapping::Data { host, .. } | Mapping::Zero(Some((host, _)))) => Some(host),
                    _ => None,
                };
                look(table + index * 8, entry, host.filter(|host| geometry.cluster(*host) < self.end))
            })?;
        }
        Ok(())
    }

    /// Makes counts and marks what they ought to be.
    fn mend(&self, header: &Header) -> Result<(), IoError> {
        let mut used = References::default();
        self.counted.runs().for_each(|(first, end)| used.add(first, end - first, 1));
        let mut meta = Meta::new(self.storage.clone(), header, Reserved::new(used.counted()))?;
        let most = self.geometry.most_refcount();
        self.compare(|wrong| match wrong {
            Wrong::Count { cluster, counted, .. } => meta.set_count(cluster, counted.min(most)),
            Wrong::NoBlock { cluster, len } => (cluster..cluster + len).try_for_each(|cluster| {
                meta.ensure_block(cluster)?;
                meta.set_count(cluster, self.counted.times(cluster).min(most))
            }),
            Wrong::Block { index } => {
                meta.cache.set_entry(&*self.storage, header.table_offset + index * 8, 0, Kind::Count)
            }
            Wrong::Mark { place, entry } => meta.cache.set_entry(&*self.storage, place, entry ^ COPIED, Kind::Map),
        })?;
        let pending = std::mem::take(&mut meta.pending);
        meta.free(&pending)?;
        meta.cache.write(&*self.storage, Kind::Count)?;
        self.storage.sync()?;
        meta.cache.write(&*self.storage, Kind::Map)?;
        self.storage.sync()
    }
}

/// The count with that number in a block.
fn stored(block: &[u8], number: u64, order: u32) -> u64 {
    let bit = number << order;
    let bytes = block.get((bit / 8) as usize..).unwrap_or_default();
    match order {
        0..3 => bytes.first().map_or(0, |byte| u64::from(*byte) >> (bit % 8) & ((1 << (1 << order)) - 1)),
        _ => bytes.iter().take(1 << (order - 3)).fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    }
}
