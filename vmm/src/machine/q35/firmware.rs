//! The PC's firmware: flash below 4 GiB, what shadows its end below 1 MiB, fw_cfg.

use std::sync::Arc;

use skep_arch::layout::AddressRange;
use skep_arch::smbios;
use skep_arch::x86_64::layout::{self, CONVENTIONAL, EXTENDED, LEGACY_HOLE};
use skep_arch::x86_64::{acpi::SmiCommand, e820};
use skep_bus::{Action, Device};
use skep_chipset::fw_cfg::NamedItem;
use skep_chipset::{Flash, FwCfg, flash, fw_cfg as device, pm};
use skep_config::Config;
use skep_hypervisor::X86_64;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};
use skep_memory::{Backing, MemoryMap, Region, RegionKind};
use skep_pci::{Mapping, Mch, Space};
use zerocopy::IntoBytes;

use crate::Error;
use crate::machine::firmware::{Firmware, Overlay, Piece, Told, fw_cfg, reach, vars_bank};
use crate::machine::platform::Plan;

/// Bytes of the firmware's end that a processor finds below 1 MiB as well, as long as nothing shadows them.
const LEGACY_BIOS: u64 = 128 << 10;

/// The APM port, and what turns ACPI mode on and off there.
pub(super) const SMI_COMMAND: SmiCommand =
    SmiCommand { port: pm::APM_PORTS.base as u8, enable: pm::ACPI_ENABLE, disable: pm::ACPI_DISABLE };

/// What a machine with firmware has besides.
pub(super) struct FirmwareBoard {
    pub(super) fw_cfg: Arc<FwCfg>,
    pub(super) flash: Option<Arc<Flash>>,
    /// What can't be written, which ends at 4 GiB.
    code: Arc<Backing>,
    ram: Arc<Backing>,
    shadow: Arc<Shadow>,
    overlay: Overlay,
}

impl FirmwareBoard {
    pub(super) fn new(
        config: &Config,
        plan: &Plan<X86_64>,
        memory: &MemoryMap,
        firmware: Firmware,
    ) -> Result<Self, Error> {
        let Firmware { mut files, ram, posting, clock } = firmware;
        let code = files.code.clone();
        let flash = match files.vars.take() {
            Some(vars) => {
                let both = code.size() + vars.content.size();
                if both > layout::FLASH_SPACE.size {
                    let most = layout::FLASH_SPACE.size >> 20;
                    return Err(Error::Tables(format!(
                        "firmware and its variables have {both} bytes, and {most} MiB at most fit below 4 GiB"
                    )));
                }
                if !both.is_power_of_two() {
                    // What is certain has been refused; this is none of edk2's images.
                    tracing::warn!("the firmware and its variables may be of different builds, by their sizes");
                }
                let base = layout::FLASH_SPACE.end() - both;
                Some(vars_bank(vars, base, flash::Geometry::PC, &clock)?)
            }
            None => None,
        };
        let largest_id = plan.possible.iter().max().copied().unwrap_or(0);
        let told = Told {
            product: "q35-1",
            pci: "pci@i0cf8",
            family: smbios::OTHER_FAMILY,
            ram: &plan.ram,
            max_cpus: u16::try_from(largest_id.saturating_add(1)).unwrap_or(u16::MAX),
            items: vec![
                // The timer's interrupt arrives at GSI 2.
                (0x8002, 1u32.to_le_bytes().to_vec().into()),
            ],
            files: vec![
                NamedItem::new("etc/e820", e820::for_firmware(&plan.layout).as_bytes().to_vec()),
                // SeaBIOS shows its screen there.
                NamedItem::new("etc/sercon-port", layout::port::COM1.base.to_le_bytes().to_vec()),
            ],
        };
        let fw_cfg = fw_cfg(config, memory, &mut files, told)?;
        let shadow = Arc::new(Shadow::new(&ram, &code)?);
        Ok(Self { fw_cfg, flash, code, ram, shadow, overlay: Overlay::new(memory.clone(), posting) })
    }

