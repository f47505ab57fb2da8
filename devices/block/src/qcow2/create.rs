//! New images.

use super::entry::Geometry;
use super::header::{Backing, Header};
use crate::IoError;
use crate::storage::Storage;

/// What a new qcow2 image is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateOptions {
    /// Bytes of a cluster: a power of two from 512 bytes to 2 MiB.
    pub cluster_size: u64,
    /// What it is a change of.
    pub backing: Option<Backing>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self { cluster_size: 64 << 10, backing: None }
    }
}

/// Why there is no new image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Counts of 16 bits, which every version has.
const REFCOUNT_ORDER: u32 = 4;
/// What QEMU takes as a level 1 table at most.
const MOST_L1: u64 = 32 << 20;

/// Writes an empty image of `size` bytes into the empty `storage`: header, table of reference counts, their blocks, level 1 table.
pub(crate) fn create(storage: &dyn Storage, size: u64, options: &CreateOptions) -> Result<(), CreateError> {
    let refused = |reason: String| Err(CreateError::Refused(reason));
    if !options.cluster_size.is_power_of_two() || !(9..=21).contains(&options.cluster_size.ilog2()) {
        return refused(format!("clusters of {} bytes: a power of two from 512B to 2M", options.cluster_size));
    }
    if size == 0 || !size.is_multiple_of(512) {
        return refused(format!("a disk of {size} bytes: it is made of blocks of 512 bytes"));
    }
    let cluster_bits = options.cluster_size.ilog2();
    let geometry = Geometry { cluster_bits, refcount_order: REFCOUNT_ORDER, version: 3 };
    let l1_bytes = geometry.l1_entries(size) * 8;
    if l1_bytes > MOST_L1 {
        let most = MOST_L1 / 8 * geometry.l2_entries() * geometry.cluster_size();
        return refused(format!(
            "a disk of {size} bytes in clusters of {}: they hold {most} at most, larger ones more",
            options.cluster_size
        ));
    }
    let l1_clusters = geometry.clusters(l1_bytes);
    let (mut blocks, mut table) = (1, 1);
    loop {
        let clusters = 1 + table + blocks + l1_clusters;
        let needed = (clusters.div_ceil(geometry.refcounts()), geometry.clusters(blocks * 8));
        if needed == (blocks, table) {
            break;
        }
        (blocks, table) = needed;
    }
    let mut header = Header::new(geometry, size, options.backing.clone());
    header.table_clusters = table;
    header.table_offset = geometry.offset(1);
    header.l1_offset = geometry.offset(1 + table + blocks);
    let used = 1 + table + blocks + l1_clusters;
    for block in 0..blocks {
        let counted = used.saturating_sub(block * geometry.refcounts()).min(geometry.refcounts());
        let place = 1 + table + block;
        let mut bytes = [0, 1].repeat(counted as usize);
        bytes.resize(geometry.cluster_size() as usize, 0);
        storage.put(geometry.offset(place), &bytes)?;
        storage.put(header.table_offset + block * 8, &geometry.offset(place).to_be_bytes())?;
    }
    storage.put(header.l1_offset, &vec![0; (l1_clusters * geometry.cluster_size()) as usize])?;
    // An image is one once it has a header.
    storage.put(0, &header.write().map_err(CreateError::Refused)?)?;
    Ok(())
}
