//! A VM in one line.

use std::sync::Arc;

use skep_hypervisor::aarch64::{
    BootState, Features, GicConfig, GicVersion, Io, RedistributorRegion, VcpuConfig, VmConfig,
};
use skep_hypervisor::{Aarch64, Hypervisor, MemoryIo, Parts, Powers, VmBuilder, VmRequest};
use skep_kvm::Kvm;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: u64 = 4 << 20;
/// Where nothing is: an access makes a callback.
pub(crate) const DEVICE: u64 = 0x0900_0000;
pub(crate) const DISTRIBUTOR: u64 = 0x0800_0000;
pub(crate) const CPU_INTERFACE: u64 = 0x0801_0000;
pub(crate) const ITS: u64 = 0x0808_0000;
pub(crate) const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Redistributors beyond those that fit the first region.
pub(crate) const MORE_REDISTRIBUTORS: u64 = 0x40_0000_0000;
pub(crate) const FIRST_REGION: u32 = 123;
pub(crate) const SPIS: u32 = 64;

/// What a test asks for beyond one vCPU on the board's best GIC.
#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) cpus: u32,
    pub(crate) gic: Option<GicVersion>,
    pub(crate) features: Features,
    pub(crate) powers: Powers,
}

impl Default for Options {
    fn default() -> Self {
        Self { cpus: 1, gic: None, features: Features::default(), powers: Powers::all() }
    }
}

/// A VM with RAM.
pub(crate) struct Machine {
    pub(crate) parts: Parts<Aarch64>,
    pub(crate) memory: MemoryMap,
    pub(crate) gic: GicVersion,
}

pub(crate) fn kvm() -> Kvm {
    skep_kvm::open().expect("these tests need /dev/kvm")
}

pub(crate) fn builder(cpus: u32, powers: Powers) -> Box<dyn VmBuilder<Aarch64>> {
    let highest_gpa = if cpus > FIRST_REGION { MORE_REDISTRIBUTORS + (1 << 32) - 1 } else { RAM + RAM_SIZE - 1 };
    kvm().builder(&VmRequest { max_vcpus: cpus, highest_gpa, powers }).unwrap()
}

/// The GICs of this board.
pub(crate) fn gics() -> Vec<GicVersion> {
    let gics: Vec<_> = builder(1, Powers::all()).capabilities().arch.gics.iter().map(|gic| gic.version).collect();
    assert!(!gics.is_empty(), "a board has a GIC");
    gics
}

/// 16 CPUs in a cluster.
pub(crate) fn affinity(index: u32) -> u64 {
    u64::from(index % 16 | index / 16 << 8)
}

pub(crate) fn config(gic: GicVersion, cpus: u32) -> VmConfig {
    let gic = match gic {
        GicVersion::V2 => GicConfig::V2 { distributor: DISTRIBUTOR, cpu_interface: CPU_INTERFACE },
        GicVersion::V3 => {
            let first = RedistributorRegion { base: REDISTRIBUTORS, count: cpus.min(FIRST_REGION) };
            let more = RedistributorRegion { base: MORE_REDISTRIBUTORS, count: cpus.saturating_sub(FIRST_REGION) };
            let redistributors = [first, more].into_iter().filter(|region| region.count > 0).collect();
            GicConfig::V3 { distributor: DISTRIBUTOR, redistributors, its: Some(ITS) }
        }
    };
    VmConfig { gic, spis: SPIS }
}

impl Machine {
    pub(crate) fn new(options: &Options) -> Self {
        let builder = builder(options.cpus, options.powers);
        let gic = options.gic.unwrap_or(builder.capabilities().arch.gics[0].version);
        let vcpus: Vec<_> =
            (0..options.cpus).map(|i| VcpuConfig { mpidr: affinity(i), features: options.features }).collect();
        let parts = builder.build(&config(gic, options.cpus), &vcpus).unwrap();
        let memory = MemoryMap::new();
        memory.listen(parts.vm.memory()).unwrap();
        let backing = Arc::new(Backing::new(RAM_SIZE, &RamOptions::default()).unwrap());
        memory.add(Region::new("ram", RegionKind::Ram, RAM, RAM_SIZE, backing, 0).unwrap()).unwrap();
        Self { parts, memory, gic }
    }

    /// Puts `code` at the start of RAM and lets the first vCPU begin there.
    pub(crate) fn boot(&mut self, code: &[u8], x: [u64; 4]) {
        self.write(RAM, code);
        self.parts.vcpus[0].boot(&BootState { pc: RAM, x }).unwrap();
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    pub(crate) fn read(&self, gpa: u64) -> u64 {
        self.memory.ram().read_obj(GuestAddress(gpa)).unwrap()
    }
}

/// A device of 8 bytes, and a record of each access.
#[derive(Default)]
pub(crate) struct Device {
    pub(crate) value: [u8; 8],
    pub(crate) accesses: Vec<(char, u64, usize)>,
}

impl MemoryIo for Device {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.accesses.push(('r', gpa, data.len()));
        data.copy_from_slice(&self.value[..data.len()]);
    }

    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        self.accesses.push(('w', gpa, data.len()));
        self.value[..data.len()].copy_from_slice(data);
    }
}

impl Io for Device {}
