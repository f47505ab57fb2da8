//! The dirty log: one owner that reads it, and named consumers that each see every page once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{MemoryError, MemoryMap, Region, RegionKind};

#[cfg(test)]
#[path = "dirty_test.rs"]
mod test;

/// The unit of the dirty log in bytes, on both architectures. A backend with larger pages sets all bits of one.
pub const PAGE_SIZE: u64 = 4096;

/// A backend's own dirty log: which pages the vCPUs have written.
pub trait DirtySource: Send + Sync {
    /// Begins or ends logging.
    ///
    /// # Errors
    /// A text that says what the backend refused.
    fn set_logging(&self, on: bool) -> Result<(), String>;

    /// Adds the pages of `region` written since the last call to `into`, one bit each, the first page in bit 0 of word 0, and forgets them.
    ///
    /// # Errors
    /// A text that says what the backend refused.
    fn take(&self, region: &Region, into: &mut [u64]) -> Result<(), String>;
}

/// One who wants to see every dirty page once: migration, a diff snapshot, a display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consumer(u32);

struct Pending {
    name: &'static str,
    /// By a region's address.
    bits: BTreeMap<u64, Vec<u64>>,
}

#[derive(Default)]
struct Inner {
    consumers: BTreeMap<Consumer, Pending>,
    next: u32,
}

/// The owner of the dirty log.
pub struct DirtyLog {
    map: MemoryMap,
    source: Arc<dyn DirtySource>,
    inner: Mutex<Inner>,
}

fn words(region: &Region) -> usize {
    usize::try_from((region.size() / PAGE_SIZE).div_ceil(64)).expect("a bitmap is smaller than its memory")
}

impl DirtyLog {
    /// The log of `map`, fed by the backend's `source` and by what skep's own writes mark. It is off until the first consumer comes.
    pub fn new(map: MemoryMap, source: Arc<dyn DirtySource>) -> Self {
        Self { map, source, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, reason: String) -> MemoryError {
        MemoryError::Listener { listener: "the dirty log", region: "RAM".to_owned(), gpa: 0, reason }
    }

    /// Adds a consumer, which sees what is dirtied from now on.
    ///
    /// # Errors
    /// Where the backend refuses to begin logging.
    pub fn subscribe(&self, name: &'static str) -> Result<Consumer, MemoryError> {
        let mut inner = self.lock();
        if inner.consumers.is_empty() {
            for region in self.ram() {
                region.start_dirty_tracking();
            }
            self.source.set_logging(true).map_err(|e| self.refused(e))?;
        }
        // What was written before belongs to those who were there before.
        if let Err(error) = self.collect(&mut inner) {
            if inner.consumers.is_empty() {
                // That it could not be read is what there is to tell.
                let _ = self.source.set_logging(false);
            }
            return Err(error);
        }
        let consumer = Consumer(inner.next);
        inner.next += 1;
        inner.consumers.insert(consumer, Pending { name, bits: BTreeMap::new() });
        Ok(consumer)
    }

    /// Removes a consumer; after the last one logging ends.
    ///
    /// # Errors
    /// Where the backend refuses to end logging.
    pub fn unsubscribe(&self, consumer: Consumer) -> Result<(), MemoryError> {
        let mut inner = self.lock();
        if inner.consumers.remove(&consumer).is_some() && inner.consumers.is_empty() {
            self.source.set_logging(false).map_err(|e| self.refused(e))?;
        }
        Ok(())
    }

    /// The names of those who follow the log.
    #[must_use]
    pub fn consumers(&self) -> Vec<&'static str> {
        self.lock().consumers.values().map(|pending| pending.name).collect()
    }

    /// Takes the pages that `consumer` has not seen: for each RAM region its address and a bit for each page, the first in bit 0 of word 0.
    ///
    /// # Errors
    /// Where the backend refuses to read its log.
    pub fn take(&self, consumer: Consumer) -> Result<Vec<(u64, Vec<u64>)>, MemoryError> {
        let mut inner = self.lock();
        self.collect(&mut inner)?;
        let pending = inner.consumers.get_mut(&consumer).map(|pending| std::mem::take(&mut pending.bits));
        Ok(pending.unwrap_or_default().into_iter().collect())
    }

    fn ram(&self) -> impl Iterator<Item = Arc<Region>> {
        self.map.regions().into_iter().filter(|region| region.kind() == RegionKind::Ram)
    }

    fn collect(&self, inner: &mut Inner) -> Result<(), MemoryError> {
        for region in self.ram() {
            let mut bits = vec![0; words(&region)];
            if let Err(reason) = self.source.take(&region, &mut bits) {
                // Firmware has made something else of it at this moment.
                if self.ram().any(|one| Arc::ptr_eq(&one, &region)) {
                    return Err(self.refused(reason));
                }
            }
            region.take_dirty(&mut bits);
            if bits.iter().all(|word| *word == 0) {
                continue;
            }
            for pending in inner.consumers.values_mut() {
                let known = pending.bits.entry(region.gpa()).or_insert_with(|| vec![0; bits.len()]);
                for (known, new) in known.iter_mut().zip(&bits) {
                    *known |= new;
                }
            }
        }
        Ok(())
    }
}
