//! The identity map of the boot code.

/// A pointer to `address`, below 512 GiB.
pub fn pointer<T>(address: u64) -> *mut T {
    address as *mut T
}

/// Read a register of a device.
///
/// # Safety
///
/// A device is there, or nothing.
pub unsafe fn read32(address: u64) -> u32 {
    let value;
    // SAFETY: the caller's. A plain load, so that a hypervisor need not decode it.
    unsafe { core::arch::asm!("ldr {:w}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Write a register of a device.
///
/// # Safety
///
/// A device is there, and the write breaks nothing.
pub unsafe fn write32(address: u64, value: u32) {
    // SAFETY: as in `read32`.
    unsafe { core::arch::asm!("str {:w}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
}

/// Read a register of 8 bytes of a device.
///
/// # Safety
///
/// As for [`read32`].
pub unsafe fn read64(address: u64) -> u64 {
    let value;
    // SAFETY: as in `read32`.
    unsafe { core::arch::asm!("ldr {}, [{}]", out(reg) value, in(reg) address, options(nostack, preserves_flags)) };
    value
}

/// Write a register of 8 bytes of a device.
///
/// # Safety
///
/// As for [`write32`].
pub unsafe fn write64(address: u64, value: u64) {
    // SAFETY: as in `read32`.
    unsafe { core::arch::asm!("str {}, [{}]", in(reg) value, in(reg) address, options(nostack, preserves_flags)) };
}
