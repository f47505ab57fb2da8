//! What is known of an image's tables, and how they change: everything under the image's lock.

use std::collections::HashSet;
use std::sync::Arc;

use super::cache::{Cache, Kind};
use super::entry::{COPIED, Geometry, MOST_OFFSET, Mapping};
use super::header::Header;
use super::references::{Counted, References};
use crate::IoError;
use crate::storage::Storage;

/// Tables are read so many bytes at once when an image is opened.
const CHUNK: u64 = 1 << 20;
/// So many clusters wait to be freed at most before more are.
const MOST_PENDING: usize = 4096;

/// Clusters that hold the image's own tables: no data of a guest is ever written there, whatever the tables say.
pub(super) struct Reserved {
    known: Counted,
    since: HashSet<u64>,
}

impl Reserved {
    pub(super) fn new(known: Counted) -> Self {
        Self { known, since: HashSet::new() }
    }

    pub(super) fn insert(&mut self, cluster: u64) {
        self.since.insert(cluster);
    }

    pub(super) fn contains(&self, cluster: u64) -> bool {
        self.known.times(cluster) > 0 || self.since.contains(&cluster)
    }
}

/// The tables.
pub(super) struct Meta {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) geometry: Geometry,
    pub(super) cache: Cache,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    /// The table of reference count blocks.
    pub(super) table_offset: u64,
    pub(super) table_clusters: u64,
    pub(super) reserved: Reserved,
    /// No cluster before this one is known to be free.
    pub(super) hint: u64,
    /// The first cluster behind all that was ever used: nothing has been written from there on.
    pub(super) end: u64,
    /// Clusters that no entry in memory uses, while the file's may: they are freed when it has the new entries.
    pub(super) pending: Vec<(u64, u64)>,
    /// A thread writes tables without the lock.
    pub(super) committing: bool,
    /// The image contradicts itself: nothing more is written to it.
    pub(super) damaged: bool,
}

impl Meta {
    /// The tables of an image with that header, which takes `reserved` for tables.
    pub(super) fn new(storage: Arc<dyn Storage>, header: &Header, reserved: Reserved) -> Result<Self, IoError> {
        let geometry = header.geometry;
        let end = geometry.clusters(storage.end()?);
        Ok(Self {
            cache: Cache::new(geometry.cluster_size(), storage.alignment()),
            geometry,
            l1_offset: header.l1_offset,
            l1_entries: geometry.l1_entries(header.size),
            table_offset: header.table_offset,
            table_clusters: header.table_clusters,
            reserved,
            hint: 1,
            end,
            pending: Vec::new(),
            committing: false,
            damaged: false,
            storage,
        })
    }

    /// The clusters of an image's active tables, as far as they can be told.
    pub(super) fn tables(storage: &dyn Storage, header: &Header) -> Result<Counted, IoError> {
        let geometry = header.geometry;
        let mut found = References::default();
        found.add(0, 1, 1);
        found.add(geometry.cluster(header.snapshots_offset), u64::from(header.snapshots > 0), 1);
        let lists = [(header.l1_offset, header.l1_entries * 8), (header.table_offset, header.table_bytes())];
        for (offset, len) in lists {
            found.add(geometry.cluster(offset), geometry.clusters(len), 1);
            each_entry(storage, offset, len, |_, entry| {
                if let Ok(Some(table)) = geometry.table(entry) {
                    found.add(geometry.cluster(table), 1, 1);
                }
                Ok(())
            })?;
        }
        Ok(found.counted())
    }

    /// Whether tables should be written before more is changed.
    pub(super) fn is_full(&self) -> bool {
        self.cache.is_full() || self.pending.len() >= MOST_PENDING
    }

    /// Where the level 1 entry of a guest cluster is in the file.
    fn l1_place(&self, cluster: u64) -> Result<u64, IoError> {
        let index = cluster / self.geometry.l2_entries();
        if index >= self.l1_entries { Err(IoError::OutOfRange) } else { Ok(self.l1_offset + index * 8) }
    }

