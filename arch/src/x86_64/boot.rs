//! Booting a kernel without firmware: what goes where in memory, and the registers it starts with.

use skep_hypervisor::ArchKind;
use skep_hypervisor::x86_64::{BootState, DescriptorTable, GeneralRegisters, Segment, SystemRegisters};
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemory};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::boot_params::{BootParams, LOADER_UNDEFINED, RngSeed, SetupHeader};
use super::e820::memory_map;
use super::layout::{EXTENDED, Layout, boot};
use super::pvh::{MemoryMapEntry, Module, StartInfo};
use crate::kernel::{BzImage, Elf, Kernel, KernelError, LoadError, Source, copy_in, initrd_length};
use crate::layout::{AddressRange, GIB, KIB, MIB, align_down, align_up};

/// How an ELF kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// In long mode, with `boot_params` in RSI.
    Linux64,
    /// In 32-bit protected mode, with the start info in EBX.
    Pvh,
}

/// What a kernel is booted with, besides its file and the initramfs'.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The machine's layout.
    pub layout: &'a Layout,
    /// The command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Where the ACPI tables are ([`Layout::acpi_tables`]).
    pub tables: Option<AddressRange>,
    /// Address of the RSDP.
    pub rsdp: Option<u64>,
    /// Seeds the kernel's random number generator, where the protocol can hand it over.
    pub rng_seed: Option<[u8; 32]>,
    /// How an ELF kernel is entered. `None` takes PVH where the file has an entry point for it.
    pub protocol: Option<Protocol>,
    /// Whether all guest memory is known to be zero.
    pub memory_is_zero: bool,
}

/// Where a loaded kernel begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How it is entered.
    pub protocol: Protocol,
    /// Address of the first instruction.
    pub address: u64,
}

/// Reads `kernel`, whose file is `file`, and `initrd` into memory, and writes what the boot protocol hands over.
///
/// # Errors
/// [`LoadError`], which says what does not fit, and what would do.
pub fn load<M, K, I>(
    kernel: &Kernel,
    file: &mut K,
    initrd: Option<&mut I>,
    memory: &M,
    setup: &Setup<'_>,
) -> Result<Entry, LoadError>
where
    M: GuestMemory + ?Sized,
    K: Source,
    I: Source,
{
    if setup.cmdline.contains(&0) {
        return Err(LoadError::CmdlineZero);
    }
    let loader = Loader { memory, setup };
    match kernel {
        Kernel::BzImage(kernel) => loader.bzimage(kernel, file, initrd),
        Kernel::Elf(kernel) => loader.elf(kernel, file, initrd),
        Kernel::Image(_) => Err(KernelError::wrong(ArchKind::Aarch64, ArchKind::X86_64).into()),
    }
}

struct Loader<'a, M: ?Sized> {
    memory: &'a M,
    setup: &'a Setup<'a>,
}

