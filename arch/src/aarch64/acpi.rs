//! ACPI tables of the aarch64 machine: hardware-reduced, with PSCI, as Arm's "Base Boot Requirements" 2.0 ask for.
//! Linux reads them only when it is booted by UEFI, so they go there by firmware's table loader.

use acpi_tables::AmlSink;
use acpi_tables::fadt::Flags;
use skep_hypervisor::aarch64::GicConfig;

use super::layout::{GICV2M_FRAME, ppi, spi};
use crate::acpi::{
    Dsdt, Ecam, FADT_X_DSDT, HEADER_SIZE, PointerSize, SerialConsole, Table, devices, finish_fadt, mcfg, new_fadt, spcr,
};
use crate::layout::AddressRange;
use crate::topology::Topology;

/// What the tables tell of the machine.
#[derive(Clone, Debug)]
pub struct Platform<'a> {
    /// MPIDR_EL1 affinities of the processors; their unique ids are their indices.
    pub cpus: &'a [u64],
    /// How these, and those that may come, are arranged.
    pub topology: Topology,
    /// Whether the processors have a performance monitor.
    pub pmu: bool,
    /// Their caches.
    pub caches: Caches,
    /// The interrupt controller.
    pub gic: &'a GicConfig,
    /// The console, if it is serial.
    pub console: Option<SerialConsole>,
    /// PCI segments.
    pub ecam: &'a [Ecam],
}

/// The caches of a processor, as CLIDR_EL1 tells of them (DDI 0487, D24.2.33).
#[derive(Clone, Copy, Debug, Default)]
pub struct Caches(pub u64);

/// What a cache holds, as a PPTT has it in a cache's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CacheKind {
    Data = 0 << 2,
    Instruction = 1 << 2,
    Unified = 1 << 3,
}

use CacheKind::{Data, Instruction, Unified};

impl Caches {
    /// What there is at each level (Ctype1 to Ctype7), the first one first.
    fn levels(self) -> impl Iterator<Item = &'static [CacheKind]> {
        (0..7).map_while(move |level| match self.0 >> (3 * level) & 7 {
            1 => Some(&[Instruction][..]),
            2 => Some(&[Data][..]),
            3 => Some(&[Instruction, Data][..]),
            4 => Some(&[Unified][..]),
            _ => None,
        })
    }

    /// Those that a core has to itself. What its socket has beyond them is unified: CLIDR_EL1 does not tell who shares a cache, and a vCPU is on no core of
    /// its own. Where it ends with the first level, which is how KVM makes it up on many hosts, there is one that it does not tell of.
    fn of_core(self) -> Vec<&'static [CacheKind]> {
        let mut levels: Vec<_> = self.levels().collect();
        if levels.len() > 1 {
            levels.pop_if(|last| **last == [Unified]);
        }
        levels
    }
}

/// The machine's tables. `dsdt` holds the devices; the processors are added here.
pub fn tables(platform: &Platform<'_>, mut dsdt: Dsdt) -> Vec<Table> {
    dsdt.device(&devices::Processors { count: platform.cpus.len() as u32 });
    let mut tables = vec![dsdt.table(), fadt(), madt(platform), gtdt(), pptt(platform)];
    if let Some(console) = &platform.console {
        tables.extend([spcr(console), dbg2(console)]);
    }
    if !platform.ecam.is_empty() {
        tables.push(mcfg(platform.ecam));
    }
    if matches!(platform.gic, GicConfig::V3 { its: Some(_), .. }) {
        tables.push(iort(platform.ecam));
    }
    tables
}

fn fadt() -> Table {
    const PSCI_COMPLIANT: u16 = 1 << 0;
    const PSCI_USE_HVC: u16 = 1 << 1;
    let mut fadt = new_fadt();
    fadt.arm_boot_arch = (PSCI_COMPLIANT | PSCI_USE_HVC).into();
    finish_fadt(fadt.flag(Flags::HwReducedAcpi)).with_pointer(FADT_X_DSDT, PointerSize::Eight, *b"DSDT")
}

/// INTID of a private peripheral interrupt.
fn private(number: u32) -> u32 {
    ppi::FIRST + number
}

fn madt(platform: &Platform<'_>) -> Table {
    let mut body = vec![0; 8];
    gicd(&mut body, platform.gic);
    let cpu_interface = match platform.gic {
        GicConfig::V2 { cpu_interface, .. } => *cpu_interface,
        GicConfig::V3 { .. } => 0,
    };
    for (index, &mpidr) in platform.cpus.iter().enumerate() {
        let pmu = if platform.pmu { private(ppi::PMU) } else { 0 };
        gicc(&mut body, index as u32, mpidr, cpu_interface, pmu);
    }
    match platform.gic {
        GicConfig::V2 { .. } => msi_frame(&mut body, GICV2M_FRAME),
        GicConfig::V3 { redistributors, its, .. } => {
            for region in redistributors {
                let size = u64::from(region.count) * super::layout::REDISTRIBUTOR_SIZE;
                gicr(&mut body, region.base, size as u32);
            }
            if let Some(its) = its {
                gic_its(&mut body, *its);
            }
        }
    }
    Table::new(*b"APIC", 5, &body)
}

