//! The host's calls.
#![allow(unsafe_code)] // preadv2 and pwritev2 take pieces of guest memory by their addresses.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, Timespec, Timestamps, UTIME_OMIT};

use super::job::Step;

/// What direct and other I/O on a file must keep to.
pub(crate) struct Geometry {
    pub(crate) block_size: u32,
    pub(crate) preferred_size: u32,
    pub(crate) memory_alignment: usize,
    pub(crate) discard: bool,
}

/// The smallest block that any disk has.
const SECTOR: u32 = 512;
/// What direct I/O asks for at most, where the host does not say.
const CAUTIOUS: u32 = 4096;

/// Measures `file`.
pub(crate) fn geometry(file: &File, device: bool, direct: bool) -> io::Result<Geometry> {
    let metadata = file.metadata()?;
    let (mut block_size, mut memory_alignment) = (SECTOR, 1);
    let mut preferred_size = u32::try_from(metadata.blksize()).unwrap_or(CAUTIOUS).clamp(SECTOR, 1 << 20);
    if device {
        block_size = rustix::fs::ioctl_blksszget(file)?;
        preferred_size = rustix::fs::ioctl_blkpbszget(file)?;
    }
    if direct {
        let (memory, offset) = direct_alignment(file)?;
        memory_alignment = memory as usize;
        block_size = block_size.max(offset);
    }
    let block_size = block_size.max(SECTOR).next_power_of_two();
    let discard = if device { device_discards(metadata.rdev()) } else { file_discards(file, &metadata) };
    let preferred_size = preferred_size.next_power_of_two().max(block_size);
    Ok(Geometry { block_size, preferred_size, memory_alignment, discard })
}

/// What direct I/O asks for: the alignment of memory and of offsets.
fn direct_alignment(file: &File) -> io::Result<(u32, u32)> {
    let asked = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, asked)?;
    let told = found.stx_mask & libc::STATX_DIOALIGN != 0 && found.stx_dio_offset_align != 0;
    let cautious = (CAUTIOUS, CAUTIOUS);
    Ok(if told {
        (found.stx_dio_mem_align.max(1).next_power_of_two(), found.stx_dio_offset_align.next_power_of_two())
    } else {
        cautious
    })
}

/// Whether holes can be punched: tried behind the end, where there is nothing to lose.
fn file_discards(file: &File, before: &Metadata) -> bool {
    let behind = before.size().next_multiple_of(u64::from(CAUTIOUS));
    let can = rustix::fs::fallocate(file, punch(), behind, CAUTIOUS.into()).is_ok();
    // The host takes that for a change. Nothing has changed, and a snapshot knows its disks by the time of their last one.
    let time = |it: &Metadata| Timespec { tv_sec: it.mtime(), tv_nsec: it.mtime_nsec() };
    if file.metadata().is_ok_and(|now| time(&now) != time(before)) {
        let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        // Who may write the file, and has not made it, may not: then it stays as if it had been written.
        let _ = rustix::fs::futimens(file, &Timestamps { last_access, last_modification: time(before) });
    }
    can
}

/// Whether a block device can drop blocks so that they read as zeroes.
fn device_discards(device: u64) -> bool {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let limit =
        |queue| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/write_zeroes_max_bytes"));
    // A partition's limits are its disk's.
    let told = limit("queue").or_else(|_| limit("../queue"));
    told.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
}

/// Deallocates and keeps the size.
pub(crate) fn punch() -> FallocateFlags {
    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
}

/// Writes zeroes and keeps both size and allocation.
pub(crate) fn zero_range() -> FallocateFlags {
    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
}

/// Reads what can be read without waiting.
pub(crate) fn read_now(file: &File, iovecs: &[libc::iovec], offset: u64) -> i64 {
    preadv2(file, iovecs, offset, libc::RWF_NOWAIT)
}

/// Runs a step to its end; the result is as the kernel gives it, a negative error number or a count.
pub(super) fn run(file: &File, step: &Step<'_>) -> i64 {
    let of = |result: rustix::io::Result<()>| result.map_or_else(|error| -i64::from(error.raw_os_error()), |()| 0);
    match step {
        Step::Read { iovecs, offset } => preadv2(file, iovecs, *offset, 0),
        Step::Write { iovecs, offset, dsync } => {
            pwritev2(file, iovecs, *offset, if *dsync { libc::RWF_DSYNC } else { 0 })
        }
        Step::Sync => of(rustix::fs::fdatasync(file)),
        Step::Allocate { mode, offset, len } => of(rustix::fs::fallocate(file, *mode, *offset, *len)),
    }
}

pub(crate) fn preadv2(file: &File, iovecs: &[libc::iovec], offset: u64, flags: i32) -> i64 {
    // SAFETY: the pieces belong to a buffer that its job holds for the length of the call.
    let result = unsafe {
        libc::syscall(libc::SYS_preadv2, file.as_raw_fd(), iovecs.as_ptr(), iovecs.len(), offset, 0u64, flags)
    };
    returned(result)
}

pub(crate) fn pwritev2(file: &File, iovecs: &[libc::iovec], offset: u64, flags: i32) -> i64 {
    // SAFETY: the pieces belong to a buffer that its job holds for the length of the call.
    let result = unsafe {
        libc::syscall(libc::SYS_pwritev2, file.as_raw_fd(), iovecs.as_ptr(), iovecs.len(), offset, 0u64, flags)
    };
    returned(result)
}

fn returned(result: libc::c_long) -> i64 {
    if result < 0 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { result }
}
