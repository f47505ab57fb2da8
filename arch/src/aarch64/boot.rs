//! Booting a kernel without firmware ("Booting AArch64 Linux"): what goes where in memory, and the registers it starts
//! with.

use skep_hypervisor::ArchKind;
use skep_hypervisor::aarch64::BootState;
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::layout::Layout;
use crate::kernel::{Image, Kernel, KernelError, LoadError, Source, copy_in};
use crate::layout::{AddressRange, GIB, MIB, align_up};

/// Largest device tree that a kernel takes; it stands at the start of this much, aligned to as much.
pub const FDT_MAX: u64 = 2 * MIB;
/// Command line bytes that Linux takes, without the terminating zero.
pub const CMDLINE_MAX: usize = 2047;
/// The initramfs and the kernel lie in one window of this size.
const INITRD_WINDOW: u64 = 32 * GIB;

/// Where a kernel, its device tree and its initramfs stand. They follow each other from the base of RAM, so that a
/// guest that needs little memory touches little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The kernel with its zeroed data. Its first address is the entry point.
    pub kernel: AddressRange,
    /// Room for the device tree.
    pub fdt: AddressRange,
    /// The initramfs.
    pub initrd: Option<AddressRange>,
}

impl Placement {
    /// Places `kernel` and `initrd` bytes of initramfs (see [`initrd_length`](crate::kernel::initrd_length)).
    ///
    /// # Errors
    /// [`LoadError`], which says what does not fit, and what would do.
    pub fn new(kernel: &Kernel, initrd: Option<u64>, layout: &Layout) -> Result<Self, LoadError> {
        let ram = layout.ram[0];
        let image = of_aarch64(kernel)?;
        let too_large = |needs| LoadError::KernelTooLarge { needs: needs - ram.base, has: ram.size };
        let kernel = image.region(ram.base).ok_or(too_large(u64::MAX))?;
        let fdt = align_up(kernel.end(), FDT_MAX).and_then(|base| base.checked_add(FDT_MAX)).unwrap_or(u64::MAX);
        if fdt > ram.end() {
            return Err(too_large(fdt));
        }
        let fdt = AddressRange::between(fdt - FDT_MAX, fdt);
        let room = AddressRange::between(fdt.end(), ram.end().min(ram.base + INITRD_WINDOW).max(fdt.end()));
        let initrd = match initrd {
            Some(size) if size > room.size => return Err(LoadError::InitrdTooLarge { size, room: room.size }),
            Some(size) => Some(AddressRange::new(room.base, size)),
            None => None,
        };
        Ok(Self { kernel, fdt, initrd })
    }

    /// Reads the kernel and the initramfs to their places.
    ///
    /// # Errors
    /// [`LoadError`] if a file can't be read, or is broken further on.
    pub fn load<M, K, I>(
        &self,
        kernel: &Kernel,
        file: &mut K,
        initrd: Option<&mut I>,
        memory: &M,
    ) -> Result<(), LoadError>
    where
        M: GuestMemory + ?Sized,
        K: Source,
        I: Source,
    {
        of_aarch64(kernel)?.load(file, memory, self.kernel)?;
        match (initrd, self.initrd) {
            (Some(initrd), Some(region)) => {
                copy_in(memory, region.base, initrd, 0, region.size).map_err(LoadError::of_initrd)
            }
            _ => Ok(()),
        }
    }

    /// Writes the device tree to its place.
    ///
    /// # Errors
    /// [`LoadError::FdtTooLarge`].
    pub fn write_fdt<M: GuestMemory + ?Sized>(&self, fdt: &[u8], memory: &M) -> Result<(), LoadError> {
        if fdt.len() as u64 > self.fdt.size {
            return Err(LoadError::FdtTooLarge { size: fdt.len(), limit: self.fdt.size });
        }
        Ok(memory.write_slice(fdt, GuestAddress(self.fdt.base))?)
    }

    /// The first vCPU's registers. The others are off until PSCI turns them on.
    pub fn boot_state(&self) -> BootState {
        BootState { pc: self.kernel.base, x: [self.fdt.base, 0, 0, 0] }
    }
}

/// That the kernel takes the command line.
///
/// # Errors
/// If it is too long or contains a zero byte.
pub fn check_cmdline(cmdline: &[u8]) -> Result<(), LoadError> {
    if cmdline.contains(&0) {
        return Err(LoadError::CmdlineZero);
    }
    if cmdline.len() > CMDLINE_MAX {
        return Err(LoadError::CmdlineTooLong { length: cmdline.len(), limit: CMDLINE_MAX });
    }
    Ok(())
}

fn of_aarch64(kernel: &Kernel) -> Result<&Image, KernelError> {
    match kernel {
        Kernel::Image(image) => Ok(image),
        Kernel::BzImage(_) | Kernel::Elf(_) => Err(KernelError::wrong(ArchKind::X86_64, ArchKind::Aarch64)),
    }
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod test;
