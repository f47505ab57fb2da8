//! The identity map, which grows by 2 MiB pages as addresses are named.
//!
//! Building tables for all of memory would cost more instructions than everything else that is done before the first output, and large
//! pages of 1 GiB are not to be had on every CPU.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Present, writable, user.
const TABLE: u64 = 7;
/// A large page, present, writable, user.
const PAGE: u64 = 0x87;
const PAGE_SIZE: u64 = 0x20_0000;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Addresses from here on have bits that an identity map in the lower half can't have.
const END: u64 = 1 << 47;

type Table = [AtomicU64; 512];

#[repr(C, align(4096))]
struct Pool([Table; 64]);

#[unsafe(link_section = ".bss.pages")]
static POOL: Pool = Pool([const { [const { AtomicU64::new(0) }; 512] }; 64]);
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    static page_map: Table;
}

/// A pointer to `address`, which is mapped if it can be.
pub fn pointer<T>(address: u64) -> *mut T {
    map(address, size_of::<T>() as u64);
    address as *mut T
}

/// Read a register of a device.
///
/// # Safety
///
/// A device is there, and the read breaks nothing.
pub unsafe fn read32(address: u64) -> u32 {
    // SAFETY: the caller's.
    unsafe { pointer::<u32>(address).read_volatile() }
}

/// Write a register of a device.
///
/// # Safety
///
/// A device is there, and the write breaks nothing.
pub unsafe fn write32(address: u64, value: u32) {
    // SAFETY: the caller's.
    unsafe { pointer::<u32>(address).write_volatile(value) };
}

/// Map the pages that hold `length` bytes at `address`, as far as there are tables left; an access to what is not mapped faults.
pub fn map(address: u64, length: u64) {
    let end = address.saturating_add(length.saturating_sub(1));
    let mut page = address & !(PAGE_SIZE - 1);
    while page <= end && page < END {
        if !map_page(page) {
            return;
        }
        page += PAGE_SIZE;
    }
}

fn map_page(address: u64) -> bool {
    // SAFETY: the boot code's table, which is only ever changed through these atomics.
    let map = unsafe { &page_map };
    let Some(directories) = table_below(&map[index(address, 39)]) else { return false };
    let Some(directory) = table_below(&directories[index(address, 30)]) else { return false };
    let entry = &directory[index(address, 21)];
    if entry.load(Ordering::Acquire) == 0 {
        entry.store(address | PAGE, Ordering::Release);
    }
    true
}

fn index(address: u64, shift: u32) -> usize {
    (address >> shift) as usize & 511
}

/// The table that `entry` points to; one from the pool if it points to none.
fn table_below(entry: &AtomicU64) -> Option<&'static Table> {
    let mut value = entry.load(Ordering::Acquire);
    if value == 0 {
        let fresh = POOL.0.get(POOL_USED.fetch_add(1, Ordering::Relaxed))?;
        let mine = fresh.as_ptr() as u64 | TABLE;
        // Another CPU may have been faster; the table taken in vain is lost, which is harmless.
        value = match entry.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => mine,
            Err(theirs) => theirs,
        };
    }
    // SAFETY: an entry that is present points to a table of the boot code or of the pool, both of which live for ever.
    Some(unsafe { &*((value & ADDRESS) as *const Table) })
}
