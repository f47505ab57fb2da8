//! Memory that the devices reach, and accesses to it that the compiler leaves as they are.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::disk::MOST_BYTES;

/// Buffers of two devices, and a MiB for all their queues.
const SIZE: usize = (2 * MOST_BYTES + (1 << 20)) as usize;
/// The size of a page, which all queues are aligned to.
pub const PAGE: u64 = 4096;

#[repr(C, align(4096))]
struct Space(UnsafeCell<[u8; SIZE]>);

// SAFETY: it is only given out in parts, each once.
unsafe impl Sync for Space {}

#[unsafe(link_section = ".noinit")]
static SPACE: Space = Space(UnsafeCell::new([0; SIZE]));
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What is left of the memory for devices.
pub struct Pool {
    next: u64,
    end: u64,
}

impl Pool {
    /// All of it, once.
    pub fn new() -> Self {
        let base = SPACE.0.get() as u64;
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Self { next: base, end: base };
        }
        let end = base + SIZE as u64;
        crate::machine::map(base, SIZE as u64);
        Self { next: base, end }
    }

    /// Takes whole pages of zeroes.
    pub fn take(&mut self, size: u64) -> Result<u64, &'static str> {
        let (at, next) = (self.next, self.next + size.next_multiple_of(PAGE));
        if next > self.end {
            return Err("there is no memory left for its queues");
        }
        self.next = next;
        // SAFETY: the part is the caller's from now on, and was nobody's before.
        unsafe { core::ptr::write_bytes(at as *mut u8, 0, (next - at) as usize) };
        Ok(at)
    }
}

/// Reads what a device may have written, at an address in what [`Pool::take`] gave.
pub fn get<T: Copy>(address: u64) -> T {
    // SAFETY: the address is in the pool, and aligned as all queues are.
    unsafe { (address as *const T).read_volatile() }
}

/// Writes for a device, as [`get`].
pub fn put<T: Copy>(address: u64, value: T) {
    // SAFETY: as in `get`; what lies there belongs to the caller.
    unsafe { (address as *mut T).write_volatile(value) };
}
