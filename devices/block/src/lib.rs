//! The host's side of disks: what a disk device of the guest reads and writes, whatever bus it sits on.
//!
//! * [`Disk`] is one image, shared by all queues of the device before it. [`DiskQueue`] is one worker's way to it: requests are submitted in
//!   batches, completions reaped, and nothing in between waits. [`Buffer`] is the guest's memory that a request moves, without a copy.
//! * [`FileDisk`] is a raw image or a block device, by io_uring, or by threads where the host refuses io_uring ([`Engine`]). The format of an
//!   image is never guessed from its content, which the guest writes.
//! * [`Qcow2Disk`] is a qcow2 image, with the images behind it, by threads. [`mod@image`] makes, describes, converts and checks images.
//! * [`ClosingDisk`] closes an image by a thread of its own: a qcow2 image writes its tables then, and a host that hangs holds nobody up.
//! * [`LimitedDisk`] holds requests back, so that a disk does no more than so many of them, or bytes, in a second (`skep_worker::Limiter`).
//! * [`testing`] has a disk in memory, and one that fails as it is told: errors, torn and short transfers, reordering, hangs.
//!
//! A completion says that the whole request is done, or why it is not; a short transfer by the host is continued here.
//!
//! qcow2 follows QEMU's docs/interop/qcow2.txt, versions 2 and 3. Of it there is no encryption, no external data file, no extended level 2 entries, no
//! compression but deflate: such images are refused by name. Images are not resized, internal snapshots neither made nor gone back to.
//!
//! What it does not do: cache (the host's page cache does, unless it is asked not to), and locks against another host (a network file
//! system's locks do what that file system says).

mod borrow;
mod buffer;
mod closing;
mod disk;
mod error;
mod file;
mod gather;
pub mod image;
mod limit;
mod now;
mod qcow2;
mod storage;
pub mod testing;
mod threads;

pub use buffer::{Buffer, NotRam};
pub use closing::ClosingDisk;
pub use disk::{
    Completion, Disk, DiskInfo, DiskQueue, ImageDisk, Operation, Request, ResizeListener, ResizeNotices,
    ResizeSubscription,
};
pub use error::{BlockError, IoError};
pub use file::{Engine, FileDisk, FileOptions, Locking};
pub use limit::LimitedDisk;
pub use qcow2::Qcow2Disk;

/// What the fuzzer calls (see `fuzz/`).
#[cfg(fuzzing)]
#[allow(missing_docs)] // Each says beside its body what it shows.
pub mod fuzz {
    pub use crate::qcow2::test::fuzz_hostile_images_are_read_and_written as qcow2_images;
}
