//! Host memory that backs guest memory.
#![allow(unsafe_code)] // mmap, munmap and memfd_create have no safe form.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};

use crate::{MemoryError, used};

#[cfg(test)]
#[path = "backing_test.rs"]
mod test;

/// What stage-2 tables of both architectures map by one entry of the second level.
const LARGE_PAGE: usize = 2 << 20;

/// Huge pages of the host's hugetlb pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePages {
    /// The size of a page in bytes, a power of two.
    pub page_size: u64,
}

/// How RAM is taken from the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RamOptions {
    /// From a hugetlb pool.
    pub huge_pages: Option<HugePages>,
    /// All at once rather than when first touched.
    pub prefault: bool,
    /// In a memfd, which other processes can map.
    pub shared: bool,
}

/// A mapping of host memory, zeroed, unmapped when dropped.
#[derive(Debug)]
pub struct Backing {
    start: NonNull<u8>,
    size: usize,
    file: Option<File>,
    /// What it reads as where it has not been written ([`Backing::of_file`]).
    origin: Option<File>,
    /// The host's unit of this memory, in bytes.
    page: usize,
}

// SAFETY: the mapping is plain memory at a fixed address for as long as the value lives; all access goes by vm-memory's volatile slices.
unsafe impl Send for Backing {}
// SAFETY: as above; `&Backing` gives out no reference to the memory, only its address.
unsafe impl Sync for Backing {}

impl Backing {
    /// Takes `size` bytes.
    ///
    /// # Errors
    /// [`MemoryError::Host`] where the host refuses, [`MemoryError::BadRange`] for a size that is zero or no multiple of the page size.
    pub fn new(size: u64, options: &RamOptions) -> Result<Self, MemoryError> {
        let page = options.huge_pages.map_or(crate::PAGE_SIZE, |huge| huge.page_size);
        let bad = |reason| MemoryError::BadRange { gpa: 0, size, reason };
        if size == 0 || !page.is_power_of_two() || !size.is_multiple_of(page) {
            return Err(bad("the size is not a whole number of pages"));
        }
        let length = usize::try_from(size).map_err(|_| bad("it is larger than the host's address space"))?;
        let what = if options.huge_pages.is_some() { "huge-page memory" } else { "memory" };
        let host = |source| {
            let mend = mend(options, &source);
            MemoryError::Host { what, size, source, mend }
        };

        let file = if options.shared { Some(memfd(size, options).map_err(host)?) } else { None };
        let alignment = usize::try_from(page).unwrap_or(LARGE_PAGE).max(LARGE_PAGE);
        let start = map_aligned(length, alignment, file.as_ref(), options).map_err(host)?;
        // SAFETY: it reads a constant of the system.
        let host_page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(LARGE_PAGE);
        let unit = options.huge_pages.map_or(0, |huge| huge.page_size as usize).max(host_page);
        let backing = Self { start, size: length, file, origin: None, page: unit };
        if options.huge_pages.is_none() && length > LARGE_PAGE {
            // What it is aligned for. A host without such pages refuses, and small ones serve. The first is left out: it holds what a machine
            // writes before its guest runs, and a guest of a few pages should not wait for 2 MiB to be cleared.
            let _ = backing.advise(LARGE_PAGE..length, libc::MADV_HUGEPAGE);
        }
        if options.prefault {
            backing.populate(usize::try_from(page).unwrap_or(LARGE_PAGE)).map_err(host)?;
        }
        Ok(backing)
    }

    /// Takes as many bytes as `file` has, which read as the file until they are written, and never change it. Nothing is read before it is needed.
    /// Nobody may make the file shorter meanwhile.
    ///
    /// # Errors
    /// As for [`Backing::new`].
    pub fn of_file(file: File) -> Result<Self, MemoryError> {
        let what = "memory from a file";
        let host = |size| move |source| MemoryError::Host { what, size, source, mend: String::new() };
        let size = file.metadata().map_err(host(0))?.len();
        let bad = |reason| MemoryError::BadRange { gpa: 0, size, reason };
        if size == 0 || !size.is_multiple_of(crate::PAGE_SIZE) {
            return Err(bad("the size is not a whole number of pages"));
        }
        let length = usize::try_from(size).map_err(|_| bad("it is larger than the host's address space"))?;
        let start = map_file(length, &file).map_err(host(size))?;
        // SAFETY: it reads a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(LARGE_PAGE);
        Ok(Self { start, size: length, file: None, origin: Some(file), page })
    }

