//! What both machines do for firmware: memory that comes and goes, and what fw_cfg tells.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use skep_arch::acpi::loader::{self, GENERATION_OFFSET, GENERATION_SIZE, file};
use skep_arch::acpi::{self, Table, devices};
use skep_arch::layout::AddressRange;
use skep_arch::smbios;
use skep_chipset::fw_cfg::{Content, NamedItem, key};
use skep_chipset::{Flash, FlashConfig, FwCfg, FwCfgConfig, flash};
use skep_clock::Clock;
use skep_config::Config;
use skep_hypervisor::PostedWrites;
use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use skep_memory::{Backing, BusMaster, MemoryMap, Region, RegionKind, RequesterId};

use super::boot_order;
use super::platform::{rng_seed_of_host, topology};
use crate::Error;
use crate::firmware::{FirmwareFiles, Variables};

/// What a machine with firmware is made of.
pub(super) struct Firmware {
    /// The files.
    pub(super) files: FirmwareFiles,
    /// The memory behind RAM: on x86_64 a part of it comes and goes.
    pub(super) ram: Arc<Backing>,
    /// Where the backend posts writes.
    pub(super) posting: Option<Arc<dyn PostedWrites>>,
    /// Guest time.
    pub(super) clock: Clock,
}

/// A piece of memory that the guest is to reach.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) name: &'static str,
    pub(super) kind: RegionKind,
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) backing: Arc<Backing>,
    pub(super) offset: u64,
}

impl Piece {
    /// All of a backing.
    pub(super) fn rom(name: &'static str, gpa: u64, backing: &Arc<Backing>) -> Self {
        let size = backing.size();
        Self { name, kind: RegionKind::ReadOnly, gpa, size, backing: backing.clone(), offset: 0 }
    }

    fn is(&self, other: &Self) -> bool {
        let same = |piece: &Self| (piece.kind, piece.gpa, piece.size, piece.offset);
        same(self) == same(other) && Arc::ptr_eq(&self.backing, &other.backing)
    }

    /// Whether `next` goes on where this one ends, in the guest and behind it.
    pub(super) fn joins(&self, next: &Self) -> bool {
        let goes_on = (self.gpa + self.size, self.offset + self.size) == (next.gpa, next.offset);
        goes_on && self.kind == next.kind && Arc::ptr_eq(&self.backing, &next.backing)
    }
}

/// How the guest is to reach what registers move about.
#[derive(Default)]
pub(super) struct Reach {
    /// What is memory.
    pub(super) pieces: Vec<Piece>,
    /// Where writes may be posted, which is in none of them.
    pub(super) posted: Option<Range<u64>>,
}

/// Memory that comes and goes as registers say: flash that is read, ROM and what shadows it; and posted writes.
pub(super) struct Overlay {
    memory: MemoryMap,
    /// Where the backend posts writes, and may.
    posting: Option<Arc<dyn PostedWrites>>,
    present: Mutex<Reach>,
}

impl Overlay {
    pub(super) fn new(memory: MemoryMap, posting: Option<Arc<dyn PostedWrites>>) -> Self {
        Self { memory, posting, present: Mutex::default() }
    }

    /// Has the guest reach what `wanted` answers, and nothing else of what it reached by the last call. `wanted` is called when no other update runs.
    pub(super) fn update(&self, wanted: impl FnOnce() -> Reach) {
        let mut guard = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let Reach { pieces: present, posted } = &mut *guard;
        let Reach { pieces: wanted, posted: wanted_posted } = wanted();
        let changes = *posted != wanted_posted;
        if changes
            && let (Some(old), Some(posting)) = (posted.take(), &self.posting)
            && let Err(error) = posting.detach(old)
        {
            tracing::error!(%error, "the guest's writes to flash may come late");
        }
        present.retain(|old| {
            let stays = wanted.iter().any(|new| new.is(old));
            if !stays && let Err(error) = self.memory.remove(old.gpa) {
                tracing::error!(%error, "memory can't be taken from the guest");
            }
            stays
        });
        for new in wanted {
            if present.iter().any(|old| new.is(old)) {
                continue;
            }
            let region = Region::new(new.name, new.kind, new.gpa, new.size, new.backing.clone(), new.offset);
            match region.and_then(|region| self.memory.add(region)) {
                Ok(_) => present.push(new),
                Err(error) => tracing::error!(%error, "memory can't be given to the guest"),
            }
        }
        if changes && let (Some(new), Some(posting)) = (wanted_posted, &self.posting) {
            match posting.attach(new.clone()) {
                Ok(()) => *posted = Some(new),
                // Each is an exit then, which is as good.
                Err(error) => tracing::debug!(%error, "no posted writes"),
            }
        }
    }
}

