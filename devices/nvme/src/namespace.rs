//! Namespaces, and the table of those that are attached.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::{ArcSwap, Guard};
use skep_block::Disk;

use crate::config::{NamespaceConfig, NvmeError};

/// Namespaces of a controller at most.
pub(crate) const MOST: u32 = 256;

/// A namespace.
pub(crate) struct Namespace {
    pub(crate) id: u32,
    pub(crate) disk: Arc<dyn Disk>,
    /// The logical block's size as a power of two.
    pub(crate) shift: u32,
    read_only: bool,
    pub(crate) uuid: [u8; 16],
    /// A Format is under way.
    pub(crate) formatting: AtomicBool,
}

impl Namespace {
    pub(crate) fn new(id: u32, config: &NamespaceConfig) -> Result<Self, NvmeError> {
        let refuse = |reason: String| Err(NvmeError::Namespace { nsid: id, reason });
        if !(1..=MOST).contains(&id) {
            return refuse(format!("its number is 1 to {MOST}"));
        }
        if ![512, 4096].contains(&config.block_size) {
            return refuse(format!("its block size is {}, but 512 and 4096 are what there is", config.block_size));
        }
        let host = config.disk.info().block_size;
        if host > config.block_size {
            return refuse(format!(
                "the disk has blocks of {host} bytes: set the block size to 4096, or use the page cache"
            ));
        }
        Ok(Self {
            id,
            disk: config.disk.clone(),
            shift: config.block_size.trailing_zeros(),
            read_only: config.read_only,
            uuid: config.uuid,
            formatting: AtomicBool::new(false),
        })
    }

    /// Its size in logical blocks, now.
    pub(crate) fn blocks(&self) -> u64 {
        self.disk.info().size >> self.shift
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || self.disk.info().read_only
    }

    /// The bytes of a range of logical blocks, where it lies inside.
    pub(crate) fn range(&self, first: u64, blocks: u64) -> Option<(u64, u64)> {
        let end = first.checked_add(blocks)?;
        (end <= self.blocks()).then(|| (first << self.shift, blocks << self.shift))
    }

    pub(crate) fn is_formatting(&self) -> bool {
        self.formatting.load(Ordering::Acquire)
    }
}

/// The namespaces that are attached, by their numbers.
pub(crate) type Table = BTreeMap<u32, Arc<Namespace>>;

/// The table, which workers look at without a lock.
#[derive(Default)]
pub(crate) struct Namespaces {
    table: ArcSwap<Table>,
    writer: Mutex<()>,
}

impl Namespaces {
    pub(crate) fn load(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Namespace>> {
        self.load().get(&id).cloned()
    }

    /// Adds one; gives it back where there is one of that number.
    pub(crate) fn add(&self, namespace: Arc<Namespace>) -> Result<(), Arc<Namespace>> {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        if table.contains_key(&namespace.id) {
            return Err(namespace);
        }
        table.insert(namespace.id, namespace);
        self.table.store(Arc::new(table));
        Ok(())
    }

    pub(crate) fn remove(&self, id: u32) -> Option<Arc<Namespace>> {
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Table::clone(&self.table.load());
        let removed = table.remove(&id);
        self.table.store(Arc::new(table));
        removed
    }
}
