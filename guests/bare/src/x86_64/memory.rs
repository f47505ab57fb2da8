//! The identity map, which grows by 2 MiB pages as addresses are named.
//!
//! Building tables for all of memory would cost more instructions than everything else that is done before the first output, and large
//! pages of 1 GiB are not to be had on every CPU.

use core::arch::asm;
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

/// Read a value wherever it lies, aligned or not.
pub fn read<T: Copy>(address: u64) -> T {
    // SAFETY: firmware's tables are memory; what is not mapped there is by now.
    unsafe { pointer::<T>(address).read_unaligned() }
}

/// `length` bytes of a table.
pub fn bytes(address: u64, length: u64) -> &'static [u8] {
    map(address, length);
    // SAFETY: as in `read`. Nothing writes to the tables.
    unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) }
}

// Registers of devices are accessed by plain moves, so that a hypervisor need not decode more: a compiler may choose others.
macro_rules! accessors {
    ($($read:ident, $write:ident: $type:ty, $class:ident, $load:literal, $store:literal;)*) => {$(
        /// Read a register of a device, as wide as the name says.
        ///
        /// # Safety
        ///
        /// A device is there, and the read breaks nothing.
        pub unsafe fn $read(address: u64) -> $type {
            let value: $type;
            let place = pointer::<$type>(address);
            // SAFETY: the caller's.
            unsafe { asm!($load, value = out($class) value, place = in(reg) place, options(nostack, preserves_flags)) };
            value
        }

        /// Write a register of a device, as wide as the name says.
        ///
        /// # Safety
        ///
        /// A device is there, and the write breaks nothing.
        pub unsafe fn $write(address: u64, value: $type) {
            let place = pointer::<$type>(address);
            // SAFETY: the caller's.
            unsafe { asm!($store, value = in($class) value, place = in(reg) place, options(nostack, preserves_flags)) };
        }
    )*};
}

accessors! {
    read8, write8: u8, reg_byte, "mov {value}, [{place}]", "mov [{place}], {value}";
    read16, write16: u16, reg, "mov {value:x}, [{place}]", "mov [{place}], {value:x}";
    read32, write32: u32, reg, "mov {value:e}, [{place}]", "mov [{place}], {value:e}";
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
