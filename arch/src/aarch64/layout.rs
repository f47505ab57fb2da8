//! Physical addresses and interrupt numbers of the aarch64 machine.
//!
//! They follow QEMU's `virt` machine, which is what distributions' firmware expects. Firmware and kernels take most of
//! them from the device tree or from ACPI; flash and the base of RAM are compiled into firmware.

use skep_hypervisor::aarch64::{GicConfig, GicVersion, RedistributorRegion};

use crate::layout::{AddressRange, GIB, LayoutError, MIB, RangeKind, Row, align_up, check, largest_window};

/// Firmware flash: code.
pub const FLASH_CODE: AddressRange = AddressRange::new(0, 64 * MIB);
/// Firmware flash: variables.
pub const FLASH_VARS: AddressRange = AddressRange::new(64 * MIB, 64 * MIB);
/// GIC distributor.
pub const GIC_DISTRIBUTOR: AddressRange = AddressRange::new(0x0800_0000, 0x1_0000);
/// GICv2 CPU interface.
pub const GICV2_CPU: AddressRange = AddressRange::new(0x0801_0000, 0x1_0000);
/// GICv2m frame, which turns an MSI into an edge-triggered SPI.
pub const GICV2M_FRAME: AddressRange = AddressRange::new(0x0802_0000, 0x1000);
/// GICv3 interrupt translation service.
pub const GIC_ITS: AddressRange = AddressRange::new(0x0808_0000, 0x2_0000);
/// First region of GICv3 redistributors, for [`REDISTRIBUTORS_LOW`] CPUs.
pub const GIC_REDISTRIBUTORS: AddressRange = AddressRange::new(0x080a_0000, 0xf6_0000);
/// PL011 serial port.
pub const UART: AddressRange = AddressRange::new(0x0900_0000, 0x1000);
/// PL031 real-time clock.
pub const RTC: AddressRange = AddressRange::new(0x0901_0000, 0x1000);
/// fw_cfg: data, selector and DMA.
pub const FW_CFG: AddressRange = AddressRange::new(0x0902_0000, 0x18);
/// PL061 GPIO controller, which carries the power button.
pub const GPIO: AddressRange = AddressRange::new(0x0903_0000, 0x1000);
/// pvpanic.
pub const PVPANIC: AddressRange = AddressRange::new(0x090c_0000, 0x1000);
/// 32-bit window for PCI devices' BARs.
pub const PCI_MMIO32: AddressRange = AddressRange::between(0x1000_0000, 0x3eff_0000);
/// Window in which PCI's I/O space, from port 0, is mapped.
pub const PCI_IO: AddressRange = AddressRange::new(0x3eff_0000, 0x1_0000);
/// RAM begins here.
pub const RAM_BASE: u64 = GIB;

/// Bytes that one GICv3 redistributor takes: two frames of 64 KiB.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// CPUs whose redistributors fit into [`GIC_REDISTRIBUTORS`].
pub const REDISTRIBUTORS_LOW: u32 = (GIC_REDISTRIBUTORS.size / REDISTRIBUTOR_SIZE) as u32;
/// CPUs that a GICv2 serves.
pub const GICV2_CPUS: u32 = 8;

/// What stands above RAM begins here at the earliest, unless the host has too few address bits for that.
const HIGH_BASE: u64 = 256 * GIB;
/// Smallest room for further redistributors, which QEMU's machine has always.
const REDISTRIBUTORS_HIGH_MIN: u64 = 64 * MIB;
/// Largest room for them: what a CPU's affinity can tell apart is far more.
const REDISTRIBUTORS_HIGH_MAX: u64 = 8 * GIB;
const ECAM_SIZE: u64 = 256 * MIB;
/// Largest and smallest 64-bit window for PCI devices' BARs.
const PCI_MMIO64_MAX: u64 = 512 * GIB;
const PCI_MMIO64_MIN: u64 = 512 * MIB;

/// Shared peripheral interrupts, as numbers from the first SPI: an INTID is [`FIRST`](spi::FIRST) more.
pub mod spi {
    use std::ops::Range;

    use skep_hypervisor::aarch64::GicVersion;

    /// INTID of SPI 0.
    pub const FIRST: u32 = 32;
    /// PL011.
    pub const UART: u32 = 1;
    /// PL031.
    pub const RTC: u32 = 2;
    /// First of the four that PCI's INTx lines share, level-triggered.
    pub const PCI_FIRST: u32 = 3;
    /// PL061.
    pub const GPIO: u32 = 7;
    /// Power button of the ACPI generic event device, edge-triggered.
    pub const GED_POWER: u32 = 9;
    /// A new VM generation id, by the same device.
    pub const GED_GENERATION: u32 = 10;
    /// Those that the GICv2m frame hands out.
    pub const GICV2M: Range<u32> = 128..256;

