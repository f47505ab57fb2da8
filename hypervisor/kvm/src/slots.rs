//! Guest memory as KVM's slots, and the log of the pages that vCPUs write.
#![allow(unsafe_code)] // Host memory is lent to the guest.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
    kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use skep_memory::{DirtySource, Listener, PAGE_SIZE, Region, RegionKind};

use crate::{NAME, host, ioctl};

#[cfg(test)]
#[path = "slots_test.rs"]
mod test;

/// The most bytes of one slot: KVM's limit is 2^31 - 1 pages; half of that and a multiple of every page size there is.
const SLOT_BYTES: u64 = 4 << 40;
/// KVM on x86_64 takes memory of the host's own for each page of a slot as it is made, touched or not: its reverse map and what it tracks.
const BYTES_PER_PAGE: u64 = 12;
/// Smaller regions are not weighed against the host's memory: any host has room for what they cost.
const WEIGHED: u64 = 64 << 30;
/// Pages of the dirty log that are forgotten by one call: KVM holds its MMU lock meanwhile.
const CLEAR_PAGES: usize = 1 << 16;

/// A region and the slots that map it, one for each [`SLOT_BYTES`].
struct Mapped {
    region: Arc<Region>,
    slots: Vec<u32>,
}

#[derive(Default)]
struct Inner {
    /// By guest address. It keeps the host memory for as long as the guest can reach it.
    mapped: BTreeMap<u64, Mapped>,
    free: Vec<u32>,
    /// The first number that was never used.
    next: u32,
    logging: bool,
    /// Whether reading the log leaves it as it is, and [`ioctl::clear_dirty_log`] forgets; `None` until it was first asked for.
    manual_clear: Option<bool>,
}

impl Inner {
    fn take_slot(&mut self, limit: u32) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.next;
            (slot < limit).then(|| self.next += 1)?;
            Some(slot)
        })
    }
}

/// The slots of one VM. vCPUs hold it, so that no memory goes while one can run.
pub(crate) struct Slots {
    vm: Arc<VmFd>,
    limit: u32,
    /// The guest's physical address bits.
    address_bits: u8,
    inner: Mutex<Inner>,
}

/// The pieces of `size` bytes that each fit a slot: offset and size.
fn pieces(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size.div_ceil(SLOT_BYTES)).map(move |i| (i * SLOT_BYTES, (size - i * SLOT_BYTES).min(SLOT_BYTES)))
}

/// The host's page size in bytes, which is the unit of KVM's dirty log: 4, 16 or 64 KiB on arm64.
pub(crate) fn host_page_size() -> u64 {
    // SAFETY: the call has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(PAGE_SIZE)
}

/// Adds a log of the host's pages, each `ratio` of ours, to `into`.
fn spread(log: &[u64], ratio: u64, into: &mut [u64]) {
    if ratio == 1 {
        return into.iter_mut().zip(log).for_each(|(into, log)| *into |= log);
    }
    for (number, word) in (0u64..).zip(log).filter(|(_, word)| **word != 0) {
        let dirty = (0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| number * 64 + bit);
        for page in dirty.flat_map(|page| page * ratio..(page + 1) * ratio) {
            if let Some(word) = usize::try_from(page / 64).ok().and_then(|word| into.get_mut(word)) {
                *word |= 1 << (page % 64);
            }
        }
    }
}

/// Whether KVM can map `size` bytes on a host with `available` bytes of memory: it would take all of them, and have the host kill processes.
fn affordable(size: u64, available: Option<u64>) -> Result<(), String> {
    let cost = size / PAGE_SIZE * BYTES_PER_PAGE;
    match available {
        Some(available) if cfg!(target_arch = "x86_64") && cost > available / 2 => Err(format!(
            "KVM takes about {} MiB of the host's own memory to map it, and the host has {} MiB available: choose less by --memory",
            cost >> 20,
            available >> 20
        )),
        _ => Ok(()),
    }
}

fn flags(region: &Region, logging: bool) -> u32 {
    match region.kind() {
        RegionKind::ReadOnly => KVM_MEM_READONLY,
        RegionKind::Ram if logging => KVM_MEM_LOG_DIRTY_PAGES,
        RegionKind::Ram | RegionKind::Device => 0,
    }
}