/// A bank of flash with variables.
pub(super) fn vars_bank(
    vars: Variables,
    base: u64,
    geometry: flash::Geometry,
    clock: &Clock,
) -> Result<Arc<Flash>, Error> {
    let Variables { content, file } = vars;
    let config = FlashConfig { name: "firmware variables", base, content, geometry, file, clock: clock.clone() };
    Ok(Flash::new(config)?)
}

/// Firmware's `code`, and the bank with its variables: as memory while it is read.
pub(super) fn reach(code: Piece, flash: Option<&Flash>) -> Reach {
    let mapping = flash.and_then(Flash::mapping);
    let mapped = mapping.map(|mapping| Piece::rom(mapping.name, mapping.base, &mapping.content));
    Reach { pieces: [code].into_iter().chain(mapped).collect(), posted: flash.and_then(Flash::posts) }
}

/// What an architecture adds to what every machine tells.
pub(super) struct Told<'a> {
    pub(super) product: &'a str,
    /// PCI's host bridge, as paths of Open Firmware have it.
    pub(super) pci: &'a str,
    pub(super) family: u16,
    pub(super) ram: &'a [AddressRange],
    /// One more than the largest hardware id, as firmware counts on x86_64; the number of vCPUs on aarch64.
    pub(super) max_cpus: u16,
    pub(super) items: Vec<(u16, Content)>,
    pub(super) files: Vec<NamedItem>,
}

/// Bytes of ACPI tables, whose size is told before they are made: two a table's granules, and what each CPU takes in DSDT and MADT.
fn tables_size(cpus: u32) -> usize {
    const GRANULE: usize = 64 << 10;
    const PER_CPU: usize = 192;
    (GRANULE + cpus as usize * PER_CPU).next_multiple_of(GRANULE)
}

/// Bytes of the script that places them. What is not used is zero, which firmware passes over.
const SCRIPT_SIZE: usize = 8 << 10;
const RSDP_SIZE: usize = 36;