    /// How many SPIs the machine has: those above and, for a GICv2, the frame's. A kernel sets each of them up as it starts, by some accesses
    /// that all leave the guest, so none is there for nothing.
    #[must_use]
    pub const fn count(gic: GicVersion) -> u32 {
        match gic {
            GicVersion::V2 => GICV2M.end,
            GicVersion::V3 => 32,
        }
    }
}

/// Private peripheral interrupts, as numbers from the first PPI: an INTID is [`FIRST`](ppi::FIRST) more.
pub mod ppi {
    /// INTID of PPI 0.
    pub const FIRST: u32 = 16;
    /// Performance monitors.
    pub const PMU: u32 = 7;
    /// Virtualization maintenance, for nested guests.
    pub const GIC_MAINTENANCE: u32 = 9;
    /// EL2 physical timer.
    pub const TIMER_HYPERVISOR: u32 = 10;
    /// EL1 virtual timer.
    pub const TIMER_VIRTUAL: u32 = 11;
    /// EL3 physical timer.
    pub const TIMER_SECURE: u32 = 13;
    /// EL1 physical timer.
    pub const TIMER_PHYSICAL: u32 = 14;
}

/// Where everything that depends on the configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// RAM: one part from [`RAM_BASE`].
    pub ram: Vec<AddressRange>,
    /// The interrupt controller.
    pub gic: GicVersion,
    /// GICv3 redistributors, in the order of the CPUs: as much of each region as the CPUs take. None with GICv2.
    pub redistributors: Vec<AddressRange>,
    /// Memory-mapped PCI configuration space, 256 buses.
    pub ecam: AddressRange,
    /// 64-bit window for PCI devices' BARs, aligned to its size.
    pub pci_mmio64: AddressRange,
    /// Guest physical address bits that the layout was made for.
    pub address_bits: u8,
}

impl Layout {
    /// The layout of a machine with `ram` bytes and at most `max_cpus` in `address_bits` of guest physical addresses.
    ///
    /// # Errors
    /// [`LayoutError`], which says what would fit.
    pub fn new(ram: u64, address_bits: u8, gic: GicVersion, max_cpus: u32) -> Result<Self, LayoutError> {
        let top = check(ram, address_bits)?;
        let beyond = redistributors_beyond(gic, max_cpus)?;
        let max_ram = max_ram_below(top, beyond);
        if ram > max_ram {
            return Err(LayoutError::RamTooLarge { ram, address_bits, max_ram });
        }
        let ram = AddressRange::new(RAM_BASE, ram);
        let (high, ecam, pci_mmio64) = high_regions(ram.end().max(HIGH_BASE), top, beyond)
            .or_else(|| high_regions(ram.end(), top, beyond))
            .expect("max_ram leaves room for the smallest regions");
        let redistributors = match gic {
            GicVersion::V2 => Vec::new(),
            GicVersion::V3 => [
                AddressRange::new(GIC_REDISTRIBUTORS.base, redistributors_size(max_cpus.min(REDISTRIBUTORS_LOW))),
                AddressRange::new(high.base, redistributors_size(max_cpus.saturating_sub(REDISTRIBUTORS_LOW))),
            ]
            .into_iter()
            .filter(|region| !region.is_empty())
            .collect(),
        };
        Ok(Self { ram: vec![ram], gic, redistributors, ecam, pci_mmio64, address_bits })
    }

    /// The interrupt controller as a VM is made with it; `its` says whether a GICv3 has one.
    pub fn gic_config(&self, its: bool) -> GicConfig {
        match self.gic {
            GicVersion::V2 => GicConfig::V2 { distributor: GIC_DISTRIBUTOR.base, cpu_interface: GICV2_CPU.base },
            GicVersion::V3 => GicConfig::V3 {
                distributor: GIC_DISTRIBUTOR.base,
                redistributors: self
                    .redistributors
                    .iter()
                    .map(|part| RedistributorRegion { base: part.base, count: (part.size / REDISTRIBUTOR_SIZE) as u32 })
                    .collect(),
                its: its.then_some(GIC_ITS.base),
            },
        }
    }

