//! Physical addresses, ports and interrupt numbers of the x86_64 machine.
//!
//! They follow Intel's "3 Series Express Chipset" (MCH 82Q35) and "I/O Controller Hub 9" datasheets as QEMU's `q35`
//! machine realises them, which is what distributions' firmware expects. Where firmware moves something (PCIEXBAR,
//! PMBASE), the value here is the one that the machine itself sets when it boots a kernel without firmware.

use crate::layout::{AddressRange, GIB, KIB, LayoutError, MIB, RangeKind, Row, align_down, check, largest_window};

/// Low RAM ends here at the latest: the ECAM begins.
const LOW_RAM_MAX: u64 = 0xb000_0000;
/// End of low RAM where there is high RAM as well.
const LOW_RAM_SPLIT: u64 = 0x8000_0000;
/// High RAM begins here.
pub const HIGH_RAM_BASE: u64 = 4 * GIB;

/// Kept for HyperTransport by AMD hosts, whose IOMMU lets no device reach guest memory there. RAM leaves it out on
/// every host, so that a guest's layout does not depend on one.
pub const HYPERTRANSPORT: AddressRange = AddressRange::between(0xfd_0000_0000, 0x100_0000_0000);

/// Conventional memory, which the machine uses for boot data when there is no firmware.
pub const CONVENTIONAL: AddressRange = AddressRange::between(0, 0xa_0000);
/// Addresses below 1 MiB that are no ordinary RAM: the VGA window, option ROMs, the firmware's shadow.
pub const LEGACY_HOLE: AddressRange = AddressRange::between(0xa_0000, 0x10_0000);
/// Where the RSDP stands, and the ACPI tables if they fit, when there is no firmware.
pub const ACPI: AddressRange = AddressRange::between(0xe_0000, 0xf_0000);
/// Where the SMBIOS entry point and tables stand when there is no firmware.
pub const SMBIOS: AddressRange = AddressRange::between(0xf_0000, 0x10_0000);
/// Extended memory begins here: a kernel's usual load address.
pub const EXTENDED: u64 = MIB;

/// Boot data in [`CONVENTIONAL`] memory when there is no firmware. What the kernel is done with early stands here
/// too, so all of it is ordinary RAM in the memory map.
pub mod boot {
    use super::{AddressRange, KIB};

    /// Global descriptor table.
    pub const GDT: AddressRange = AddressRange::new(0x1000, 0x1000);
    /// PVH start info, its modules and its memory map.
    pub const PVH: AddressRange = AddressRange::new(0x2000, 0x4000);
    /// Linux's `boot_params`.
    pub const ZERO_PAGE: AddressRange = AddressRange::new(0x7000, 0x1000);
    /// Chain of `setup_data`.
    pub const SETUP_DATA: AddressRange = AddressRange::new(0x8000, 0x1000);
    /// Identity page tables of the first 4 GiB: one PML4, one PDPT, four page directories.
    pub const PAGE_TABLES: AddressRange = AddressRange::new(0x9000, 0x6000);
    /// Command line with its terminating zero.
    pub const CMDLINE: AddressRange = AddressRange::new(0x2_0000, 64 * KIB);
}

/// Memory-mapped PCI configuration space, 256 buses: PCIEXBAR as the machine sets it.
pub const ECAM: AddressRange = AddressRange::new(0xb000_0000, 256 * MIB);
/// 32-bit window for PCI devices' BARs.
pub const PCI_MMIO32: AddressRange = AddressRange::between(0xc000_0000, 0xfec0_0000);
/// I/O APIC.
pub const IOAPIC: AddressRange = AddressRange::new(0xfec0_0000, 0x1000);
/// Local APIC of each CPU, and the target of MSIs.
pub const LOCAL_APIC: AddressRange = AddressRange::new(0xfee0_0000, MIB);
/// Four pages that a backend may need for itself: KVM on Intel puts a page table and a TSS here to run real mode.
pub const BACKEND: AddressRange = AddressRange::new(0xfeff_c000, 0x4000);
/// Firmware flash ends at 4 GiB and may begin here.
pub const FLASH_SPACE: AddressRange = AddressRange::between(0xff00_0000, 4 * GIB);

/// Largest 64-bit window for PCI devices' BARs.
const PCI_MMIO64_MAX: u64 = 256 * GIB;
/// Smallest one.
const PCI_MMIO64_MIN: u64 = GIB;

/// I/O ports. Sizes are in ports.
pub mod port {
    use super::AddressRange;

