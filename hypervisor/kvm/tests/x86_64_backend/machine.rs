//! A VM in one line, and a device that notes all accesses.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use skep_hypervisor::x86_64::{
    BootState, GeneralRegisters, Io, MsrFault, Segment, SystemRegisters, VcpuConfig, VcpuState, VmConfig,
};
use skep_hypervisor::{Capabilities, Exit, Hypervisor, Kick, MemoryIo, Parts, Powers, Vcpu, VmRequest, X86_64, x86_64};
use skep_kvm::Kvm;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};

use crate::guest::END;

pub(crate) const RAM_SIZE: u64 = 4 << 20;
/// Where the guest's code lies.
pub(crate) const CODE: u64 = 0x1_0000;
/// Where nothing is: an access makes a callback.
pub(crate) const DEVICE: u64 = 0xd000_0000;
pub(crate) const PINS: u32 = 24;

pub(crate) fn kvm() -> Kvm {
    skep_kvm::open().expect("these tests need /dev/kvm")
}

/// Whether this host's CPU has VMX or SVM.
pub(crate) fn has_hardware() -> bool {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    ["vmx", "svm"].iter().any(|flag| cpuinfo.split_whitespace().any(|word| word == *flag))
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    In(u16, usize),
    Out(u16, usize, u32),
    Read(u64, usize),
    Write(u64, usize, u64),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    EndOfInterrupt(u8),
}

/// Notes every access, answers reads by the bytes 0x81, 0x82, ..., and kicks at [`END`].
pub(crate) struct Device {
    pub(crate) accesses: Vec<Access>,
    pub(crate) kicker: Arc<dyn Kick>,
    /// What the PIC has for the CPU.
    pub(crate) external: Arc<Mutex<VecDeque<u8>>>,
    /// What is told of each write to port 0x80.
    pub(crate) listener: Option<Sender<()>>,
    /// What an MSR holds; `None` refuses it.
    pub(crate) msr: Option<u64>,
    /// A further port that kicks.
    pub(crate) kicking_port: Option<u16>,
}

impl Device {
    pub(crate) fn of(vcpu: &dyn Vcpu<X86_64>) -> Self {
        let (accesses, external) = Default::default();
        Self { accesses, kicker: vcpu.kicker(), external, listener: None, msr: None, kicking_port: None }
    }

    /// How often a byte was written to a port.
    pub(crate) fn written(&self, port: u16, value: u32) -> usize {
        self.accesses.iter().filter(|access| **access == Access::Out(port, 1, value)).count()
    }
}

fn number(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn answer(data: &mut [u8]) {
    data.iter_mut().zip(0x81..).for_each(|(byte, value)| *byte = value);
}

impl MemoryIo for Device {
    fn memory_read(&mut self, gpa: u64, data: &mut [u8]) {
        self.accesses.push(Access::Read(gpa, data.len()));
        answer(data);
    }

    fn memory_write(&mut self, gpa: u64, data: &[u8]) {
        self.accesses.push(Access::Write(gpa, data.len(), number(data)));
    }
}

impl Io for Device {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.accesses.push(Access::In(port, data.len()));
        answer(data);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if port == END || self.kicking_port == Some(port) {
            self.kicker.kick();
        }
        if let (Some(listener), 0x80) = (&self.listener, port) {
            listener.send(()).unwrap();
        }
        if port != END {
            self.accesses.push(Access::Out(port, data.len(), number(data) as u32));
        }
    }

    fn msr_read(&mut self, msr: u32) -> Result<u64, MsrFault> {
        self.accesses.push(Access::ReadMsr(msr));
        self.msr.ok_or(MsrFault)
    }

    fn msr_write(&mut self, msr: u32, value: u64) -> Result<(), MsrFault> {
        self.accesses.push(Access::WriteMsr(msr, value));
        self.msr = Some(self.msr.map(|_| value).ok_or(MsrFault)?);
        Ok(())
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.accesses.push(Access::EndOfInterrupt(vector));
    }

    fn external_interrupt(&self) -> bool {
        !self.external.lock().unwrap().is_empty()
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.external.lock().unwrap().pop_front()
    }
}

/// A VM with RAM from 0 on.
pub(crate) struct Machine {
    pub(crate) parts: Parts<X86_64>,
    pub(crate) memory: MemoryMap,
}

