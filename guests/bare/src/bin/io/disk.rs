//! What the two kinds of disks have in common.

/// Requests in flight at most.
pub const MOST_DEPTH: u32 = 64;
/// Bytes of all their buffers at most.
pub const MOST_BYTES: u64 = 8 << 20;
/// The unit of addresses in a job.
pub const SECTOR: u64 = 512;

/// A disk with one queue that is polled.
pub trait Disk {
    /// How many bytes it holds.
    fn bytes(&self) -> u64;

    /// The bytes that an access is a multiple of.
    fn block(&self) -> u64;

    /// The most bytes of one access.
    fn most(&self) -> u64;

    /// Where the buffers begin: [`MOST_BYTES`].
    fn buffers(&self) -> u64;

    /// Says that from now on the buffer of each of `depth` slots lies `stride` bytes behind the one before, and has `length` bytes.
    fn prepare(&mut self, depth: u32, stride: u64, length: u64);

    /// Queues an access of the prepared length at byte `offset`, for a slot that is free. The device sees it after [`Disk::ring`].
    fn queue(&mut self, slot: u32, write: bool, offset: u64);

    /// Shows the device what was queued, and rings its doorbell if it wants that.
    fn ring(&mut self);

    /// Calls `done` with each slot whose access has ended, and whether it succeeded. Says how many there were.
    fn reap(&mut self, done: impl FnMut(u32, bool)) -> u32;

    /// How often a doorbell was rung.
    fn bells(&self) -> u64;

    /// Whether the device lets its doorbells be left alone while it is busy.
    fn is_quiet(&self) -> bool;
}
