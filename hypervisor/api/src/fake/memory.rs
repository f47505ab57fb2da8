//! Memory slots and the log of what vCPUs write.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};

use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{DirtySource, Listener, PAGE_SIZE, Region, RegionKind};

use super::{NAME, lock};

/// The guest's memory, by its slots.
pub(super) struct Memory {
    slots: u32,
    address_bits: u8,
    regions: Mutex<BTreeMap<u64, Arc<Region>>>,
    /// The pages written while the log is on.
    written: Mutex<Option<BTreeMap<u64, Vec<u64>>>>,
}

impl Memory {
    pub(super) fn new(slots: u32, address_bits: u8) -> Self {
        Self { slots, address_bits, regions: Mutex::default(), written: Mutex::default() }
    }

    /// The region that holds all of an access, and where in it the access lies.
    fn find(&self, gpa: u64, len: usize) -> Option<(Arc<Region>, u64)> {
        let regions = lock(&self.regions);
        let (_, region) = regions.range(..=gpa).next_back()?;
        let offset = gpa - region.gpa();
        (offset.checked_add(len as u64)? <= region.size()).then(|| (Arc::clone(region), offset))
    }

    /// Reads what is all in one region; `false` for anything else.
    pub(super) fn read(&self, gpa: u64, into: &mut [u8]) -> bool {
        let Some((region, offset)) = self.find(gpa, into.len()) else { return false };
        let done = region.read_slice(into, MemoryRegionAddress(offset)).is_ok();
        // What another thread wrote before the value just read is to be seen after it, as on hardware with barriers in the guest.
        fence(Ordering::Acquire);
        done
    }

    /// Writes what is all in one region that can be written; `false` for anything else.
    pub(super) fn write(&self, gpa: u64, from: &[u8]) -> bool {
        let Some((region, offset)) = self.find(gpa, from.len()) else { return false };
        if region.kind() == RegionKind::ReadOnly || from.is_empty() {
            return false;
        }
        fence(Ordering::Release);
        if let Some(written) = &mut *lock(&self.written) {
            let words = (region.size() / PAGE_SIZE).div_ceil(64) as usize;
            let bits = written.entry(region.gpa()).or_insert_with(|| vec![0; words]);
            for page in offset / PAGE_SIZE..=(offset + from.len() as u64 - 1) / PAGE_SIZE {
                bits[(page / 64) as usize] |= 1 << (page % 64);
            }
        }
        region.write_slice(from, MemoryRegionAddress(offset)).is_ok()
    }

    pub(super) fn read_word(&self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes).then(|| u64::from_le_bytes(bytes))
    }
}

impl Listener for Memory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn added(&self, region: &Arc<Region>) -> Result<(), String> {
        let mut regions = lock(&self.regions);
        if (region.gpa() + region.size() - 1).checked_shr(self.address_bits.into()).unwrap_or(0) != 0 {
            return Err(format!("the guest has {} address bits", self.address_bits));
        }
        if regions.len() as u64 >= u64::from(self.slots) {
            return Err(format!("all {} memory slots are taken", self.slots));
        }
        regions.insert(region.gpa(), Arc::clone(region));
        Ok(())
    }

    fn removed(&self, region: &Arc<Region>) -> Result<(), String> {
        lock(&self.regions).remove(&region.gpa());
        if let Some(written) = &mut *lock(&self.written) {
            written.remove(&region.gpa());
        }
        Ok(())
    }
}

impl DirtySource for Memory {
    fn set_logging(&self, on: bool) -> Result<(), String> {
        *lock(&self.written) = on.then(BTreeMap::new);
        Ok(())
    }

    fn take(&self, region: &Region, into: &mut [u64]) -> Result<(), String> {
        let bits = lock(&self.written).as_mut().and_then(|written| written.remove(&region.gpa()));
        for (into, bits) in into.iter_mut().zip(bits.unwrap_or_default()) {
            *into |= bits;
        }
        Ok(())
    }
}
