//! An image in use: reads, writes, zeroes and flushes, by calls that wait, from any number of threads.
//!
//! Tables change in memory and are written by [`Image::flush`], in an order by which a failing host leaves a sound image behind at any moment,
//! with lost clusters at worst: data and grown counts last before entries that need them are written, entries last before counts shrink, and
//! what is freed is used again only then. While data moves, a request has pinned its clusters and does not hold the lock.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::{self, Kind};
use super::compressed::Compressed;
use super::entry::{Geometry, Mapping};
use super::header::Header;
use super::layer::Layer;
use super::meta::{Meta, Reserved};
use super::pins::{Pins, Use};
use super::references::Counted;
use crate::storage::Storage;
use crate::{BlockError, Buffer, IoError};

/// Clusters of zeroes that are entered under one hold of the lock.
const ZEROES_AT_ONCE: u64 = 4096;
/// Zeroes that are written at once.
const ZERO_BYTES: u64 = 1 << 20;

/// A qcow2 image and what is behind it.
pub(crate) struct Image {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) header: Header,
    geometry: Geometry,
    pub(super) backing: Option<Arc<Layer>>,
    read_only: bool,
    /// Nobody else writes to it.
    ours: AtomicBool,
    meta: Mutex<Meta>,
    pins: Pins,
    /// Held by whoever writes tables.
    commit: Mutex<()>,
    compressed: Compressed,
}

/// Where bytes of the disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Host(u64),
    Compressed {
        offset: u64,
        len: u64,
    },
    Zeroes,
    /// Where the layer below says.
    Below,
}

/// Clusters of the file for guest clusters that are written for the first time.
struct Fresh {
    /// In the file.
    host: u64,
    /// What the guest's clusters are until then.
    old: Vec<Mapping>,
    /// The file reads as zeroes there.
    hole: bool,
    /// They have been allocated.
    taken: bool,
}

