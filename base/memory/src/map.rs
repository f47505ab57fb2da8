//! The owner of the memory map.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_irq::Requester;
use vm_memory::{GuestMemoryAtomic, GuestRegionCollection};

use crate::{BusMaster, Dma, MemoryError, Region, RegionKind};

#[cfg(test)]
#[path = "map_test.rs"]
mod test;

/// The RAM of a machine at one moment.
pub type RamView = GuestRegionCollection<Region>;

/// Who follows the memory map: a backend's slots, a vhost-user or VFIO device.
pub trait Listener: Send + Sync {
    /// The listener in messages.
    fn name(&self) -> &'static str;

    /// A region has appeared.
    ///
    /// # Errors
    /// A text that says why it can't be followed; the map then does not change.
    fn added(&self, region: &Arc<Region>) -> Result<(), String>;

    /// A region is about to go.
    ///
    /// # Errors
    /// A text that says why it can't be followed.
    fn removed(&self, region: &Arc<Region>) -> Result<(), String>;
}

struct Inner {
    regions: Vec<Arc<Region>>,
    listeners: Vec<Arc<dyn Listener>>,
}

/// The one owner of a machine's memory map. Clones are handles to the same map.
#[derive(Clone)]
pub struct MemoryMap {
    inner: Arc<Mutex<Inner>>,
    ram: GuestMemoryAtomic<RamView>,
}

impl Default for MemoryMap {
    fn default() -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner { regions: Vec::new(), listeners: Vec::new() })),
            ram: GuestMemoryAtomic::new(RamView::new()),
        }
    }
}

impl MemoryMap {
    /// An empty map.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a listener, which is told of every region that is there already.
    ///
    /// # Errors
    /// [`MemoryError::Listener`] where it refuses one of them.
    pub fn listen(&self, listener: Arc<dyn Listener>) -> Result<(), MemoryError> {
        let mut inner = self.lock();
        for region in &inner.regions {
            listener.added(region).map_err(|reason| refused(&*listener, region, reason))?;
        }
        inner.listeners.push(listener);
        Ok(())
    }

    /// Adds a region, and tells every listener. Where one refuses, those told before are told that it goes again.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] or [`MemoryError::Listener`]; the map is then what it was.
    pub fn add(&self, region: Region) -> Result<Arc<Region>, MemoryError> {
        let region = Arc::new(region);
        let mut inner = self.lock();
        let place = inner.regions.partition_point(|r| r.gpa() < region.gpa());
        let neighbours = inner.regions[place.saturating_sub(1)..].iter().take(2);
        for old in neighbours {
            if old.gpa() < region.gpa() + region.size() && region.gpa() < old.gpa() + old.size() {
                let (new, old) = (region.name().to_owned(), old.name().to_owned());
                return Err(MemoryError::Overlap { new, gpa: region.gpa(), old });
            }
        }
        for (told, listener) in inner.listeners.iter().enumerate() {
            if let Err(reason) = listener.added(&region) {
                for earlier in &inner.listeners[..told] {
                    // It followed the region a moment ago; if it can't let go of it, the refusal is the news all the same.
                    let _ = earlier.removed(&region);
                }
                return Err(refused(&**listener, &region, reason));
            }
        }
        inner.regions.insert(place, region.clone());
        self.publish(&inner);
        Ok(region)
    }

    /// Removes the region that begins at `gpa`, and tells every listener.
    ///
    /// # Errors
    /// [`MemoryError::NoRegion`], or [`MemoryError::Listener`] where one can't let go; the region has gone from the map all the same.
    pub fn remove(&self, gpa: u64) -> Result<Arc<Region>, MemoryError> {
        let mut inner = self.lock();
        let place = inner.regions.iter().position(|r| r.gpa() == gpa).ok_or(MemoryError::NoRegion { gpa })?;
        let region = inner.regions.remove(place);
        self.publish(&inner);
        let mut result = Ok(region.clone());
        for listener in &inner.listeners {
            if let Err(reason) = listener.removed(&region) {
                result = Err(refused(&**listener, &region, reason));
            }
        }
        result
    }

    fn publish(&self, inner: &Inner) {
        let ram: Vec<_> = inner.regions.iter().filter(|r| r.kind() == RegionKind::Ram).cloned().collect();
        // The map keeps its regions sorted and apart, which is all that can be wrong with a collection that is not empty.
        let view = RamView::from_arc_regions(ram).unwrap_or_default();
        if let Ok(guard) = self.ram.lock() {
            guard.replace(view);
        }
    }

    /// All regions, by address.
    #[must_use]
    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.lock().regions.clone()
    }

    /// The RAM as it is now: for loaders and tables, which are the machine's own.
    #[must_use]
    pub fn ram(&self) -> Arc<RamView> {
        vm_memory::GuestAddressSpace::memory(&self.ram).into_inner()
    }

    /// The view that a device has of RAM.
    #[must_use]
    pub fn dma(&self, requester: impl Into<Requester>, bus_master: BusMaster) -> Dma {
        Dma::new(self.ram.clone(), requester.into(), bus_master)
    }
}

fn refused(listener: &dyn Listener, region: &Region, reason: String) -> MemoryError {
    MemoryError::Listener { listener: listener.name(), region: region.name().to_owned(), gpa: region.gpa(), reason }
}
