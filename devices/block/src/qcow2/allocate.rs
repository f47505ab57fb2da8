//! Where new clusters come from.

use super::cache::Kind;
use super::header::Header;
use super::meta::Meta;
use crate::IoError;

/// Counts that one allocation looks at in search of free clusters, before it takes those behind the end.
const SEARCH: u64 = 1 << 16;
/// What QEMU takes as a table of reference count blocks at most.
const MOST_TABLE: u64 = 8 << 20;

impl Meta {
    /// Takes up to `wanted` free clusters that lie together, with a count of one each; says the first and how many.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<(u64, u64), IoError> {
        let mut left = SEARCH;
        while left > 0 && self.hint < self.end {
            let from = self.hint;
            self.hint += 1;
            left -= 1;
            if self.is_free(from)? {
                return self.take(from, wanted);
            }
        }
        // Nothing is behind the end: what its count says is wrong, or it is a table's.
        loop {
            let from = self.end;
            self.end += 1;
            if self.is_free(from)? {
                return self.take(from, wanted);
            }
            left += 1;
            if left > 2 * SEARCH {
                return Err(IoError::Damaged);
            }
        }
    }

    /// Whether a cluster can be taken. A block for its count is made if there is none, which may take the cluster.
    fn is_free(&mut self, cluster: u64) -> Result<bool, IoError> {
        self.ensure_block(cluster)?;
        Ok(!self.reserved.contains(cluster) && self.count(cluster)? == 0)
    }

    fn take(&mut self, first: u64, wanted: u64) -> Result<(u64, u64), IoError> {
        let mut taken = 0;
        while taken < wanted {
            let cluster = first + taken;
            // The first one has been looked at. The others share its block, so that none is made in their midst.
            let alike = cluster / self.geometry.refcounts() == first / self.geometry.refcounts();
            if taken > 0 && !(alike && !self.reserved.contains(cluster) && self.count(cluster)? == 0) {
                break;
            }
            self.set_count(cluster, 1)?;
            taken += 1;
        }
        self.end = self.end.max(first + taken);
        Ok((first, taken))
    }

    /// Makes the block that counts `cluster`, if there is none, within the clusters that it counts.
    pub(super) fn ensure_block(&mut self, cluster: u64) -> Result<(), IoError> {
        if self.block_place(cluster).is_none() {
            self.grow_table(cluster)?;
        }
        let Some(place) = self.block_place(cluster) else { return Err(IoError::NoSpace) };
        if self.geometry.table(self.cache.entry(&*self.storage, place, Kind::Count)?)?.is_some() {
            return Ok(());
        }
        let per_block = self.geometry.refcounts();
        let first = cluster / per_block * per_block;
        let free = (first..first + per_block).find(|cluster| !self.reserved.contains(*cluster));
        let Some(own) = free else { return Err(IoError::Damaged) };
        self.put_block(own, &[own])?;
        // The block lasts before the table says where it is: a lost one would count what is used as free.
        self.storage.sync()?;
        let offset = self.geometry.offset(own);
        self.cache.set_entry(&*self.storage, place, offset, Kind::Count)?;
        self.cache.write(&*self.storage, Kind::Count)?;
        self.reserved.insert(own);
        self.end = self.end.max(own + 1);
        Ok(())
    }

    /// Writes a block, at the cluster `at`, that counts each of `used` once.
    fn put_block(&mut self, at: u64, used: &[u64]) -> Result<(), IoError> {
        let size = self.geometry.cluster_size();
        let offset = self.geometry.offset(at);
        let mut bytes = vec![0; size as usize];
        for cluster in used {
            let (place, shift, _) = self.count_place(0, *cluster);
            let place = place as usize;
            if let Some(bytes) = bytes.get_mut(place..place + 8) {
                let others = u64::from_be_bytes(<[u8; 8]>::try_from(&*bytes).unwrap_or_default());
                bytes.copy_from_slice(&(others | 1 << shift).to_be_bytes());
            }
        }
        self.storage.put(offset, &bytes)?;
        self.cache.forget(offset, size);
        Ok(())
    }

    /// Moves the table of blocks behind the end, so large that it has an entry for `cluster`, for itself and for as much again.
    fn grow_table(&mut self, cluster: u64) -> Result<(), IoError> {
        let (size, per_block) = (self.geometry.cluster_size(), self.geometry.refcounts());
        let start = self.end.max(cluster);
        // The blocks that count the new table, and those blocks, have their places before it.
        let (mut blocks, mut clusters) = (0, 0);
        loop {
            let end = start + blocks + clusters;
            let entries = (end / per_block + 1).max(self.table_clusters * size / 8) * 3 / 2;
            let needed_clusters = self.geometry.clusters(entries * 8);
            if needed_clusters * size > MOST_TABLE {
                return Err(IoError::NoSpace);
            }
            let mut needed_blocks = 0;
            for index in start / per_block..=(start + blocks + needed_clusters) / per_block {
                needed_blocks += u64::from(self.block(index * per_block)?.is_none());
            }
            if needed_blocks <= blocks && needed_clusters <= clusters {
                break;
            }
            (blocks, clusters) = (needed_blocks.max(blocks), needed_clusters.max(clusters));
        }
        // An entry that could not be written waits there.
        self.cache.write(&*self.storage, Kind::Count)?;
        let old = (self.table_offset, self.table_clusters);
        let mut table = self.storage.bytes(old.0, (old.1 * size) as usize)?;
        table.resize((clusters * size) as usize, 0);
        let end = start + blocks + clusters;
        let mut own = start;
        for index in start / per_block..=(end - 1) / per_block {
            let counted = (start..end).filter(|cluster| cluster / per_block == index);
            if self.block(index * per_block)?.is_some() {
                for cluster in counted {
                    self.set_count(cluster, 1)?;
                }
                continue;
            }
            self.put_block(own, &counted.collect::<Vec<_>>())?;
            self.reserved.insert(own);
            let place = (index * 8) as usize;
            if let Some(entry) = table.get_mut(place..place + 8) {
                entry.copy_from_slice(&self.geometry.offset(own).to_be_bytes());
            }
            own += 1;
        }
        // What the loop above counted too many is lost until somebody looks for it.
        self.end = end;
        let offset = self.geometry.offset(end - clusters);
        self.storage.put(offset, &table)?;
        self.cache.write(&*self.storage, Kind::Count)?;
        self.storage.sync()?;
        Header::set_table(&*self.storage, offset, clusters)?;
        self.storage.sync()?;
        (self.table_offset, self.table_clusters) = (offset, clusters);
        (end - clusters..end).for_each(|cluster| self.reserved.insert(cluster));
        self.cache.forget(offset, clusters * size);
        self.pending.push((self.geometry.cluster(old.0), old.1));
        Ok(())
    }
}