    /// Keyboard controller: data port, and the command port four further.
    pub const I8042: AddressRange = AddressRange::new(0x60, 5);
    /// CMOS RTC: index and data.
    pub const RTC: AddressRange = AddressRange::new(0x70, 2);
    /// Second bank of CMOS memory.
    pub const RTC_EXTENDED: AddressRange = AddressRange::new(0x72, 2);
    /// First serial port.
    pub const COM1: AddressRange = AddressRange::new(0x3f8, 8);
    /// pvpanic.
    pub const PVPANIC: AddressRange = AddressRange::new(0x505, 1);
    /// fw_cfg: selector, data and DMA.
    pub const FW_CFG: AddressRange = AddressRange::new(0x510, 12);
    /// ICH9 power management block: PMBASE as the machine sets it.
    pub const PM: AddressRange = AddressRange::new(0x600, 0x80);
    /// PCI configuration mechanism 1.
    pub const PCI_CONFIG: AddressRange = AddressRange::new(0xcf8, 8);
    /// Reset control register (within [`PCI_CONFIG`]).
    pub const RESET_CONTROL: u16 = 0xcf9;
    /// Window for PCI devices' I/O BARs.
    pub const PCI_IO: AddressRange = AddressRange::between(0x1000, 0x1_0000);
    /// What the host bridge forwards: all but [`PCI_CONFIG`], since ISA's devices stand behind PCI's LPC bridge.
    pub const PCI_FORWARDED: [AddressRange; 2] =
        [AddressRange::between(0, PCI_CONFIG.base), AddressRange::between(PCI_CONFIG.end(), 0x1_0000)];
}

/// Global system interrupts. ISA interrupts are those below 16.
pub mod gsi {
    /// Keyboard.
    pub const KEYBOARD: u32 = 1;
    /// PIT channel 0, which is ISA interrupt 0.
    pub const TIMER: u32 = 2;
    /// First serial port.
    pub const COM1: u32 = 4;
    /// CMOS RTC.
    pub const RTC: u32 = 8;
    /// ACPI's system control interrupt, level-triggered.
    pub const SCI: u32 = 9;
    /// Mouse.
    pub const MOUSE: u32 = 12;
    /// First of the eight that PCI's INTx lines share, level-triggered.
    pub const PCI_FIRST: u32 = 16;
    /// Inputs of the I/O APIC.
    pub const COUNT: u32 = 24;
}

/// General-purpose event that tells of a new VM generation id.
pub const GENERATION_EVENT: u8 = 5;

/// Where everything that depends on the configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM, ascending, without overlap: the low part first. The parts follow each other in the guest's memory.
    pub ram: Vec<AddressRange>,
    /// 64-bit window for PCI devices' BARs, above all RAM, aligned to its size.
    pub pci_mmio64: AddressRange,
    /// Guest physical address bits that the layout was made for.
    pub address_bits: u8,
}

impl Layout {
    /// The layout of a machine with `ram` bytes in `address_bits` of guest physical addresses.
    ///
    /// # Errors
    /// [`LayoutError`], which says what would fit.
    pub fn new(ram: u64, address_bits: u8) -> Result<Self, LayoutError> {
        let top = check(ram, address_bits)?;
        let max_ram = max_ram_below(top);
        if ram > max_ram {
            return Err(LayoutError::RamTooLarge { ram, address_bits, max_ram });
        }
        let low = if ram >= LOW_RAM_MAX { LOW_RAM_SPLIT } else { ram };
        let high = (ram - low).min(HYPERTRANSPORT.base - HIGH_RAM_BASE);
        let beyond = ram - low - high;
        let ram: Vec<_> = [
            AddressRange::new(0, low),
            AddressRange::new(HIGH_RAM_BASE, high),
            AddressRange::new(HYPERTRANSPORT.end(), beyond),
        ]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
        let end = ram.last().map_or(HIGH_RAM_BASE, AddressRange::end).max(HIGH_RAM_BASE);
        let pci_mmio64 = pci_mmio64(end, top).expect("max_ram leaves room for the smallest window");
        Ok(Self { ram, pci_mmio64, address_bits })
    }

    /// The same machine's, where its guest is told of `address_bits` at the most.
    ///
    /// # Errors
    /// As for [`Layout::new`].
    pub fn within(&self, address_bits: u8) -> Result<Self, LayoutError> {
        if address_bits >= self.address_bits {
            return Ok(self.clone());
        }
        Self::new(self.ram.iter().map(|part| part.size).sum(), address_bits)
    }