    /// Has the guest reach what flash and host bridge say.
    pub(super) fn remap(&self, mch: &Mch) {
        self.overlay.update(|| {
            let code = Piece::rom("firmware", layout::FLASH_SPACE.end() - self.code.size(), &self.code);
            let mut reach = reach(code, self.flash.as_deref());
            let pieces = &mut reach.pieces;
            if mch.smram_is_open() {
                let base = CONVENTIONAL.end();
                pieces.push(self.ram_at(base, 0xc_0000 - base, RegionKind::Ram));
            }
            for segment in mch.shadow() {
                let piece = match (segment.read, segment.write) {
                    (true, true) => Some(self.ram_at(segment.base, segment.size, RegionKind::Ram)),
                    (true, false) => Some(self.ram_at(segment.base, segment.size, RegionKind::ReadOnly)),
                    (false, false) => self.rom_at(segment.base, segment.size),
                    (false, true) => None,
                };
                match (pieces.last_mut(), piece) {
                    (Some(last), Some(piece)) if last.joins(&piece) => last.size += piece.size,
                    (_, Some(piece)) => pieces.push(piece),
                    (_, None) => {}
                }
            }
            reach
        });
    }

    fn ram_at(&self, gpa: u64, size: u64, kind: RegionKind) -> Piece {
        Piece { name: "shadow RAM", kind, gpa, size, backing: self.ram.clone(), offset: gpa }
    }

    /// The firmware's end, as it is seen below 1 MiB.
    fn rom_at(&self, gpa: u64, size: u64) -> Option<Piece> {
        let offset = rom_offset(&self.code, gpa)?;
        Some(Piece {
            name: "firmware's end",
            kind: RegionKind::ReadOnly,
            gpa,
            size,
            backing: self.code.clone(),
            offset,
        })
    }

    /// Segments of which the guest reads ROM and writes memory.
    pub(super) fn mappings(&self, mch: &Mch) -> Vec<Mapping> {
        let segments = mch.shadow().into_iter().filter(|segment| segment.write && !segment.read);
        let mapping = |segment: skep_pci::ShadowSegment| Mapping {
            name: "shadow".to_owned(),
            space: Space::Memory,
            base: segment.base,
            size: segment.size,
            region: segment.base as u32,
            device: self.shadow.clone(),
            doorbells: Vec::new(),
        };
        segments.map(mapping).collect()
    }
}

fn rom_offset(code: &Backing, gpa: u64) -> Option<u64> {
    let from_end = EXTENDED.checked_sub(gpa)?;
    (from_end <= LEGACY_BIOS).then(|| code.size().checked_sub(from_end))?
}

/// RAM of a machine with firmware that is always there: what [`FirmwareBoard::remap`] gives and takes is left out.
pub(super) fn lasting_ram(part: AddressRange) -> Vec<AddressRange> {
    if !part.encloses(&LEGACY_HOLE) {
        return vec![part];
    }
    let pieces =
        [AddressRange::between(part.base, LEGACY_HOLE.base), AddressRange::between(LEGACY_HOLE.end(), part.end())];
    pieces.into_iter().filter(|piece| !piece.is_empty()).collect()
}

/// What reads ROM and writes the memory that is going to shadow it. Regions are numbered by their first addresses.
struct Shadow {
    ram: Region,
    rom: Region,
    code: Arc<Backing>,
}

impl Shadow {
    fn new(ram: &Arc<Backing>, code: &Arc<Backing>) -> Result<Self, Error> {
        let of = |name, backing: &Arc<Backing>| {
            Region::new(name, RegionKind::ReadOnly, 0, backing.size(), backing.clone(), 0)
        };
        Ok(Self { ram: of("shadow RAM", ram)?, rom: of("firmware", code)?, code: code.clone() })
    }
}

impl Device for Shadow {
    fn read(&self, region: u32, offset: u64, data: &mut [u8]) {
        let read = rom_offset(&self.code, u64::from(region) + offset)
            .map(|offset| self.rom.read_slice(data, MemoryRegionAddress(offset)));
        if !matches!(read, Some(Ok(()))) {
            data.fill(0xff);
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) -> Action {
        if let Err(error) = self.ram.write_slice(data, MemoryRegionAddress(u64::from(region) + offset)) {
            tracing::debug!(%error, "a write to memory below 1 MiB goes nowhere");
        }
        Action::None
    }
}

/// The ports of fw_cfg.
pub(super) const FW_CFG_REGION: u32 = device::PORTS_REGION;
