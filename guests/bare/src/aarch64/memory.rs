//! The identity map of the boot code.

use core::arch::asm;

/// A pointer to `address`, below 512 GiB.
pub fn pointer<T>(address: u64) -> *mut T {
    address as *mut T
}

// Registers of devices are accessed by plain loads and stores, so that a hypervisor need not decode the instruction: a compiler may choose others.
macro_rules! accessors {
    ($($read:ident, $write:ident: $type:ty, $load:literal, $store:literal;)*) => {$(
        /// Read a register of a device, as wide as the name says.
        ///
        /// # Safety
        ///
        /// A device is there, and the read breaks nothing.
        pub unsafe fn $read(address: u64) -> $type {
            let value: $type;
            // SAFETY: the caller's.
            unsafe { asm!($load, value = out(reg) value, address = in(reg) address, options(nostack, preserves_flags)) };
            value
        }

        /// Write a register of a device, as wide as the name says.
        ///
        /// # Safety
        ///
        /// A device is there, and the write breaks nothing.
        pub unsafe fn $write(address: u64, value: $type) {
            // SAFETY: the caller's.
            unsafe { asm!($store, value = in(reg) value, address = in(reg) address, options(nostack, preserves_flags)) };
        }
    )*};
}

accessors! {
    read8, write8: u8, "ldrb {value:w}, [{address}]", "strb {value:w}, [{address}]";
    read16, write16: u16, "ldrh {value:w}, [{address}]", "strh {value:w}, [{address}]";
    read32, write32: u32, "ldr {value:w}, [{address}]", "str {value:w}, [{address}]";
    read64, write64: u64, "ldr {value}, [{address}]", "str {value}, [{address}]";
}
