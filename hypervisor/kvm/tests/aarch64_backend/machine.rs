//! A VM in one line, with the probe in it.

use std::sync::Arc;

use skep_guest_protocol::{AARCH64_END, AARCH64_LOAD, IRQ_TABLE_SIZE, Op, Operation, Status, Width, irq_slot};
use skep_hypervisor::aarch64::{
    BootState, Features, GicConfig, GicSupport, GicVersion, Io, RedistributorRegion, VcpuConfig, VcpuState, VmConfig,
};
use skep_hypervisor::{
    Aarch64, Exit, Hypervisor, HypervisorError, Kick, MemoryIo, Parts, Powers, VmBuilder, VmRequest,
};
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const RAM_SIZE: u64 = 8 << 20;
/// Where nothing is. A write to it pauses the vCPU, one to the word after it ends its list.
pub(crate) const DEVICE: u64 = 0x0a00_0000;
const END: u64 = DEVICE + 8;
pub(crate) const DISTRIBUTOR: u64 = 0x0800_0000;
pub(crate) const CPU_INTERFACE: u64 = 0x0801_0000;
pub(crate) const ITS: u64 = 0x0808_0000;
pub(crate) const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Redistributors beyond those that fit between the first ones and the next device.
pub(crate) const MORE_REDISTRIBUTORS: u64 = 0x40_0000_0000;
/// How many fit.
pub(crate) const FIRST_REGION: u32 = 123;
pub(crate) const SPIS: u32 = 64;

/// In the guest's RAM: its list, its table of interrupts, and the ITS's tables.
const LIST: u64 = AARCH64_END;
const TABLE: u64 = LIST + 0x4000;
pub(crate) const ITS_TABLES: u64 = RAM + (4 << 20);

/// What a VM is made of.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) gic: GicVersion,
    pub(crate) mpidrs: Vec<u64>,
    pub(crate) features: Features,
}

impl Plan {
    /// `cpus` vCPUs, 16 to a cluster, on the board's best GIC.
    pub(crate) fn new(cpus: u32) -> Self {
        let mpidrs = (0..cpus).map(|i| u64::from((i / 16) << 8 | (i % 16))).collect();
        Self { gic: gics()[0].version, mpidrs, features: Features::default() }
    }

