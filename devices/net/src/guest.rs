//! Scattered guest memory in system calls, and copies of it.
#![allow(unsafe_code)] // Guest memory is handed to the kernel by its host address.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use std::sync::LazyLock;

use skep_memory::DirtyBits;
use skep_memory::vm_memory::VolatileSlice;
use skep_memory::vm_memory::bitmap::Bitmap;

use crate::link::GuestSlice;

/// For memory that is not the guest's, and that nobody follows.
static UNTRACKED: LazyLock<DirtyBits> = LazyLock::new(DirtyBits::default);

/// The most pieces that the kernel takes at once (`IOV_MAX`).
const MOST: usize = 1024;

fn iovecs(slices: &[GuestSlice<'_>]) -> Vec<libc::iovec> {
    let iovec =
        |slice: &GuestSlice<'_>| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
    slices.iter().take(MOST).map(iovec).collect()
}

fn length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `readv` into guest memory. What the kernel has more than room for shows by a length that is larger.
pub(crate) fn read(fd: BorrowedFd<'_>, into: &[GuestSlice<'_>]) -> io::Result<usize> {
    let mut more = 0u8;
    let mut iovecs = iovecs(into.get(..MOST - 1).unwrap_or(into));
    iovecs.push(libc::iovec { iov_base: (&raw mut more).cast(), iov_len: 1 });
    // SAFETY: the pieces are guest memory that the slices keep mapped during the call, which skep accesses by volatile copies only; the last
    // is a byte of this function's own.
    let read = length(unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) })?;
    let mut left = read;
    for slice in into {
        let here = left.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        left -= here;
    }
    Ok(read)
}

/// `writev` from guest memory.
pub(crate) fn write(fd: BorrowedFd<'_>, from: &[GuestSlice<'_>]) -> io::Result<usize> {
    let iovecs = iovecs(from);
    // SAFETY: as for `read`; the kernel copies what it is given.
    length(unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) })
}

/// How many bytes the pieces have.
pub(crate) fn len(slices: &[GuestSlice<'_>]) -> usize {
    slices.iter().map(|slice| slice.len()).sum()
}

/// Copies bytes, which are in parts, into guest memory as far as there is room, and says how many there are.
pub(crate) fn copy_in(parts: &[&[u8]], into: &[GuestSlice<'_>]) -> usize {
    let mut pieces = into.iter();
    let mut room = pieces.next().cloned();
    for part in parts {
        let mut from = *part;
        while let (Some(piece), false) = (&room, from.is_empty()) {
            let (here, rest) = from.split_at(from.len().min(piece.len()));
            piece.copy_from(here);
            from = rest;
            room = match piece.offset(here.len()) {
                Ok(left) if !left.is_empty() => Some(left),
                _ => pieces.next().cloned(),
            };
        }
    }
    parts.iter().map(|part| part.len()).sum()
}

/// Appends what guest memory holds from byte `skip` on.
pub(crate) fn copy_out(from: &[GuestSlice<'_>], mut skip: usize, into: &mut Vec<u8>) {
    for slice in from {
        let Ok(part) = slice.offset(skip.min(slice.len())) else { continue };
        skip -= skip.min(slice.len());
        let begin = into.len();
        into.resize(begin + part.len(), 0);
        if let Some(place) = into.get_mut(begin..) {
            part.copy_to(place);
        }
    }
}

/// Memory of a card's own as a piece that a network takes.
pub fn own_memory(buffer: &mut [u8]) -> GuestSlice<'_> {
    // SAFETY: the piece borrows the buffer exclusively for as long as it lives.
    unsafe { VolatileSlice::with_bitmap(buffer.as_mut_ptr(), buffer.len(), UNTRACKED.slice_at(0), None) }
}