impl Slots {
    /// No memory yet, and at most `limit` slots.
    pub(crate) fn new(vm: Arc<VmFd>, limit: u32, address_bits: u8) -> Self {
        Self { vm, limit, address_bits, inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The region that a guest address is in, and where.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn find(&self, gpa: u64) -> Option<(Arc<Region>, u64)> {
        let inner = self.lock();
        let (start, mapped) = inner.mapped.range(..=gpa).next_back()?;
        (gpa - start < mapped.region.size()).then(|| (mapped.region.clone(), gpa - start))
    }

    /// Sets a slot to a piece of `region`.
    fn set(&self, slot: u32, region: &Region, (offset, size): (u64, u64), flags: u32) -> io::Result<()> {
        let request = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.gpa() + offset,
            memory_size: size,
            userspace_addr: region.host_address() as u64 + offset,
        };
        // SAFETY: the piece lies inside the region, whose memory lives until the slot is cleared: `Inner` holds it, and vCPUs hold `Slots`.
        unsafe { self.vm.set_user_memory_region(request) }.map_err(io::Error::from)
    }

    fn clear(&self, slot: u32) -> io::Result<()> {
        let request = kvm_userspace_memory_region { slot, ..Default::default() };
        // SAFETY: a size of 0 takes the slot's memory away.
        unsafe { self.vm.set_user_memory_region(request) }.map_err(io::Error::from)
    }

    fn map(&self, inner: &mut Inner, region: &Arc<Region>) -> Result<(), String> {
        let last = region.gpa() + (region.size() - 1);
        if last.checked_shr(self.address_bits.into()).unwrap_or(0) != 0 {
            return Err(format!("it ends beyond the guest's {} physical address bits", self.address_bits));
        }
        if region.size() >= WEIGHED {
            affordable(region.size(), host::available_memory())?;
        }
        let mut slots = Vec::new();
        let result = pieces(region.size()).try_for_each(|piece| {
            let slot = inner.take_slot(self.limit).ok_or_else(|| {
                format!("its {} memory slots are all taken: configure fewer or larger regions", self.limit)
            })?;
            slots.push(slot);
            self.set(slot, region, piece, flags(region, inner.logging)).map_err(|e| e.to_string())
        });
        if result.is_err() {
            for slot in slots {
                // One that was never set can't be cleared, which is as good.
                let _ = self.clear(slot);
                inner.free.push(slot);
            }
            return result;
        }
        inner.mapped.insert(region.gpa(), Mapped { region: region.clone(), slots });
        Ok(())
    }

    /// Whether the dirty log is cleared by a call of its own: asked for when logging first begins.
    fn manual_clear(&self, inner: &mut Inner) -> bool {
        *inner.manual_clear.get_or_insert_with(|| {
            let request = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                args: [u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0, 0, 0],
                ..Default::default()
            };
            self.vm.enable_cap(&request).is_ok()
        })
    }
}

impl Listener for Slots {
    fn name(&self) -> &'static str {
        NAME
    }

    fn added(&self, region: &Arc<Region>) -> Result<(), String> {
        self.map(&mut self.lock(), region)
    }

    fn removed(&self, region: &Arc<Region>) -> Result<(), String> {
        let mut inner = self.lock();
        let mapped = inner.mapped.get(&region.gpa()).ok_or("it is not mapped")?;
        // Where one can't be cleared the region stays: the guest may reach its memory.
        mapped.slots.iter().try_for_each(|slot| self.clear(*slot)).map_err(|e| e.to_string())?;
        if let Some(mapped) = inner.mapped.remove(&region.gpa()) {
            inner.free.extend(mapped.slots);
        }
        Ok(())
    }
}

impl DirtySource for Slots {
    fn set_logging(&self, on: bool) -> Result<(), String> {
        let mut inner = self.lock();
        if on {
            self.manual_clear(&mut inner);
        }
        for mapped in inner.mapped.values().filter(|mapped| mapped.region.kind() == RegionKind::Ram) {
            for (slot, piece) in mapped.slots.iter().zip(pieces(mapped.region.size())) {
                self.set(*slot, &mapped.region, piece, flags(&mapped.region, on)).map_err(|e| e.to_string())?;
            }
        }
        inner.logging = on;
        Ok(())
    }

    fn take(&self, region: &Region, into: &mut [u64]) -> Result<(), String> {
        let inner = self.lock();
        let mapped = inner.mapped.get(&region.gpa()).ok_or("it is not mapped")?;
        let manual = inner.manual_clear == Some(true);
        for (slot, (offset, size)) in mapped.slots.iter().zip(pieces(mapped.region.size())) {
            let length = usize::try_from(size).expect("a mapping of this process");
            let bits = self.vm.get_dirty_log(*slot, length).map_err(|e| io::Error::from(e).to_string())?;
            if manual {
                self.forget(*slot, size / host_page_size(), &bits).map_err(|e| e.to_string())?;
            }
            let first = usize::try_from(offset / PAGE_SIZE / 64).expect("a mapping of this process");
            spread(&bits, host_page_size() / PAGE_SIZE, into.get_mut(first..).unwrap_or_default());
        }
        Ok(())
    }
}

impl Slots {
    /// Forgets what was read, in steps, so that no vCPU waits long.
    fn forget(&self, slot: u32, pages: u64, bits: &[u64]) -> io::Result<()> {
        for (step, bits) in bits.chunks(CLEAR_PAGES / 64).enumerate() {
            if bits.iter().all(|word| *word == 0) {
                continue;
            }
            let first = (step * CLEAR_PAGES) as u64;
            let count = (pages - first).min(CLEAR_PAGES as u64);
            ioctl::clear_dirty_log(&self.vm, slot, first, u32::try_from(count).unwrap_or(u32::MAX), bits)?;
        }
        Ok(())
    }
}