    /// Where the level 2 entry of a guest cluster is, in the table at `table`.
    fn l2_place(&self, table: u64, cluster: u64) -> u64 {
        table + cluster % self.geometry.l2_entries() * 8
    }

    /// Where a guest cluster is.
    pub(super) fn lookup(&mut self, cluster: u64) -> Result<Mapping, IoError> {
        let place = self.l1_place(cluster)?;
        let entry = self.cache.entry(&*self.storage, place, Kind::Map)?;
        let Some(table) = self.geometry.table(entry)? else { return Ok(Mapping::Unallocated) };
        let place = self.l2_place(table, cluster);
        self.geometry.mapping(self.cache.entry(&*self.storage, place, Kind::Map)?)
    }

    /// The same, if the tables are in memory.
    pub(super) fn cached(&self, cluster: u64) -> Option<Mapping> {
        let entry = self.cache.cached(self.l1_place(cluster).ok()?)?;
        let Some(table) = self.geometry.table(entry).ok()? else { return Some(Mapping::Unallocated) };
        self.geometry.mapping(self.cache.cached(self.l2_place(table, cluster))?).ok()
    }

    /// Whether a guest cluster has a level 2 table at all.
    pub(super) fn has_table(&mut self, cluster: u64) -> Result<bool, IoError> {
        let place = self.l1_place(cluster)?;
        let entry = self.cache.entry(&*self.storage, place, Kind::Map)?;
        Ok(self.geometry.table(entry)?.is_some())
    }

    /// Changes a guest cluster's level 2 entry. What the old one used waits to be freed.
    pub(super) fn set(&mut self, cluster: u64, entry: u64, old: Mapping) -> Result<(), IoError> {
        let table = self.table_to_change(cluster)?;
        let place = self.l2_place(table, cluster);
        self.cache.set_entry(&*self.storage, place, entry, Kind::Map)?;
        if let Some((first, len)) = old.clusters(&self.geometry)
            && self.geometry.mapping(entry)?.clusters(&self.geometry) != Some((first, len))
        {
            self.pending.push((first, len));
        }
        Ok(())
    }

    /// The level 2 table of a guest cluster: a new one where there is none, or where others use it too.
    fn table_to_change(&mut self, cluster: u64) -> Result<u64, IoError> {
        let place = self.l1_place(cluster)?;
        let entry = self.cache.entry(&*self.storage, place, Kind::Map)?;
        let old = self.geometry.table(entry)?;
        if let Some(table) = old
            && entry & COPIED != 0
        {
            return Ok(table);
        }
        let (new, _) = self.allocate(1)?;
        let size = self.geometry.cluster_size();
        let content = match old {
            // One that others use is never changed, so that it is in the file as it is.
            Some(table) => self.storage.bytes(table, size as usize)?,
            None => vec![0; size as usize],
        };
        let table = self.geometry.offset(new);
        // Before the level 1 table can say where it is, with the next time that all is made to last.
        if let Err(error) = self.storage.put(table, &content) {
            self.give_back(new, 1);
            return Err(error);
        }
        self.cache.forget(table, size);
        self.reserved.insert(new);
        self.cache.set_entry(&*self.storage, place, table | COPIED, Kind::Map)?;
        if let Some(table) = old {
            self.pending.push((self.geometry.cluster(table), 1));
        }
        Ok(table)
    }

    /// Where the table has the reference count block of a cluster, or `None` where the table ends before.
    pub(super) fn block_place(&self, cluster: u64) -> Option<u64> {
        let index = cluster / self.geometry.refcounts();
        (index < self.geometry.offset(self.table_clusters) / 8).then(|| self.table_offset + index * 8)
    }

    /// The reference count block of a cluster.
    pub(super) fn block(&mut self, cluster: u64) -> Result<Option<u64>, IoError> {
        let Some(place) = self.block_place(cluster) else { return Ok(None) };
        self.geometry.table(self.cache.entry(&*self.storage, place, Kind::Count)?)
    }