    /// Every region, by ascending address, for `skep run --print-layout`.
    pub fn describe(&self) -> Vec<Row> {
        let row = |region, kind, name| Row { region, kind, name };
        let mut rows = vec![
            row(FLASH_CODE, RangeKind::Flash, "firmware code"),
            row(FLASH_VARS, RangeKind::Flash, "firmware variables"),
            row(GIC_DISTRIBUTOR, RangeKind::Device, "GIC distributor"),
            row(UART, RangeKind::Device, "PL011 serial port"),
            row(RTC, RangeKind::Device, "PL031 real-time clock"),
            row(FW_CFG, RangeKind::Device, "fw_cfg"),
            row(GPIO, RangeKind::Device, "PL061 GPIO"),
            row(PVPANIC, RangeKind::Device, "pvpanic"),
            row(PCI_MMIO32, RangeKind::PciWindow, "32-bit PCI window"),
            row(PCI_IO, RangeKind::PciWindow, "PCI I/O window"),
            row(self.ecam, RangeKind::PciConfig, "PCI configuration (ECAM)"),
            row(self.pci_mmio64, RangeKind::PciWindow, "64-bit PCI window"),
        ];
        rows.extend(match self.gic {
            GicVersion::V2 => [
                row(GICV2_CPU, RangeKind::Device, "GICv2 CPU interface"),
                row(GICV2M_FRAME, RangeKind::Device, "GICv2m MSI frame"),
            ]
            .to_vec(),
            GicVersion::V3 => vec![row(GIC_ITS, RangeKind::Device, "GICv3 ITS")],
        });
        rows.extend(self.redistributors.iter().map(|&part| row(part, RangeKind::Device, "GICv3 redistributors")));
        rows.extend(self.ram.iter().map(|&part| row(part, RangeKind::Ram, "RAM")));
        rows.sort_unstable_by_key(|row| row.region);
        rows
    }
}

/// The most RAM, in bytes, that a machine with `address_bits` of guest physical addresses can have; zero if the
/// machine can't be made.
pub fn max_ram(address_bits: u8, gic: GicVersion, max_cpus: u32) -> u64 {
    match (check(crate::layout::RAM_GRANULE, address_bits), redistributors_beyond(gic, max_cpus)) {
        (Ok(top), Ok(beyond)) => max_ram_below(top, beyond),
        _ => 0,
    }
}

fn redistributors_size(cpus: u32) -> u64 {
    u64::from(cpus) * REDISTRIBUTOR_SIZE
}

/// Size of the region above RAM that is kept for redistributors.
fn redistributors_beyond(gic: GicVersion, max_cpus: u32) -> Result<u64, LayoutError> {
    let size = redistributors_size(max_cpus.saturating_sub(REDISTRIBUTORS_LOW)).next_power_of_two();
    match gic {
        GicVersion::V2 if max_cpus > GICV2_CPUS => Err(LayoutError::TooManyCpus {
            controller: "GICv2",
            asked: max_cpus,
            limit: GICV2_CPUS,
            mend: ", or GICv3 where the host has it",
        }),
        GicVersion::V3 if size > REDISTRIBUTORS_HIGH_MAX => Err(LayoutError::TooManyCpus {
            controller: "GICv3",
            asked: max_cpus,
            limit: REDISTRIBUTORS_LOW + (REDISTRIBUTORS_HIGH_MAX / REDISTRIBUTOR_SIZE) as u32,
            mend: "",
        }),
        _ => Ok(size.max(REDISTRIBUTORS_HIGH_MIN)),
    }
}

fn max_ram_below(top: u64, redistributors: u64) -> u64 {
    // All are powers of two: laid from the top down by size, none leaves a gap of its own alignment.
    let room = align_up(redistributors + ECAM_SIZE + PCI_MMIO64_MIN, GIB.max(redistributors)).unwrap_or(top);
    top.saturating_sub(room + RAM_BASE)
}

/// Redistributors, ECAM and PCI window, in this order and each aligned to its size, between `base` and `top`.
fn high_regions(base: u64, top: u64, redistributors: u64) -> Option<(AddressRange, AddressRange, AddressRange)> {
    let redistributors = AddressRange::new(align_up(base, redistributors)?, redistributors);
    let ecam = AddressRange::new(align_up(redistributors.end(), ECAM_SIZE)?, ECAM_SIZE);
    let free = AddressRange::between(ecam.end(), top.max(ecam.end()));
    Some((redistributors, ecam, largest_window(free, PCI_MMIO64_MIN, PCI_MMIO64_MAX)?))
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod test;