impl<M: GuestMemory + ?Sized> Loader<'_, M> {
    fn bzimage<K, I>(&self, kernel: &BzImage, file: &mut K, initrd: Option<&mut I>) -> Result<Entry, LoadError>
    where
        K: Source,
        I: Source,
    {
        let header = kernel.header();
        self.check_cmdline(match header.cmdline_size.get() {
            0 => 255,
            limit => limit as usize,
        })?;
        self.check_kernel(kernel.region())?;
        kernel.load(file, self.memory)?;
        let initrd = self.load_initrd(initrd, kernel.region(), u64::from(header.initrd_addr_max.get()) + 1)?;
        self.linux64(header.clone(), initrd)?;
        Ok(Entry { protocol: Protocol::Linux64, address: kernel.entry() })
    }

    fn elf<K, I>(&self, kernel: &Elf, file: &mut K, initrd: Option<&mut I>) -> Result<Entry, LoadError>
    where
        K: Source,
        I: Source,
    {
        let header = SetupHeader::synthetic();
        self.check_cmdline(header.cmdline_size.get() as usize)?;
        let protocol = match (self.setup.protocol, kernel.pvh_entry()) {
            (None | Some(Protocol::Pvh), Some(entry)) => Entry { protocol: Protocol::Pvh, address: entry.into() },
            (None | Some(Protocol::Linux64), _) => {
                let no_entry =
                    KernelError::Malformed("an ELF entry point outside the physical addresses that are loaded");
                Entry { protocol: Protocol::Linux64, address: kernel.entry().ok_or(no_entry)? }
            }
            (Some(Protocol::Pvh), None) => {
                return Err(KernelError::Unsupported {
                    what: "an ELF file without a PVH entry point".to_owned(),
                    mend: "take a kernel built with CONFIG_PVH, or enter it by Linux's 64-bit protocol",
                }
                .into());
            }
        };
        self.check_kernel(kernel.region())?;
        kernel.load(file, self.memory, self.setup.memory_is_zero)?;
        let initrd = self.load_initrd(initrd, kernel.region(), u64::from(header.initrd_addr_max.get()) + 1)?;
        match protocol.protocol {
            Protocol::Linux64 => self.linux64(header, initrd)?,
            Protocol::Pvh => self.pvh(initrd)?,
        }
        Ok(protocol)
    }

    fn write<T: IntoBytes + Immutable + ?Sized>(&self, value: &T, base: u64) -> Result<(), LoadError> {
        Ok(self.memory.write_slice(value.as_bytes(), GuestAddress(base))?)
    }

    fn check_cmdline(&self, kernels: usize) -> Result<(), LoadError> {
        let limit = kernels.min(boot::CMDLINE.size as usize - 1);
        let length = self.setup.cmdline.len();
        if length > limit { Err(LoadError::CmdlineTooLong { length, limit }) } else { Ok(()) }
    }

    /// End of the low RAM that is not kept for ACPI tables.
    fn low_end(&self) -> u64 {
        let end = self.setup.layout.low_ram().end();
        self.setup.tables.map(|tables| tables.base).filter(|&base| base >= EXTENDED).map_or(end, |base| base.min(end))
    }

    fn check_kernel(&self, region: AddressRange) -> Result<(), LoadError> {
        if region.base < EXTENDED || region.base >= 4 * GIB {
            return Err(LoadError::KernelMisplaced { base: region.base, end: region.end(), first: EXTENDED });
        }
        if region.end() > self.low_end() {
            return Err(LoadError::KernelTooLarge { needs: region.end(), has: self.low_end() });
        }
        Ok(())
    }

    /// Reads the initramfs as high as it may stand.
    fn load_initrd<I: Source>(
        &self,
        initrd: Option<&mut I>,
        kernel: AddressRange,
        max: u64,
    ) -> Result<Option<AddressRange>, LoadError> {
        let Some(initrd) = initrd else { return Ok(None) };
        let size = initrd_length(initrd)?;
        let first = align_up(kernel.end(), 4 * KIB).unwrap_or(u64::MAX);
        let end = align_down(max.min(self.low_end()), 4 * KIB);
        let room = end.saturating_sub(first);
        if size > room {
            return Err(LoadError::InitrdTooLarge { size, room });
        }
        let region = AddressRange::new(align_down(end - size, 4 * KIB), size);
        copy_in(self.memory, region.base, initrd, 0, size).map_err(LoadError::of_initrd)?;
        Ok(Some(region))
    }

    fn write_cmdline(&self) -> Result<(), LoadError> {
        self.write(self.setup.cmdline, boot::CMDLINE.base)?;
        self.write(&0u8, boot::CMDLINE.base + self.setup.cmdline.len() as u64)
    }

    fn linux64(&self, mut header: SetupHeader, initrd: Option<AddressRange>) -> Result<(), LoadError> {
        self.write_cmdline()?;
        header.type_of_loader = LOADER_UNDEFINED;
        header.cmd_line_ptr = (boot::CMDLINE.base as u32).into();
        let initrd = initrd.unwrap_or(AddressRange::new(0, 0));
        header.ramdisk_image = (initrd.base as u32).into();
        header.ramdisk_size = (initrd.size as u32).into();
        header.setup_data = 0.into();
        if let Some(seed) = self.setup.rng_seed {
            self.write(&RngSeed::new(seed), boot::SETUP_DATA.base)?;
            header.setup_data = boot::SETUP_DATA.base.into();
        }
        let mut params = BootParams::new_zeroed();
        params.header = header;
        params.acpi_rsdp_addr = self.setup.rsdp.unwrap_or(0).into();
        let map = memory_map(self.setup.layout, self.setup.tables);
        params.e820_entries = map.len() as u8;
        for (slot, entry) in params.e820_table.iter_mut().zip(map) {
            *slot = entry;
        }
        self.write(&params, boot::ZERO_PAGE.base)?;
        self.write(&LINUX_GDT, boot::GDT.base)?;
        self.page_tables()
    }

    /// Maps the first 4 GiB to themselves, by pages of 2 MiB.
    fn page_tables(&self) -> Result<(), LoadError> {
        const PRESENT_WRITABLE: u64 = 0b11;
        const LARGE: u64 = 1 << 7;
        const TABLE: u64 = 4 * KIB;
        let pml4 = boot::PAGE_TABLES.base;
        let (pdpt, directories) = (pml4 + TABLE, pml4 + 2 * TABLE);
        self.write(&(pdpt | PRESENT_WRITABLE), pml4)?;
        for gib in 0..4 {
            let directory = directories + gib * TABLE;
            self.write(&(directory | PRESENT_WRITABLE), pdpt + gib * 8)?;
            let entries: [u64; 512] =
                std::array::from_fn(|i| (gib * GIB + i as u64 * 2 * MIB) | LARGE | PRESENT_WRITABLE);
            self.write(&entries, directory)?;
        }
        Ok(())
    }

    fn pvh(&self, initrd: Option<AddressRange>) -> Result<(), LoadError> {
        self.write_cmdline()?;
        let modules = boot::PVH.base + size_of::<StartInfo>() as u64;
        let map_base = modules + size_of::<Module>() as u64;
        let mut info = StartInfo::new();
        info.cmdline_paddr = boot::CMDLINE.base.into();
        info.rsdp_paddr = self.setup.rsdp.unwrap_or(0).into();
        if let Some(initrd) = initrd {
            let module = Module { paddr: initrd.base.into(), size: initrd.size.into(), ..Module::new_zeroed() };
            self.write(&module, modules)?;
            info.nr_modules = 1.into();
            info.modlist_paddr = modules.into();
        }
        let map: Vec<MemoryMapEntry> =
            memory_map(self.setup.layout, self.setup.tables).into_iter().map(MemoryMapEntry::from).collect();
        info.memmap_paddr = map_base.into();
        info.memmap_entries = (map.len() as u32).into();
        self.write(&info, boot::PVH.base)?;
        self.write(map.as_slice(), map_base)
    }
}