/// GIC CPU interface, as of ACPI 6.3.
fn gicc(body: &mut Vec<u8>, index: u32, mpidr: u64, cpu_interface: u64, pmu: u32) {
    const ENABLED: u32 = 1;
    body.vec(&[0x0b, 80, 0, 0]);
    // In a GICv2 it is the number of the interface, which all software takes to be the index.
    body.dword(index);
    body.dword(index);
    body.dword(ENABLED);
    // No parking protocol.
    body.dword(0);
    body.dword(pmu);
    body.qword(0);
    body.qword(cpu_interface);
    // No virtualization of its own: no GICV, no GICH, no maintenance interrupt. Redistributors are told by region.
    body.qword(0);
    body.qword(0);
    body.dword(0);
    body.qword(0);
    body.qword(mpidr);
    body.vec(&[0; 4]);
}

fn gicd(body: &mut Vec<u8>, gic: &GicConfig) {
    let (version, base) = match gic {
        GicConfig::V2 { distributor, .. } => (2, *distributor),
        GicConfig::V3 { distributor, .. } => (3, *distributor),
    };
    body.vec(&[0x0c, 24, 0, 0]);
    body.dword(0);
    body.qword(base);
    body.dword(0);
    body.vec(&[version, 0, 0, 0]);
}

fn msi_frame(body: &mut Vec<u8>, frame: AddressRange) {
    /// The numbers here hold, not those of the frame's MSI_TYPER.
    const NUMBERS_GIVEN: u32 = 1;
    body.vec(&[0x0d, 24, 0, 0]);
    body.dword(0);
    body.qword(frame.base);
    body.dword(NUMBERS_GIVEN);
    body.word((spi::GICV2M.end - spi::GICV2M.start) as u16);
    body.word((spi::FIRST + spi::GICV2M.start) as u16);
}

fn gicr(body: &mut Vec<u8>, base: u64, size: u32) {
    body.vec(&[0x0e, 16, 0, 0]);
    body.qword(base);
    body.dword(size);
}

fn gic_its(body: &mut Vec<u8>, base: u64) {
    body.vec(&[0x0f, 20, 0, 0]);
    body.dword(ITS_ID);
    body.qword(base);
    body.dword(0);
}

/// The ITS' id in MADT and IORT.
const ITS_ID: u32 = 0;

/// Processor properties topology table, revision 2: sockets, cores where they have threads, and processors, by their unique ids, with their caches. How large
/// these are is not told: KVM makes the registers up that a guest would read it from.
fn pptt(platform: &Platform<'_>) -> Table {
    const PHYSICAL: u32 = 1 << 0;
    const ID_VALID: u32 = 1 << 1;
    const THREAD: u32 = 1 << 2;
    const LEAF: u32 = 1 << 3;
    let mut nodes = Nodes(Vec::new());
    let levels = platform.caches.of_core();
    let threads = platform.topology.threads > 1;
    let (mut socket, mut core) = (Reference::NONE, Reference::NONE);
    for index in 0..platform.cpus.len() as u32 {
        let place = platform.topology.place(index);
        if (place.core, place.thread) == (0, 0) {
            let last = if levels.is_empty() { Nearest::new() } else { nodes.caches(&[&[Unified]]) };
            socket = nodes.processor(PHYSICAL, Reference::NONE, 0, &last);
        }
        let own = if place.thread == 0 { nodes.caches(&levels) } else { Nearest::new() };
        if !threads {
            nodes.processor(ID_VALID | LEAF, socket, index, &own);
            continue;
        }
        if place.thread == 0 {
            core = nodes.processor(0, socket, 0, &own);
        }
        nodes.processor(ID_VALID | THREAD | LEAF, core, index, &Nearest::new());
    }
    Table::new(*b"PPTT", 2, &nodes.0)
}

/// Where in a PPTT a node is.
#[derive(Clone, Copy)]
struct Reference(u32);

impl Reference {
    const NONE: Self = Self(0);
}

/// The caches that a processor, or what processors are in, has nearest to itself.
type Nearest = Vec<(CacheKind, Reference)>;

/// The nodes of a PPTT.
struct Nodes(Vec<u8>);

impl Nodes {
    fn next(&self) -> Reference {
        Reference((HEADER_SIZE + self.0.len()) as u32)
    }

    /// Adds a processor, or what processors are in.
    fn processor(&mut self, flags: u32, parent: Reference, id: u32, caches: &Nearest) -> Reference {
        let (this, body) = (self.next(), &mut self.0);
        body.vec(&[0, 20 + 4 * caches.len() as u8, 0, 0]);
        [flags, parent.0, id, caches.len() as u32].into_iter().for_each(|word| body.dword(word));
        caches.iter().for_each(|(_, cache)| body.dword(cache.0));
        this
    }