    /// RAM below 4 GiB.
    pub fn low_ram(&self) -> AddressRange {
        self.ram[0]
    }

    /// End of the RAM above 4 GiB, if there is any.
    pub fn high_ram_end(&self) -> Option<u64> {
        self.ram.last().map(AddressRange::end).filter(|&end| end > HIGH_RAM_BASE)
    }

    /// Where `size` bytes of ACPI tables go when there is no firmware: into [`ACPI`] where they fit behind the RSDP's
    /// 4 KiB, else to the end of low RAM. `None` if that is too small too.
    pub fn acpi_tables(&self, size: u64) -> Option<AddressRange> {
        let below_1m = AddressRange::between(ACPI.base + 4 * KIB, ACPI.end());
        if size <= below_1m.size {
            return Some(below_1m);
        }
        let end = self.low_ram().end();
        let base = align_down(end.checked_sub(size)?, 4 * KIB);
        (base >= EXTENDED).then(|| AddressRange::between(base, end))
    }

    /// Every region, by ascending address, for `skep run --print-layout`.
    pub fn describe(&self) -> Vec<Row> {
        let row = |region, kind, name| Row { region, kind, name };
        let low = self.low_ram();
        let mut rows = vec![
            row(AddressRange::between(0, CONVENTIONAL.end().min(low.end())), RangeKind::Ram, "conventional memory"),
            row(LEGACY_HOLE, RangeKind::Reserved, "VGA window, option ROMs, firmware shadow"),
            row(AddressRange::between(EXTENDED, low.end()), RangeKind::Ram, "low RAM"),
            row(ECAM, RangeKind::PciConfig, "PCI configuration (ECAM)"),
            row(PCI_MMIO32, RangeKind::PciWindow, "32-bit PCI window"),
            row(IOAPIC, RangeKind::Device, "I/O APIC"),
            row(LOCAL_APIC, RangeKind::Device, "local APICs, MSI"),
            row(BACKEND, RangeKind::Reserved, "backend's real-mode pages"),
            row(FLASH_SPACE, RangeKind::Flash, "firmware flash"),
        ];
        rows.extend(self.ram.iter().skip(1).map(|&part| row(part, RangeKind::Ram, "high RAM")));
        rows.push(row(self.pci_mmio64, RangeKind::PciWindow, "64-bit PCI window"));
        rows.sort_unstable_by_key(|row| row.region);
        rows
    }
}

/// Where firmware may have put BARs below 4 GiB: between RAM and the I/O APIC, but for PCI's configuration space, wherever it has put that.
pub fn pci_mmio32_around(low_ram: AddressRange, ecam: AddressRange) -> Vec<AddressRange> {
    let hole = AddressRange::between(low_ram.end().next_multiple_of(MIB).min(IOAPIC.base), IOAPIC.base);
    let within = |address: u64| address.clamp(hole.base, hole.end());
    let parts =
        [AddressRange::between(hole.base, within(ecam.base)), AddressRange::between(within(ecam.end()), hole.end())];
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// The most RAM, in bytes, that a machine with `address_bits` of guest physical addresses can have; zero if the
/// machine can't be made.
pub fn max_ram(address_bits: u8) -> u64 {
    check(crate::layout::RAM_GRANULE, address_bits).map_or(0, max_ram_below)
}

fn max_ram_below(top: u64) -> u64 {
    // The smallest window needs no more alignment than the ends of RAM have.
    let end = if top <= HYPERTRANSPORT.end() { top.min(HYPERTRANSPORT.base) } else { top } - PCI_MMIO64_MIN;
    LOW_RAM_SPLIT + (end - HIGH_RAM_BASE) - if end > HYPERTRANSPORT.end() { HYPERTRANSPORT.size } else { 0 }
}

fn pci_mmio64(ram_end: u64, top: u64) -> Option<AddressRange> {
    let below = AddressRange::between(ram_end, top.min(HYPERTRANSPORT.base).max(ram_end));
    let above = AddressRange::between(ram_end.max(HYPERTRANSPORT.end()), top.max(ram_end).max(HYPERTRANSPORT.end()));
    let find = |free| largest_window(free, PCI_MMIO64_MIN, PCI_MMIO64_MAX);
    // A lower window of the same size is kinder to guests that map few address bits.
    match (find(below), find(above)) {
        (Some(below), Some(above)) if above.size > below.size => Some(above),
        (below, above) => below.or(above),
    }
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod test;