/// What the host offers.
pub(crate) fn capabilities() -> x86_64::Capabilities {
    let request = VmRequest { max_vcpus: 1, highest_gpa: 0xffff_ffff, powers: Powers::all() };
    let builder = Hypervisor::<X86_64>::builder(&kvm(), &request).unwrap();
    builder.capabilities().arch.clone()
}

/// A vCPU's configuration by what the host offers.
pub(crate) fn vcpu_config(capabilities: &Capabilities<X86_64>, apic_id: u32) -> VcpuConfig {
    let mut cpuid = capabilities.arch.cpuid.clone();
    if let Some(leaf) = cpuid.get_mut(1, 0) {
        leaf.ebx = leaf.ebx & 0x00ff_ffff | apic_id << 24;
        // x2APIC is KVM's to offer wherever the local APIC is its own.
        leaf.ecx |= 1 << 21;
    }
    for entry in cpuid.0.iter_mut().filter(|entry| matches!(entry.leaf, 0xb | 0x1f)) {
        entry.edx = apic_id;
    }
    VcpuConfig { apic_id, cpuid, arch_capabilities: None }
}

impl Machine {
    /// With one vCPU.
    pub(crate) fn new() -> Self {
        Self::with(Powers::all(), &[0])
    }

    /// With vCPUs of these APIC ids.
    pub(crate) fn with(powers: Powers, apic_ids: &[u32]) -> Self {
        Self::changed(powers, apic_ids, |_| ())
    }

    /// The same, with the vCPUs' configurations changed.
    pub(crate) fn changed(powers: Powers, apic_ids: &[u32], change: impl FnMut(&mut VcpuConfig)) -> Self {
        let max_vcpus = u32::try_from(apic_ids.len()).unwrap();
        let request = VmRequest { max_vcpus, highest_gpa: 0xffff_ffff, powers };
        let kvm = kvm();
        let builder = Hypervisor::<X86_64>::builder(&kvm, &request).unwrap();
        let mut configs: Vec<_> = apic_ids.iter().map(|id| vcpu_config(builder.capabilities(), *id)).collect();
        configs.iter_mut().for_each(change);
        let parts = builder.build(&VmConfig { ioapic_pins: PINS }, &configs).unwrap();
        let memory = MemoryMap::new();
        memory.listen(parts.vm.memory()).unwrap();
        let backing = Arc::new(Backing::new(RAM_SIZE, &RamOptions::default()).unwrap());
        memory.add(Region::new("RAM", RegionKind::Ram, 0, RAM_SIZE, backing, 0).unwrap()).unwrap();
        Self { parts, memory }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.ram().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.ram().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn vcpu(&mut self) -> &mut dyn Vcpu<X86_64> {
        &mut *self.parts.vcpus[0]
    }

    /// Loads `code`, and lets the first vCPU begin there with these registers.
    pub(crate) fn boot(&mut self, code: &[u8], general: GeneralRegisters) -> Device {
        self.write(CODE, code);
        self.vcpu().boot(&flat(general)).unwrap();
        Device::of(self.vcpu())
    }

    /// Runs the first vCPU.
    pub(crate) fn run(&mut self, device: &mut Device) -> Exit {
        self.vcpu().run(device).unwrap()
    }

    /// Saves the first vCPU.
    pub(crate) fn save(&mut self) -> VcpuState {
        let mut device = Device::of(self.vcpu());
        let state = self.vcpu().save(&mut device).unwrap();
        assert_eq!(device.accesses, [], "no access was under way");
        state
    }
}

/// 32-bit protected mode in flat segments, at [`CODE`] with a stack below it.
pub(crate) fn flat(general: GeneralRegisters) -> BootState {
    let segment = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes, unusable: false };
    let data = segment(0x10, 0xc093);
    let tr = Segment { selector: 0x18, base: 0, limit: 0x67, attributes: 0x8b, unusable: false };
    let ldt = Segment { unusable: true, ..Segment::default() };
    let system = SystemRegisters {
        cs: segment(8, 0xc09b),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        ldt,
        cr0: 0x11,
        ..Default::default()
    };
    BootState { general: GeneralRegisters { rip: CODE, rsp: CODE, rflags: 2, ..general }, system }
}