/// Makes fw_cfg for `config`, with what firmware is handed.
pub(super) fn fw_cfg(
    config: &Config,
    memory: &MemoryMap,
    firmware: &mut FirmwareFiles,
    told: Told<'_>,
) -> Result<Arc<FwCfg>, Error> {
    let Told { product, pci, family, ram, max_cpus, mut items, mut files } = told;
    let cpus = &config.cpus;
    let short = |value: u32| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes().to_vec();
    let total: u64 = ram.iter().map(|part| part.size).sum();
    let uuid = config.uuid.map_or([0; 16], |uuid| uuid.0);
    items.extend([
        (key::UUID, uuid.to_vec().into()),
        (key::RAM_SIZE, total.to_le_bytes().to_vec().into()),
        (key::NO_GRAPHIC, short(1).into()),
        (key::CPU_COUNT, short(cpus.count).into()),
        (key::MAX_CPUS, short(max_cpus.into()).into()),
    ]);
    let host = |path: &Path| {
        let path = path.to_path_buf();
        move |source: io::Error| Error::File { role: "a file for firmware", path: path.clone(), source }
    };
    let mut file_item = |file: Option<File>, size_key: u16, data_key: u16| -> Result<(), Error> {
        let Some(file) = file else { return Ok(()) };
        let size = file.metadata().map_err(host(&firmware.path))?.len();
        let Ok(short_size) = u32::try_from(size) else {
            let text = "kernel and initramfs have less than 4 GiB where firmware boots them";
            return Err(host(&firmware.path)(io::Error::new(io::ErrorKind::InvalidData, text)));
        };
        items.push((size_key, short_size.to_le_bytes().to_vec().into()));
        items.push((data_key, Content::File { file, size }));
        Ok(())
    };
    let has_kernel = firmware.kernel.is_some();
    file_item(firmware.kernel.take(), key::KERNEL_SIZE, key::KERNEL_DATA)?;
    file_item(firmware.initrd.take(), key::INITRD_SIZE, key::INITRD_DATA)?;
    if has_kernel {
        let mut cmdline = std::mem::take(&mut firmware.cmdline);
        cmdline.push(0);
        items.push((key::CMDLINE_SIZE, (cmdline.len() as u32).to_le_bytes().to_vec().into()));
        items.push((key::CMDLINE_DATA, cmdline.into()));
    }
    let topology = topology(cpus)?;
    let smbios = smbios::tables(&smbios::Machine { product, version: "1", uuid, topology, family, ram });
    let generation = rng_seed_of_host()?;
    let mut page = vec![0; GENERATION_SIZE];
    let id = page.iter_mut().skip(GENERATION_OFFSET).take(16);
    id.zip(generation).for_each(|(byte, value)| *byte = value);
    files.extend([
        // Power-off alone of the sleep states: type 0.
        NamedItem::new("etc/system-states", vec![128, 0, 0, 1, 2, 128]),
        NamedItem::new("etc/smbios/smbios-anchor", smbios.anchor),
        NamedItem::new("etc/smbios/smbios-tables", smbios.tables),
        NamedItem::new(file::RSDP, Content::Late(RSDP_SIZE)),
        NamedItem::new(file::TABLES, Content::Late(tables_size(cpus.max))),
        NamedItem::new(file::SCRIPT, Content::Late(SCRIPT_SIZE)),
        NamedItem::new(file::GENERATION, page),
        NamedItem::new(file::GENERATION_ADDRESS, Content::Written(8)),
    ]);
    files.extend(boot_order::list(config, pci).map(|list| NamedItem::new("bootorder", list)));
    let dma = memory.dma(RequesterId(0), BusMaster::always());
    Ok(Arc::new(FwCfg::new(FwCfgConfig { dma, items, files })))
}

/// Gives the guest a new generation id, where firmware has said that it has its place. The guest is to be told.
pub(super) fn renew_generation(fw_cfg: &FwCfg, memory: &MemoryMap) -> Result<bool, Error> {
    let place = fw_cfg.written(file::GENERATION_ADDRESS).and_then(|bytes| bytes.try_into().ok());
    let Some(page) = place.map(u64::from_le_bytes).filter(|page| *page != 0) else { return Ok(false) };
    // A guest may say anything, and then has no id.
    let Some(gpa) = page.checked_add(GENERATION_OFFSET as u64).map(GuestAddress) else { return Ok(false) };
    let (ram, seed) = (memory.ram(), rng_seed_of_host()?);
    let id = seed.first_chunk::<16>().unwrap_or(&[0; 16]);
    Ok(GuestMemoryBackend::check_range(&*ram, gpa, id.len()) && ram.write_slice(id, gpa).is_ok())
}

/// What fw_cfg's late items hold: RSDP, tables and script, in the order of their names.
pub(super) fn late(tables: Vec<Table>) -> Vec<Vec<u8>> {
    let mut linked = acpi::link(tables);
    let generation = devices::Generation::find_pointer(&mut linked.tables.bytes);
    let script = loader::script(&linked, generation);
    vec![linked.rsdp.bytes, linked.tables.bytes, script]
}

#[cfg(test)]
#[path = "firmware_test.rs"]
mod test;