/// Descriptors: none, none, `__BOOT_CS`, `__BOOT_DS`, as Linux's 64-bit protocol wants them.
const LINUX_GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const TSS_BUSY: u16 = 0x008b;
const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

impl Entry {
    /// The first vCPU's registers. The others wait for their start-up interrupt, as at power-on.
    pub fn boot_state(&self) -> BootState {
        let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes, unusable: false };
        let data = flat(0x18, DATA);
        let system = SystemRegisters {
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment { selector: 0, base: 0, limit: 0x67, attributes: TSS_BUSY, unusable: false },
            ldt: Segment { unusable: true, ..Segment::default() },
            ..SystemRegisters::default()
        };
        let general = GeneralRegisters { rip: self.address, rflags: RFLAGS_RESERVED, ..GeneralRegisters::default() };
        match self.protocol {
            Protocol::Linux64 => BootState {
                general: GeneralRegisters { rsi: boot::ZERO_PAGE.base, ..general },
                system: SystemRegisters {
                    cs: flat(0x10, CODE_64),
                    gdt: DescriptorTable { base: boot::GDT.base, limit: size_of_val(&LINUX_GDT) as u16 - 1 },
                    cr0: CR0_PE | CR0_ET | CR0_PG,
                    cr3: boot::PAGE_TABLES.base,
                    cr4: CR4_PAE,
                    efer: EFER_LME | EFER_LMA,
                    ..system
                },
            },
            Protocol::Pvh => BootState {
                general: GeneralRegisters { rbx: boot::PVH.base, ..general },
                system: SystemRegisters { cs: flat(0x10, CODE_32), cr0: CR0_PE | CR0_ET, ..system },
            },
        }
    }
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod test;