    fn config(&self) -> VmConfig {
        let cpus = u32::try_from(self.mpidrs.len()).unwrap();
        let gic = match self.gic {
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

    /// Makes the VM, without RAM.
    pub(crate) fn build(&self) -> Result<Parts<Aarch64>, HypervisorError> {
        self.build_with(&self.config())
    }

    pub(crate) fn build_with(&self, config: &VmConfig) -> Result<Parts<Aarch64>, HypervisorError> {
        let vcpus: Vec<_> = self.mpidrs.iter().map(|&mpidr| VcpuConfig { mpidr, features: self.features }).collect();
        let highest = if self.mpidrs.len() > FIRST_REGION as usize { MORE_REDISTRIBUTORS + (1 << 32) } else { 1 << 32 };
        builder(u32::try_from(vcpus.len()).unwrap(), highest - 1)?.build(config, &vcpus)
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::new(self)
    }
}

pub(crate) fn builder(max_vcpus: u32, highest_gpa: u64) -> Result<Box<dyn VmBuilder<Aarch64>>, HypervisorError> {
    let kvm = skep_kvm::open().expect("these tests need /dev/kvm");
    kvm.builder(&VmRequest { max_vcpus, highest_gpa, powers: Powers::all() })
}

/// The GICs of this board, the best first.
pub(crate) fn gics() -> Vec<GicSupport> {
    let gics = builder(1, RAM).unwrap().capabilities().arch.gics.clone();
    assert!(!gics.is_empty(), "a board has a GIC");
    gics
}

/// A VM with RAM, and the probe in it.
pub(crate) struct Machine {
    pub(crate) parts: Parts<Aarch64>,
    plan: Plan,
    memory: MemoryMap,
}

impl Machine {
    fn new(plan: &Plan) -> Self {
        let parts = plan.build().unwrap();
        let memory = MemoryMap::new();
        memory.listen(parts.vm.memory()).unwrap();
        let backing = Arc::new(Backing::new(RAM_SIZE, &RamOptions::default()).unwrap());
        memory.add(Region::new("ram", RegionKind::Ram, RAM, RAM_SIZE, backing, 0).unwrap()).unwrap();
        let machine = Self { parts, plan: plan.clone(), memory };
        machine.write(AARCH64_LOAD, skep_guests::PROBE_AARCH64);
        machine
    }

    /// Another one like it, whose RAM holds the same.
    pub(crate) fn successor(&self) -> Self {
        let successor = Self::new(&self.plan);
        let mut ram = vec![0; RAM_SIZE as usize];
        self.memory.ram().read_slice(&mut ram, GuestAddress(RAM)).unwrap();
        successor.write(RAM, &ram);
        successor
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    /// Lets the first vCPU begin with a list of operations.
    pub(crate) fn boot(&mut self, operations: &[Operation]) {
        let end = Operation::End { doorbell: END };
        for (n, operation) in operations.iter().chain([&end]).enumerate() {
            self.write(LIST + (n * Op::SIZE) as u64, &operation.encode().to_bytes());
        }
        self.parts.vcpus[0].boot(&BootState { pc: AARCH64_LOAD, x: [LIST, 0, 0, 0] }).unwrap();
    }

    /// Runs the first vCPU until its list pauses or ends.
    pub(crate) fn run(&mut self) {
        let mut device = Device(self.parts.vcpus[0].kicker());
        assert_eq!(self.parts.vcpus[0].run(&mut device).unwrap(), Exit::Kicked);
    }

    /// Runs a list to its end, and gives each operation's result.
    pub(crate) fn results(&mut self, operations: &[Operation]) -> Vec<u64> {
        self.boot(operations);
        self.run();
        (0..operations.len()).map(|n| self.result(n)).collect()
    }

    /// The result of an operation that has been carried out.
    pub(crate) fn result(&self, n: usize) -> u64 {
        let mut bytes = [0; Op::SIZE];
        self.memory.ram().read_slice(&mut bytes, GuestAddress(LIST + (n * Op::SIZE) as u64)).unwrap();
        let op = Op::from_bytes(&bytes);
        assert_eq!(op.outcome(), Some(Status::Done), "operation {n}: {:?}", Operation::decode(&op));
        op.result
    }

    /// How often the guest has taken an interrupt.
    pub(crate) fn taken(&self, irq: u64) -> u64 {
        let slot = irq_slot(irq).unwrap() * (IRQ_TABLE_SIZE / skep_guest_protocol::IRQ_SLOTS);
        self.memory.ram().read_obj(GuestAddress(TABLE + slot)).unwrap()
    }

    pub(crate) fn init_gic(&self) -> Operation {
        let (gic, interface) = match self.plan.gic {
            GicVersion::V2 => (skep_guest_protocol::Gic::V2, CPU_INTERFACE),
            GicVersion::V3 => (skep_guest_protocol::Gic::V3, REDISTRIBUTORS),
        };
        Operation::InitGic { gic, distributor: DISTRIBUTOR, interface, table: TABLE }
    }

    pub(crate) fn save_vcpu(&mut self, index: usize) -> VcpuState {
        let mut device = Device(self.parts.vcpus[index].kicker());
        self.parts.vcpus[index].save(&mut device).unwrap()
    }
}

/// Lets the test go on, until it runs the vCPU again.
pub(crate) const PAUSE: Operation = Operation::WriteMemory { address: DEVICE, value: 0, width: Width::Four };

/// Kicks its vCPU at each access.
pub(crate) struct Device(pub(crate) Arc<dyn Kick>);

impl MemoryIo for Device {
    fn memory_read(&mut self, gpa: u64, _data: &mut [u8]) {
        panic!("the guest reads {gpa:#x}, where nothing is");
    }

    fn memory_write(&mut self, gpa: u64, _data: &[u8]) {
        assert!(gpa == DEVICE || gpa == END, "the guest writes to {gpa:#x}, where nothing is");
        self.0.kick();
    }
}

impl Io for Device {}

/// A generator of values that are the same in every run (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, among: &'a mut [T]) -> &'a mut T {
        &mut among[self.below(among.len())]
    }
}
