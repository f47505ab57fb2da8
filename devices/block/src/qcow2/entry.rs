//! Where things are in an image: clusters, and the entries of its tables.

use crate::IoError;

/// The bits of an entry that are an offset in the file; clusters are at least 512 bytes.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The entry's cluster has no other user, so that it may be written in place.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The guest's cluster reads as zeroes (version 3).
const ZERO: u64 = 1;
/// Compressed clusters count their length in these.
const SECTOR: u64 = 512;

/// No file is larger, by the format, so that sums of what is below never overflow.
pub(super) const MOST_OFFSET: u64 = 1 << 56;

/// An image's proportions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of a cluster, as a power of two: 9 to 21.
    pub(super) cluster_bits: u32,
    /// Bits of a reference count, as a power of two: 0 to 6.
    pub(super) refcount_order: u32,
    /// 2 or 3.
    pub(super) version: u32,
}

impl Geometry {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// The cluster that a byte is in.
    pub(super) fn cluster(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits
    }

    /// Where a cluster begins.
    pub(super) fn offset(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    /// The byte's place in its cluster.
    pub(super) fn within(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Clusters that `bytes` take.
    pub(super) fn clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Entries of a level 2 table, which is a cluster.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_size() / 8
    }

    /// Entries that a level 1 table needs for a disk of `size` bytes.
    pub(super) fn l1_entries(&self, size: u64) -> u64 {
        self.clusters(size).div_ceil(self.l2_entries())
    }

    /// Reference counts of a block, which is a cluster.
    pub(super) fn refcounts(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// The largest reference count.
    pub(super) fn most_refcount(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.refcount_order))
    }

    /// The cluster-aligned offset of a table's entry, or `None` where it has none.
    pub(super) fn table(&self, entry: u64) -> Result<Option<u64>, IoError> {
        let offset = entry & OFFSET;
        if self.within(offset) != 0 {
            return Err(IoError::Damaged);
        }
        Ok((offset != 0).then_some(offset))
    }

    /// What an entry of a level 2 table says.
    pub(super) fn mapping(&self, entry: u64) -> Result<Mapping, IoError> {
        if entry & COMPRESSED != 0 {
            let shift = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << shift) - 1) & (MOST_OFFSET - 1);
            let sectors = (entry & !(COMPRESSED | COPIED)) >> shift;
            return Ok(Mapping::Compressed { offset, len: (sectors + 1) * SECTOR - offset % SECTOR });
        }
        let (host, copied) = (self.table(entry)?, entry & COPIED != 0);
        Ok(match host {
            _ if entry & ZERO != 0 && self.version >= 3 => Mapping::Zero(host.map(|host| (host, copied))),
            Some(host) => Mapping::Data { host, copied },
            None => Mapping::Unallocated,
        })
    }
}

/// Where a cluster of the guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// In the backing file, or nowhere.
    Unallocated,
    /// Nowhere: it is zeroes. A host's cluster may be kept for it, with whether it has no other user.
    Zero(Option<(u64, bool)>),
    /// In a cluster of the file.
    Data {
        /// Its offset.
        host: u64,
        /// It has no other user.
        copied: bool,
    },
    /// In bytes of the file, which may be of two clusters or more.
    Compressed {
        /// Their offset.
        offset: u64,
        /// How many there are at most.
        len: u64,
    },
}

impl Mapping {
    /// The entry for a cluster of its own at `host`.
    pub(super) fn data(host: u64) -> u64 {
        host | COPIED
    }

    /// The entry for zeroes, which keep the cluster at `host`.
    pub(super) fn zero(host: Option<u64>) -> u64 {
        host.map_or(ZERO, |host| host | COPIED | ZERO)
    }

    /// The clusters of the file that it uses: the first, and how many.
    pub(super) fn clusters(&self, geometry: &Geometry) -> Option<(u64, u64)> {
        match *self {
            Self::Unallocated | Self::Zero(None) => None,
            Self::Zero(Some((host, _))) | Self::Data { host, .. } => Some((geometry.cluster(host), 1)),
            Self::Compressed { offset, len } => {
                let first = geometry.cluster(offset);
                Some((first, geometry.cluster(offset + len - 1) - first + 1))
            }
        }
    }

    /// Whether it may be written where it is.
    pub(super) fn in_place(&self) -> Option<u64> {
        match *self {
            Self::Data { host, copied: true } => Some(host),
            _ => None,
        }
    }
}