    /// Adds caches of these levels, each of which leads to the next.
    fn caches(&mut self, levels: &[&[CacheKind]]) -> Nearest {
        let add = |next: Nearest, kinds: &&[CacheKind]| kinds.iter().map(|kind| self.cache(*kind, &next)).collect();
        levels.iter().rev().fold(Nearest::new(), add)
    }

    fn cache(&mut self, kind: CacheKind, next: &Nearest) -> (CacheKind, Reference) {
        const TYPE_VALID: u32 = 1 << 4;
        let next = next.iter().find(|(next, _)| [kind, Unified].contains(next)).map_or(Reference::NONE, |next| next.1);
        let (this, body) = (self.next(), &mut self.0);
        body.vec(&[1, 24, 0, 0]);
        // Of size, sets, ways, attributes and line size only the attributes are known.
        [TYPE_VALID, next.0, 0, 0].into_iter().for_each(|word| body.dword(word));
        body.vec(&[0, kind as u8, 0, 0]);
        (kind, this)
    }
}

/// Generic timer description table, revision 2: level-triggered, active-high, as the device tree has them.
fn gtdt() -> Table {
    const NO_ADDRESS: u64 = u64::MAX;
    const ALWAYS_ON: u32 = 1 << 2;
    let mut body = Vec::new();
    body.qword(NO_ADDRESS);
    body.dword(0);
    for timer in [ppi::TIMER_SECURE, ppi::TIMER_PHYSICAL, ppi::TIMER_VIRTUAL, ppi::TIMER_HYPERVISOR] {
        body.dword(private(timer));
        body.dword(ALWAYS_ON);
    }
    body.qword(NO_ADDRESS);
    // No platform timers.
    body.qword(0);
    Table::new(*b"GTDT", 2, &body)
}

/// Debug port table 2: the console.
fn dbg2(console: &SerialConsole) -> Table {
    const HEADER: usize = HEADER_SIZE;
    const DEVICE: u32 = 44;
    const SERIAL: u16 = 0x8000;
    const NAME: &[u8] = b"\\_SB.COM1\0";
    const INFO: u16 = 22;
    const ADDRESS: u16 = INFO + 12;
    const NAMESPACE: u16 = ADDRESS + 4;
    let mut body = Vec::new();
    body.dword(DEVICE);
    body.dword(1);
    debug_assert_eq!(HEADER + body.len(), DEVICE as usize);
    body.byte(0);
    body.word(NAMESPACE + NAME.len() as u16);
    body.byte(1);
    body.word(NAME.len() as u16);
    body.word(NAMESPACE);
    body.word(0);
    body.word(0);
    body.word(SERIAL);
    body.word(console.kind.interface().into());
    body.word(0);
    body.word(INFO);
    body.word(ADDRESS);
    acpi_tables::Aml::to_aml_bytes(&console.kind.address(console.registers), &mut body);
    body.dword(console.registers.size as u32);
    body.vec(NAME);
    Table::new(*b"DBG2", 0, &body)
}

/// I/O remapping table, revision 0: every PCI requester id is the device id that the ITS sees.
fn iort(segments: &[Ecam]) -> Table {
    const HEADER: u32 = crate::acpi::HEADER_SIZE as u32;
    const NODES: u32 = HEADER + 12;
    const ITS_GROUP: u8 = 0;
    const ROOT_COMPLEX: u8 = 2;
    const ROOT_COMPLEX_SIZE: u16 = 36;
    const MAPPING_SIZE: u16 = 20;
    /// Memory accesses are coherent, by the CPUs' own attributes.
    const COHERENT: u32 = 1;
    const CPU_ATTRIBUTES: u8 = 0b11;
    const LAST_REQUESTER: u32 = 0xffff;
    let mut body = Vec::new();
    body.dword(1 + segments.len() as u32);
    body.dword(NODES);
    body.dword(0);
    let its = HEADER + body.len() as u32;
    body.byte(ITS_GROUP);
    body.word(24);
    body.vec(&[0; 5]);
    body.dword(0);
    body.dword(0);
    body.dword(1);
    body.dword(ITS_ID);
    for segment in segments {
        body.byte(ROOT_COMPLEX);
        body.word(ROOT_COMPLEX_SIZE + MAPPING_SIZE);
        body.vec(&[0; 5]);
        body.dword(1);
        body.dword(ROOT_COMPLEX_SIZE.into());
        body.dword(COHERENT);
        body.vec(&[0, 0, 0, CPU_ATTRIBUTES]);
        // No ATS.
        body.dword(0);
        body.dword(segment.segment.into());
        body.dword(0);
        body.dword(0);
        body.dword(LAST_REQUESTER);
        body.dword(0);
        body.dword(its);
        body.dword(0);
    }
    Table::new(*b"IORT", 0, &body)
}

#[cfg(test)]
#[path = "acpi_test.rs"]
mod test;
