//! A piece of guest physical address space that is backed by memory.
#![allow(unsafe_code)] // Volatile slices are made from the mapping's address.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{BS, Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::{Backing, MemoryError, PAGE_SIZE};

/// What a region is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Read, written, and reached by DMA.
    Ram,
    /// Read at memory speed; a write reaches the bus (ROM, flash that is being read).
    ReadOnly,
    /// Memory of a device (a BAR): read and written, not reached by DMA.
    Device,
}

/// Which pages of a region skep itself (devices, loaders) has written since they were last taken: what a vCPU dirties is the backend's to
/// log. It costs a test of one pointer until it is first turned on.
#[derive(Debug, Default)]
pub struct DirtyBits {
    words: OnceLock<Box<[AtomicU64]>>,
}

impl DirtyBits {
    fn start(&self, pages: u64) {
        let words = usize::try_from(pages.div_ceil(64)).expect("a bitmap is smaller than the memory that it is of");
        self.words.get_or_init(|| (0..words).map(|_| AtomicU64::new(0)).collect());
    }

    fn mark(&self, offset: usize, len: usize) {
        let (Some(words), true) = (self.words.get(), len > 0) else { return };
        let page = |byte: usize| byte / PAGE_SIZE as usize;
        for page in page(offset)..=page(offset.saturating_add(len - 1)) {
            if let Some(word) = words.get(page / 64) {
                // Whoever sees the mark sees what was written.
                word.fetch_or(1 << (page % 64), Ordering::Release);
            }
        }
    }

    fn is_marked(&self, offset: usize) -> bool {
        let page = offset / PAGE_SIZE as usize;
        let word = self.words.get().and_then(|words| words.get(page / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }
}

/// [`DirtyBits`] from an offset on, as vm-memory asks for it.
#[derive(Debug, Clone)]
pub struct DirtySlice<'a> {
    bits: &'a DirtyBits,
    base: usize,
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.bits.mark(self.base.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bits.is_marked(self.base.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { bits: self.bits, base: self.base.saturating_add(offset) }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBits {
    type S = DirtySlice<'a>;
}

impl Bitmap for DirtyBits {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.is_marked(offset)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice { bits: self, base: offset }
    }
}

/// A piece of guest physical address space, and the part of a [`Backing`] behind it.
#[derive(Debug)]
pub struct Region {
    name: String,
    kind: RegionKind,
    gpa: u64,
    size: u64,
    backing: Arc<Backing>,
    offset: u64,
    file: Option<FileOffset>,
    dirty: DirtyBits,
}

impl Region {
    /// `size` bytes at `gpa`, backed by `backing` from `offset` on.
    ///
    /// # Errors
    /// [`MemoryError::BadRange`] for what is not made of whole pages, is empty, or leaves the backing or the address space.
    pub fn new(
        name: impl Into<String>,
        kind: RegionKind,
        gpa: u64,
        size: u64,
        backing: Arc<Backing>,
        offset: u64,
    ) -> Result<Self, MemoryError> {
        let bad = |reason| Err(MemoryError::BadRange { gpa, size, reason });
        if !(gpa | size | offset).is_multiple_of(PAGE_SIZE) || size == 0 {
            return bad("it is not made of whole pages");
        }
        if gpa.checked_add(size).is_none() {
            return bad("it leaves the address space");
        }
        if offset.checked_add(size).is_none_or(|end| end > backing.size()) {
            return bad("it leaves the memory behind it");
        }
        let file = match backing.file().map(std::fs::File::try_clone) {
            Some(Ok(file)) => Some(FileOffset::new(file, offset)),
            Some(Err(_)) => return bad("the host has no file descriptor left for it"),
            None => None,
        };
        Ok(Self { name: name.into(), kind, gpa, size, backing, offset, file, dirty: DirtyBits::default() })
    }

    /// What it is called in messages and in the memory layout.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is to the guest.
    #[must_use]
    pub fn kind(&self) -> RegionKind {
        self.kind
    }

    /// Its first guest physical address.
    #[must_use]
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The host address of its first byte: for a backend's slots, which map it into the guest.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        self.backing.as_ptr().wrapping_add(usize::try_from(self.offset).expect("inside a mapping of this process"))
    }

    /// The file behind it and its offset there, if another process can map it.
    #[must_use]
    pub fn file(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    /// Gives whole pages of the host within `len` bytes at `offset` of the region back to it: they read as zeroes from then on. It is for what
    /// the guest has said that it does not use, so nothing is marked dirty.
    ///
    /// # Errors
    /// The host's own.
    pub fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        let offset = offset.min(self.size);
        self.backing.discard(self.offset + offset, len.min(self.size - offset))
    }

    /// Where something else than zeroes may be, in ranges of offsets that ascend, of whole pages. Nobody writes meanwhile.
    ///
    /// # Errors
    /// The host's own.
    pub fn used(&self) -> std::io::Result<Vec<std::ops::Range<u64>>> {
        let used = self.backing.used(self.offset, self.size)?;
        Ok(used.into_iter().map(|range| range.start - self.offset..range.end - self.offset).collect())
    }

    /// Begins to note which pages skep itself writes.
    pub fn start_dirty_tracking(&self) {
        self.dirty.start(self.size / PAGE_SIZE);
    }

    /// Adds the pages noted since the last call to `into`, one bit each, the first page in bit 0 of word 0.
    pub fn take_dirty(&self, into: &mut [u64]) {
        let Some(words) = self.dirty.words.get() else { return };
        for (into, word) in into.iter_mut().zip(words) {
            if word.load(Ordering::Relaxed) != 0 {
                *into |= word.swap(0, Ordering::Acquire);
            }
        }
    }
}

impl GuestMemoryRegion for Region {
    type B = DirtyBits;

    fn len(&self) -> GuestUsize {
        self.size
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.gpa)
    }

    fn bitmap(&self) -> BS<'_, DirtyBits> {
        self.dirty.slice_at(0)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let offset = self.check_address(addr).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        Ok(self.host_address().wrapping_add(offset.0 as usize))
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, DirtySlice<'_>>, GuestMemoryError> {
        if offset.0.checked_add(count as u64).is_none_or(|end| end > self.size) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        let at = offset.0 as usize;
        // SAFETY: the range was checked to lie in the backing, which lives as long as `self`, whose lifetime the slice has.
        Ok(unsafe {
            VolatileSlice::with_bitmap(self.host_address().wrapping_add(at), count, self.dirty.slice_at(at), None)
        })
    }
}

impl GuestMemoryRegionBytes for Region {}