impl Image {
    /// The image in `storage`, which `header` is of, before `backing`. It is `ours` to write, or will be when it is [held](Self::hold).
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        mut header: Header,
        backing: Option<Arc<Layer>>,
        read_only: bool,
        ours: bool,
    ) -> Result<Self, IoError> {
        let reserved = if read_only { Counted::default() } else { Meta::tables(&*storage, &header)? };
        if !read_only && ours {
            header.clear_automatic(&*storage)?;
        }
        let meta = Meta::new(storage.clone(), &header, Reserved::new(reserved))?;
        Ok(Self {
            geometry: header.geometry,
            header,
            storage,
            backing,
            read_only,
            ours: AtomicBool::new(ours),
            meta: Mutex::new(meta),
            pins: Pins::default(),
            commit: Mutex::new(()),
            compressed: Compressed::default(),
        })
    }

    /// Takes or gives the locks of the image and of what is behind it.
    pub(super) fn hold(&self, held: bool) -> Result<(), BlockError> {
        // It is another's from before its lock is free, and ours from after that is taken.
        if !held {
            self.ours.store(false, Ordering::Release);
        }
        self.storage.hold(held)?;
        if held {
            self.ours.store(true, Ordering::Release);
        }
        match &self.backing {
            Some(layer) => layer.hold(held),
            None => Ok(()),
        }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    /// Bytes of a cluster.
    pub(crate) fn cluster_size(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// Whether what is discarded reads as zeroes: version 2 has no word for it where a backing file would show.
    pub(crate) fn discards(&self) -> bool {
        !self.read_only && (self.geometry.version >= 3 || self.backing.is_none())
    }

    pub(super) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest clusters that a range touches.
    fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        self.geometry.cluster(offset)..self.geometry.clusters(offset + len)
    }

    /// Where the bytes from `offset` on are, and how many of up to `most` follow there, by what `look` knows of clusters.
    fn extent<E>(
        &self,
        offset: u64,
        most: u64,
        mut look: impl FnMut(u64) -> Result<Mapping, E>,
    ) -> Result<(Place, u64), E> {
        let clusters = self.clusters(offset, most);
        let first = self.place(look(clusters.start)?, offset);
        // A table's worth at most, so that the lock is not held for long.
        let end = clusters.end.min(clusters.start + self.geometry.l2_entries());
        let mut next = clusters.start + 1;
        while next < end && !matches!(first, Place::Compressed { .. }) {
            let start = self.geometry.offset(next);
            let follows = match (first, self.place(look(next)?, start)) {
                (Place::Host(host), Place::Host(other)) => host + (start - offset) == other,
                (place, other) => place == other,
            };
            if !follows {
                break;
            }
            next += 1;
        }
        Ok((first, (self.geometry.offset(next) - offset).min(most)))
    }

    fn place(&self, mapping: Mapping, offset: u64) -> Place {
        match mapping {
            Mapping::Data { host, .. } => Place::Host(host + self.geometry.within(offset)),
            Mapping::Compressed { offset, len } => Place::Compressed { offset, len },
            Mapping::Unallocated if self.backing.is_some() => Place::Below,
            Mapping::Zero(_) | Mapping::Unallocated => Place::Zeroes,
        }
    }

    /// Whether the bytes from `offset` on are known to be zeroes without reading them, and how many of up to `most` are alike.
    pub(crate) fn zeroes(&self, offset: u64, most: u64) -> Result<(bool, u64), IoError> {
        let (place, len) = {
            let mut meta = self.meta();
            self.extent(offset, most, |cluster| meta.lookup(cluster))?
        };
        match (place, &self.backing) {
            (Place::Zeroes, _) => Ok((true, len)),
            (Place::Below, Some(layer)) => layer.zeroes(offset, len),
            _ => Ok((false, len)),
        }
    }

    /// Fills `len` bytes of `buffer` from `at` on with those of the disk from `offset` on.
    pub(crate) fn read(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let _pin = self.pins.pin(self.clusters(offset, len as u64), Use::Shared);
        let mut done = 0;
        while done < len {
            let offset = offset + done as u64;
            let (place, part) = {
                let mut meta = self.meta();
                self.extent(offset, (len - done) as u64, |cluster| meta.lookup(cluster))?
            };
            self.fetch(place, offset, buffer, at + done, part as usize)?;
            done += part as usize;
        }
        Ok(())
    }

    /// Reads bytes whose place is known.
    fn fetch(&self, place: Place, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        match (place, &self.backing) {
            (Place::Host(host), _) => self.storage.read(host, buffer, at, len),
            (Place::Below, Some(layer)) => layer.read(offset, buffer, at, len),
            (Place::Zeroes | Place::Below, _) => {
                buffer.clear_part(at, len);
                Ok(())
            }
            (Place::Compressed { offset: host, len: most }, _) => {
                let cluster = self.compressed.get(&*self.storage, host, most, self.cluster_size())?;
                let within = self.geometry.within(offset) as usize;
                buffer.copy_in(at, cluster.get(within..within + len).ok_or(IoError::Damaged)?);
                Ok(())
            }
        }
    }

    /// Reads if all of it can be read without waiting; says whether it was.
    pub(crate) fn read_now(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> bool {
        let moved = |place, offset, at, part| match (place, &self.backing) {
            (Place::Host(host), _) => self.storage.read_now(host, buffer, at, part),
            (Place::Below, Some(layer)) => layer.read_now(offset, buffer, at, part),
            (Place::Compressed { .. }, _) => false,
            (Place::Zeroes | Place::Below, _) => {
                buffer.clear_part(at, part);
                true
            }
        };
        self.each_now(offset, at, len, |_, mapping| Some(mapping), moved)
    }

    /// Writes if all of it is there already and goes into the page cache; says whether it was.
    pub(crate) fn write_now(&self, offset: u64, buffer: &Buffer, len: usize) -> bool {
        let may = |meta: &Meta, mapping: Mapping| {
            let host = mapping.in_place().filter(|_| !meta.damaged)?;
            (!meta.reserved.contains(self.geometry.cluster(host))).then_some(mapping)
        };
        let moved = |place, _, at, part| match place {
            Place::Host(host) => self.storage.write(host, buffer, at, part).is_ok(),
            _ => false,
        };
        self.each_now(offset, 0, len, may, moved)
    }

    /// Moves piece by piece while nothing has to be waited for; says whether it came to the end.
    fn each_now(
        &self,
        offset: u64,
        at: usize,
        len: usize,
        may: impl Fn(&Meta, Mapping) -> Option<Mapping>,
        mut moved: impl FnMut(Place, u64, usize, usize) -> bool,
    ) -> bool {
        let Some(_pin) = self.pins.try_pin(self.clusters(offset, len as u64), Use::Shared) else { return false };
        let mut done = 0;
        while done < len {
            let offset = offset + done as u64;
            let found = {
                let Ok(meta) = self.meta.try_lock() else { return false };
                let look = |cluster| meta.cached(cluster).and_then(|mapping| may(&meta, mapping)).ok_or(());
                self.extent(offset, (len - done) as u64, look)
            };
            match found {
                Ok((place, part)) if moved(place, offset, at + done, part as usize) => done += part as usize,
                _ => return false,
            }
        }
        true
    }

    /// Writes `len` bytes of `buffer` from `at` on to the disk from `offset` on.
    pub(crate) fn write(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let mut done = 0;
        while done < len {
            let (offset, at, left) = (offset + done as u64, at + done, len - done);
            let mut part = self.write_in_place(offset, buffer, at, left)?;
            if part == 0 {
                part = self.write_elsewhere(offset, buffer, at, left)?;
            }
            done += part;
        }
        Ok(())
    }

    /// The tables, for a change.
    fn to_change(&self) -> Result<MutexGuard<'_, Meta>, IoError> {
        let meta = self.meta();
        if meta.damaged { Err(IoError::Damaged) } else { Ok(meta) }
    }

    /// Keeps what was found to be a contradiction from doing more harm.
    fn noted<T>(&self, result: Result<T, IoError>) -> Result<T, IoError> {
        if matches!(result, Err(IoError::Damaged)) && !self.read_only {
            self.meta().damage();
        }
        result
    }

    /// Writes what is in clusters of the guest's own from `offset` on; says how much that was.
    fn write_in_place(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<usize, IoError> {
        let _pin = self.pins.pin(self.clusters(offset, len as u64), Use::Shared);
        let found = {
            let mut meta = self.to_change()?;
            let mut until = None;
            let found = self.extent(offset, len as u64, |cluster| {
                let mapping = meta.lookup(cluster)?;
                let reserved =
                    mapping.in_place().is_some_and(|host| meta.reserved.contains(self.geometry.cluster(host)));
                if reserved {
                    return Err(IoError::Damaged);
                }
                if mapping.in_place().is_none() {
                    until.get_or_insert(cluster);
                }
                Ok(mapping)
            });
            found.map(|(place, part)| {
                let end = until.map_or(u64::MAX, |cluster| self.geometry.offset(cluster));
                (place, part.min(end.saturating_sub(offset)) as usize)
            })
        };
        match self.noted(found)? {
            (Place::Host(host), part) if part > 0 => {
                self.storage.write(host, buffer, at, part)?;
                Ok(part)
            }
            _ => Ok(0),
        }
    }

    /// Writes to new clusters, with what was around it, and enters them. Says how much that was; nothing where another has come before.
    fn write_elsewhere(&self, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<usize, IoError> {
        self.make_room()?;
        let first = self.geometry.cluster(offset);
        let table_end = (first / self.geometry.l2_entries() + 1) * self.geometry.l2_entries();
        let clusters = first..self.clusters(offset, len as u64).end.min(table_end);
        let _pin = self.pins.pin(clusters.clone(), Use::Alone);
        let found = self.to_change().and_then(|mut meta| self.fresh(&mut meta, clusters));
        let Some(fresh) = self.noted(found)? else { return Ok(0) };
        let end = self.geometry.offset(first + fresh.old.len() as u64);
        let part = (end - offset).min(len as u64) as usize;
        let written = self.write_around(&fresh, offset, buffer, at, part);
        let mut entered = 0;
        let result = written.and_then(|()| {
            let mut meta = self.to_change()?;
            for (index, old) in (0..).zip(&fresh.old) {
                meta.set(first + index, Mapping::data(fresh.host + self.geometry.offset(index)), *old)?;
                entered = index + 1;
            }
            Ok(part)
        });
        if result.is_err() && fresh.taken {
            let host = self.geometry.cluster(fresh.host);
            self.meta().give_back(host + entered, fresh.old.len() as u64 - entered);
        }
        self.noted(result)
    }

    /// Clusters of the file for the first of `clusters` and those after it that need some, or `None` if the first one has its own.
    fn fresh(&self, meta: &mut Meta, clusters: Range<u64>) -> Result<Option<Fresh>, IoError> {
        let mut old = Vec::new();
        for cluster in clusters {
            match meta.lookup(cluster)? {
                mapping if mapping.in_place().is_some() => break,
                // A cluster that is kept for it.
                mapping @ Mapping::Zero(Some((host, true))) => {
                    if old.is_empty() {
                        if meta.reserved.contains(self.geometry.cluster(host)) {
                            return Err(IoError::Damaged);
                        }
                        return Ok(Some(Fresh { host, old: vec![mapping], hole: false, taken: false }));
                    }
                    break;
                }
                mapping => old.push(mapping),
            }
        }
        if old.is_empty() {
            return Ok(None);
        }
        let end = meta.end;
        let (host, count) = meta.allocate(old.len() as u64)?;
        old.truncate(count as usize);
        Ok(Some(Fresh { host: self.geometry.offset(host), old, hole: host >= end, taken: true }))
    }

    /// Writes to new clusters, and around it what else the guest's clusters hold.
    fn write_around(&self, fresh: &Fresh, offset: u64, buffer: &Buffer, at: usize, len: usize) -> Result<(), IoError> {
        let head = self.geometry.within(offset);
        self.fill(fresh, fresh.old.first(), offset - head, fresh.host, head)?;
        self.storage.write(fresh.host + head, buffer, at, len)?;
        let end = head + len as u64;
        let tail = self.geometry.clusters(end) * self.cluster_size() - end;
        self.fill(fresh, fresh.old.last(), offset - head + end, fresh.host + end, tail)
    }

    /// Copies what the guest has at `offset`, by its old entry, to `host`.
    fn fill(&self, fresh: &Fresh, old: Option<&Mapping>, offset: u64, host: u64, len: u64) -> Result<(), IoError> {
        let Some(old) = old.filter(|_| len > 0) else { return Ok(()) };
        let place = self.place(*old, offset);
        if place == Place::Zeroes && fresh.hole {
            return Ok(());
        }
        let buffer = Buffer::zeroed(len as usize);
        self.fetch(place, offset, &buffer, 0, buffer.len())?;
        self.storage.write(host, &buffer, 0, buffer.len())
    }

    /// Makes `len` bytes from `offset` on zeroes; their space may be given back if `discard`.
    pub(crate) fn zero(&self, offset: u64, len: u64, discard: bool) -> Result<(), IoError> {
        let (size, end) = (self.cluster_size(), offset + len);
        // Entries can't say it where there are none for zeroes: version 2, and a backing file or space to be kept.
        let by_entries = self.geometry.version >= 3 || discard && self.backing.is_none();
        let mut at = offset;
        while at < end {
            let (within, left) = (self.geometry.within(at), end - at);
            // The disk may end within its last cluster.
            let whole = within == 0 && (left >= size || end == self.size());
            at += if by_entries && whole {
                let clusters = if end == self.size() { self.geometry.clusters(left) } else { left / size };
                (self.zero_clusters(self.geometry.cluster(at), clusters, discard)? * size).min(left)
            } else {
                let most = if by_entries { size - within } else { ZERO_BYTES };
                let (zeroes, part) = self.zeroes(at, left.min(most))?;
                if !zeroes {
                    self.write(at, &Buffer::zeroed(part as usize), 0, part as usize)?;
                }
                part
            };
        }
        Ok(())
    }

    /// Makes clusters from `first` on zeroes by their entries; says how many of `count` that was.
    fn zero_clusters(&self, first: u64, count: u64, discard: bool) -> Result<u64, IoError> {
        self.make_room()?;
        let entries = self.geometry.l2_entries();
        let end = (first + count).min((first / entries + 1) * entries).min(first + ZEROES_AT_ONCE);
        let _pin = self.pins.pin(first..end, Use::Alone);
        let result = self.to_change().and_then(|mut meta| {
            if self.backing.is_none() && !meta.has_table(first)? {
                return Ok(());
            }
            (first..end).try_for_each(|cluster| self.zero_cluster(&mut meta, cluster, discard))
        });
        self.noted(result)?;
        Ok(end - first)
    }

    fn zero_cluster(&self, meta: &mut Meta, cluster: u64, discard: bool) -> Result<(), IoError> {
        let old = meta.lookup(cluster)?;
        let entry = match old {
            Mapping::Data { host, copied: true } if !discard => Mapping::zero(Some(host)),
            Mapping::Zero(_) if !discard => return Ok(()),
            Mapping::Zero(None) => return Ok(()),
            Mapping::Unallocated if self.backing.is_none() => return Ok(()),
            _ if self.backing.is_none() => 0,
            _ => Mapping::zero(None),
        };
        meta.set(cluster, entry, old)
    }

    /// Writes tables before more of them change, if many wait.
    fn make_room(&self) -> Result<(), IoError> {
        let full = self.meta().is_full();
        if full { self.write_tables() } else { Ok(()) }
    }

    /// Returns when the medium has all that was written before.
    pub(crate) fn flush(&self) -> Result<(), IoError> {
        if self.read_only {
            return Ok(());
        }
        let clean = {
            let meta = self.meta();
            let waits = meta.cache.is_dirty(Kind::Map) || meta.cache.is_dirty(Kind::Count) || !meta.pending.is_empty();
            !waits && !meta.committing
        };
        if clean { self.storage.sync() } else { self.write_tables() }
    }

    /// Writes the tables as they are now, and frees what they no longer use.
    fn write_tables(&self) -> Result<(), IoError> {
        let _alone = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        let (leaving, pending) = {
            let mut meta = self.to_change()?;
            let storage = meta.storage.clone();
            meta.cache.write(&*storage, Kind::Count)?;
            meta.committing = true;
            (meta.cache.leave(Kind::Map), std::mem::take(&mut meta.pending))
        };
        let result = self.storage.sync().and_then(|()| {
            if leaving.is_empty() {
                return Ok(());
            }
            cache::put(&*self.storage, &leaving)?;
            self.storage.sync()
        });
        let mut meta = self.meta();
        meta.committing = false;
        meta.cache.arrived(&leaving, result.is_ok());
        let freed = match result {
            Ok(()) => meta.free(&pending),
            Err(error) => {
                meta.pending.extend(pending);
                Err(error)
            }
        };
        drop(meta);
        self.noted(freed)
    }

    /// Writes all that waits to be.
    pub(crate) fn close(&self) -> Result<(), IoError> {
        // What the first time frees has its counts written by the second.
        self.flush()?;
        self.flush()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let damaged = self.meta().damaged;
        if !self.read_only
            && !damaged
            && self.ours.load(Ordering::Acquire)
            && let Err(error) = self.close()
        {
            tracing::error!("what a disk was last told can't be written to its image: {error}");
        }
    }
}