    /// Where in `block` a cluster's count is: the offset of eight bytes, how far it is shifted, and the bits it may have.
    pub(super) fn count_place(&self, block: u64, cluster: u64) -> (u64, u32, u64) {
        let order = self.geometry.refcount_order;
        let bit = (cluster % self.geometry.refcounts()) << order;
        let within = (bit % 64) as u32;
        // Counts of less than a byte begin at its lowest bit, larger ones are big-endian.
        let shift = if order < 3 { 56 - within / 8 * 8 + within % 8 } else { 64 - within - (1 << order) };
        (block + bit / 64 * 8, shift, self.geometry.most_refcount())
    }

    /// How often a cluster is used, by its count.
    pub(super) fn count(&mut self, cluster: u64) -> Result<u64, IoError> {
        let Some(block) = self.block(cluster)? else { return Ok(0) };
        let (place, shift, mask) = self.count_place(block, cluster);
        Ok(self.cache.entry(&*self.storage, place, Kind::Count)? >> shift & mask)
    }

    /// Changes a cluster's count, for which there is a block.
    pub(super) fn set_count(&mut self, cluster: u64, count: u64) -> Result<(), IoError> {
        let Some(block) = self.block(cluster)? else { return Err(IoError::Damaged) };
        let (place, shift, mask) = self.count_place(block, cluster);
        let others = self.cache.entry(&*self.storage, place, Kind::Count)? & !(mask << shift);
        if count > mask {
            return Err(IoError::Damaged);
        }
        self.cache.set_entry(&*self.storage, place, others | count << shift, Kind::Count)
    }

    /// Takes back what was allocated and has not been used.
    pub(super) fn give_back(&mut self, first: u64, len: u64) {
        for cluster in first..first + len {
            // What can't be freed is lost until somebody looks for it.
            if self.set_count(cluster, 0).is_ok() {
                self.hint = self.hint.min(cluster);
            }
        }
    }

    /// Frees what `pending` says, which no entry of the file uses any more.
    pub(super) fn free(&mut self, pending: &[(u64, u64)]) -> Result<(), IoError> {
        let mut unused = References::default();
        for cluster in pending.iter().flat_map(|(first, len)| *first..first + len) {
            match self.count(cluster)? {
                0 => return Err(IoError::Damaged),
                count => self.set_count(cluster, count - 1)?,
            }
            if self.count(cluster)? == 0 {
                self.cache.forget(self.geometry.offset(cluster), self.geometry.cluster_size());
                self.reserved.since.remove(&cluster);
                self.hint = self.hint.min(cluster);
                unused.add(cluster, 1, 1);
            }
        }
        let unused = unused.counted();
        for (first, end) in unused.runs() {
            self.storage.punch(self.geometry.offset(first), self.geometry.offset(end - first));
        }
        Ok(())
    }

    /// Says that the image contradicts itself, once, there and here.
    pub(super) fn damage(&mut self) {
        if !std::mem::replace(&mut self.damaged, true) && self.geometry.version >= 3 {
            // It is worth the attempt, and no more.
            let _ = Header::set_damaged(&*self.storage);
        }
    }
}

/// Calls `act` with the index and the value of each entry of a list of `len` bytes at `offset`.
pub(super) fn each_entry(
    storage: &dyn Storage,
    offset: u64,
    len: u64,
    mut act: impl FnMut(u64, u64) -> Result<(), IoError>,
) -> Result<(), IoError> {
    if offset > MOST_OFFSET {
        return Err(IoError::Damaged);
    }
    for start in (0..len).step_by(CHUNK as usize) {
        let bytes = storage.bytes(offset + start, (len - start).min(CHUNK) as usize)?;
        for (index, entry) in (start / 8..).zip(bytes.chunks_exact(8)) {
            match u64::from_be_bytes(entry.try_into().unwrap_or_default()) {
                0 => {}
                entry => act(index, entry)?,
            }
        }
    }
    Ok(())
}