    fn advise(&self, range: Range<usize>, advice: i32) -> io::Result<()> {
        let start = self.start.as_ptr().wrapping_add(range.start).cast();
        // SAFETY: the range is a part of the mapping, and neither advice that is given here changes its content.
        match unsafe { libc::madvise(start, range.len(), advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Takes all pages from the host, of `page` bytes at the least, before anybody else has the mapping. A signal that somebody handles is
    /// heard between two parts: the host takes all of a part first.
    fn populate(&self, page: usize) -> io::Result<()> {
        const PART: usize = 64 << 20;
        let part = page.max(PART);
        (0..self.size).step_by(part).try_for_each(|start| self.populate_part(start..self.size.min(start + part), page))
    }

    fn populate_part(&self, part: Range<usize>, page: usize) -> io::Result<()> {
        match self.advise(part.clone(), libc::MADV_POPULATE_WRITE) {
            // Linux before 5.14 does not know it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                for offset in part.step_by(page) {
                    // SAFETY: the byte lies in the mapping, and is zero already.
                    unsafe { self.start.as_ptr().wrapping_add(offset).write_volatile(0) };
                }
                Ok(())
            }
            done => done,
        }
    }

    /// The first byte's host address.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// Gives whole pages of the host within `len` bytes at `offset` back to it: they read as zeroes until they are written again.
    /// What is no whole page stays.
    ///
    /// # Errors
    /// The host's own.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let clamp = |value: u64| usize::try_from(value).unwrap_or(self.size).min(self.size);
        let begin = clamp(offset).next_multiple_of(self.page);
        let end = clamp(offset.saturating_add(len)) / self.page * self.page;
        if begin >= end {
            return Ok(());
        }
        if self.origin.is_some() {
            return self.replace(begin..end);
        }
        let advice = if self.file.is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the pages are within the mapping, and hold guest memory alone, which may change to zeroes as it may to anything.
        let result = unsafe { libc::madvise(self.start.as_ptr().wrapping_add(begin).cast(), end - begin, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Maps fresh memory, which is zeroes, in place of what came from a file.
    fn replace(&self, range: Range<usize>) -> io::Result<()> {
        let (start, length) = (self.start.as_ptr().wrapping_add(range.start), range.len());
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the pages are within the mapping, and hold guest memory alone, which may change to zeroes as it may to anything.
        let mapped = unsafe { libc::mmap(start.cast(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            // The host has no mapping left: they are zeroes all the same, though they are not given back.
            // SAFETY: as above.
            unsafe { start.write_bytes(0, length) };
        }
        Ok(())
    }

    /// Where within `len` bytes at `offset` something else than zeroes may be, in ranges that ascend, of whole pages. Nobody writes meanwhile, or
    /// what they write may be missed.
    ///
    /// # Errors
    /// The host's own.
    pub fn used(&self, offset: u64, len: u64) -> io::Result<Vec<Range<u64>>> {
        let range = offset.min(self.size())..offset.saturating_add(len).min(self.size());
        match (&self.file, &self.origin) {
            (Some(file), _) => used::data(file, range),
            (None, origin) => {
                let mut used = used::touched(self.start.as_ptr(), range.clone())?;
                if let Some(origin) = origin {
                    used.extend(used::data(origin, range)?);
                }
                Ok(used::merged(used))
            }
        }
    }

    /// The memfd behind it, if it is shared: what another process maps, from offset 0.
    #[must_use]
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and nobody can reach it without the value that is being dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// Maps `file` copy-on-write, aligned as all guest memory is.
fn map_file(size: usize, file: &File) -> io::Result<NonNull<u8>> {
    let start = map_aligned(size, LARGE_PAGE, None, &RamOptions::default())?;
    let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let (at, fd) = (start.as_ptr().cast(), file.as_raw_fd());
    // SAFETY: it replaces the mapping made above, which nobody else knows of.
    let mapped = unsafe { libc::mmap(at, size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if mapped == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::munmap(at, size) };
        return Err(error);
    }
    Ok(start)
}

fn memfd(size: u64, options: &RamOptions) -> io::Result<File> {
    let mut flags = libc::MFD_CLOEXEC;
    if let Some(huge) = options.huge_pages {
        flags |= libc::MFD_HUGETLB | (huge.page_size.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
    // SAFETY: the name is a constant C string.
    let fd = unsafe { libc::memfd_create(c"skep-ram".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// What would make the host give the memory.
fn mend(options: &RamOptions, error: &io::Error) -> String {
    if let Some(huge) = options.huge_pages {
        let offered = huge_page_sizes();
        if offered.contains(&(huge.page_size / 1024)) {
            let size = huge.page_size / 1024;
            return format!(
                " (reserve pages: /sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages; or leave hugepages= out)"
            );
        }
        let offered: Vec<_> = offered.iter().map(|kib| format!("{kib}K")).collect();
        return match offered.as_slice() {
            [] => " (this host has no huge pages: leave hugepages= out)".to_owned(),
            sizes => format!(" (this host's huge pages have {}: choose by hugepages=)", sizes.join(" or ")),
        };
    }
    match error.raw_os_error() {
        Some(libc::ENOMEM) => {
            " (choose a smaller --memory, or raise the limit: ulimit -v, cgroup, vm.overcommit_memory)".to_owned()
        }
        Some(libc::EFBIG) => " (choose a smaller --memory, or raise the limit: ulimit -f)".to_owned(),
        _ => String::new(),
    }
}

/// The sizes of this host's huge pages in KiB, the smallest first.
fn huge_page_sizes() -> Vec<u64> {
    let size = |name: String| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok();
    let pools = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = pools.filter_map(|pool| size(pool.file_name().into_string().ok()?)).collect();
    sizes.sort_unstable();
    sizes
}

/// Reserves address space for `size` bytes at a multiple of `alignment`, then maps the memory over it.
fn map_aligned(size: usize, alignment: usize, file: Option<&File>, options: &RamOptions) -> io::Result<NonNull<u8>> {
    let room = size.checked_add(alignment).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let reserve_flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping where the kernel likes, without any right to it.
    let reserved = unsafe { libc::mmap(ptr::null_mut(), room, libc::PROT_NONE, reserve_flags, -1, 0) };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = reserved.cast::<u8>().align_offset(alignment);
    let start = reserved.cast::<u8>().wrapping_add(before);
    let unmap = |from: *mut u8, length: usize| {
        if length > 0 {
            // SAFETY: a part of the reservation made above, which nobody else knows of.
            unsafe { libc::munmap(from.cast(), length) };
        }
    };

    let mut flags = libc::MAP_FIXED | libc::MAP_NORESERVE;
    flags |= if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
    if let (Some(huge), None) = (options.huge_pages, file) {
        let shift = huge.page_size.trailing_zeros().cast_signed();
        flags |= libc::MAP_HUGETLB | (shift << libc::MAP_HUGE_SHIFT);
    }
    if options.huge_pages.is_some() {
        // Without a reservation a pool that is too small shows as SIGBUS at the guest's first touch.
        flags &= !libc::MAP_NORESERVE;
    }
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: it replaces a part of the reservation made above, which nobody else knows of.
    let mapped = unsafe { libc::mmap(start.cast(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if mapped == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        unmap(reserved.cast(), room);
        return Err(error);
    }
    unmap(reserved.cast(), before);
    unmap(start.wrapping_add(size), room - before - size);
    NonNull::new(start).ok_or_else(|| io::Error::other("the host maps guest memory at address 0"))
}
