//! Posted writes by `KVM_REGISTER_COALESCED_MMIO`: the kernel puts them into a ring, which all vCPUs of a VM share.
#![allow(unsafe_code)] // A page that the kernel writes to.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_run};
use kvm_ioctls::{IoEventAddress, VmFd};
use skep_hypervisor::{HypervisorError, PostedWrites};

use crate::slots::host_page_size;

/// What a VM's vCPUs share of its posted writes.
pub(crate) struct Posted {
    vm: Arc<VmFd>,
    /// One at a time delivers, and who comes meanwhile waits until that is done.
    delivers: Mutex<()>,
}

impl Posted {
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, delivers: Mutex::default() }
    }
}

fn failed(what: &str, range: &Range<u64>, source: impl Into<io::Error>) -> HypervisorError {
    HypervisorError::call(format!("{what} posted writes at {:#x} to {:#x}", range.start, range.end), source)
}

/// An address and a size as KVM takes them.
fn zone(what: &str, range: &Range<u64>) -> Result<(IoEventAddress, u32), HypervisorError> {
    let size = range.end.checked_sub(range.start).and_then(|size| u32::try_from(size).ok());
    let size = size.ok_or_else(|| failed(what, range, io::ErrorKind::InvalidInput))?;
    Ok((IoEventAddress::Mmio(range.start), size))
}

impl PostedWrites for Posted {
    fn attach(&self, range: Range<u64>) -> Result<(), HypervisorError> {
        let (address, size) = zone("attach", &range)?;
        self.vm.register_coalesced_mmio(address, size).map_err(|e| failed("attach", &range, e))
    }

    fn detach(&self, range: Range<u64>) -> Result<(), HypervisorError> {
        let (address, size) = zone("detach", &range)?;
        self.vm.unregister_coalesced_mmio(address, size).map_err(|e| failed("detach", &range, e))
    }
}

/// The ring, as it is mapped with a vCPU.
pub(crate) struct Ring {
    start: NonNull<kvm_coalesced_mmio_ring>,
    /// Entries that it has, of which one is always free.
    entries: u32,
}

// SAFETY: it is a page of the mapping that its vCPU has; its indices are shared by atomic access, and what lies between them by the lock in `Posted`.
unsafe impl Send for Ring {}

impl Ring {
    /// The ring in the mapping of a vCPU.
    ///
    /// # Safety
    /// `mapped` bytes from `page` on are what KVM maps of a vCPU, for as long as the ring is used.
    pub(crate) unsafe fn of(page: NonNull<kvm_run>, mapped: usize) -> Option<Self> {
        let page_size = usize::try_from(host_page_size()).ok()?;
        let offset = KVM_COALESCED_MMIO_PAGE_OFFSET as usize * page_size;
        if offset.checked_add(page_size)? > mapped {
            return None;
        }
        let entries = (page_size - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>();
        // SAFETY: the page at the offset lies inside the mapping.
        let start = unsafe { page.cast::<u8>().add(offset) }.cast();
        Some(Self { start, entries: u32::try_from(entries).ok()? })
    }

    /// The first entry that is taken; the kernel reads it.
    fn first(&self) -> &AtomicU32 {
        // SAFETY: a field of the ring, aligned, which everybody accesses atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.start.as_ptr()).first) }
    }

    /// The entry behind the last one; the kernel writes it when that is whole.
    fn last(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.start.as_ptr()).last) }
    }

    /// An entry.
    fn entry(&self, index: u32) -> kvm_coalesced_mmio {
        // SAFETY: entries lie behind the two indices, and the index is below their number; the kernel leaves those that are taken alone.
        unsafe {
            let entries = (&raw const (*self.start.as_ptr()).coalesced_mmio).cast::<kvm_coalesced_mmio>();
            entries.add(index as usize).read()
        }
    }

    /// Calls `each` with what has been posted until now, by any vCPU: address and data. When it returns, all of that has been delivered, by whomever.
    pub(crate) fn deliver(&self, posted: &Posted, mut each: impl FnMut(u64, &[u8])) {
        // An entry is let go of when it has been delivered: where this finds none, nobody is about to deliver one.
        let last = self.last().load(Ordering::Acquire);
        if self.first().load(Ordering::Acquire) == last {
            return;
        }
        let _one = posted.delivers.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.last().load(Ordering::Acquire);
        let mut first = self.first().load(Ordering::Acquire);
        // The kernel's indices are in range; a wrong one would have this read elsewhere.
        while first != last && first < self.entries && last < self.entries {
            let entry = self.entry(first);
            let length = (entry.len as usize).min(entry.data.len());
            each(entry.phys_addr, &entry.data[..length]);
            first = (first + 1) % self.entries;
            self.first().store(first, Ordering::Release);
        }
    }
}
