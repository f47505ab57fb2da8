//! The VM and its builder.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_MAX_VCPU_ID, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_CONTROL, KVM_CAP_X2APIC_API, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MSR_EXIT_REASON_UNKNOWN, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use skep_hypervisor::x86_64::{Capabilities as X86Capabilities, Cpuid, Interrupts, VcpuConfig, VmConfig};
use skep_hypervisor::{
    Capabilities, Doorbells, GuestClock, HypervisorError, Parts, PostedWrites, Powers, Vcpu, Vm, VmBuilder, VmRequest,
    X86_64,
};
use skep_memory::{DirtySource, Listener};

use super::apic::Apics;
use super::clock::KvmClock;
use super::state::Support;
use super::tsc::Standstill;
use super::vcpu::X86Vcpu;
use super::{cpuid, ioctl, msrs};
use crate::doorbells::IoEvents;
use crate::posted::Posted;
use crate::slots::Slots;
use crate::{Kvm, NAME, device};

/// Three pages for a task state segment and one for page tables, which VMX needs to run real mode where it can't do so by itself. They lie in
/// a part of the address space in which no machine has anything.
const VMX_IDENTITY_MAP: u64 = 0xfeff_c000;
const VMX_TSS: usize = 0xfeff_d000;

/// A VM that is being made.
pub(super) struct Builder {
    kvm: Kvm,
    vm: Arc<VmFd>,
    capabilities: Capabilities<X86_64>,
}

fn limit(what: &'static str, wanted: u64, limit: u64, mend: &str) -> Result<(), HypervisorError> {
    if wanted <= limit {
        return Ok(());
    }
    Err(HypervisorError::Limit { backend: NAME, what, wanted, limit, mend: mend.to_owned() })
}

/// What a VM answers for a capability; 0 is no.
pub(super) fn capability(vm: &VmFd, cap: u32) -> u32 {
    u32::try_from(vm.check_extension_raw(libc::c_ulong::from(cap))).unwrap_or(0)
}

/// Enables a capability of a VM.
pub(super) fn enable(vm: &VmFd, cap: u32, arg: u64) -> io::Result<()> {
    let request = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
    vm.enable_cap(&request).map_err(io::Error::from)
}

/// What KVM offers in IA32_ARCH_CAPABILITIES.
fn arch_capabilities(kvm: &Kvm, cpuid: &Cpuid) -> u64 {
    if cpuid.shows_arch_capabilities() { msrs::feature(&kvm.system, msrs::ARCH_CAPABILITIES) } else { 0 }
}

impl Builder {
    pub(super) fn new(kvm: &Kvm, request: &VmRequest) -> Result<Self, HypervisorError> {
        let vm = Arc::new(kvm.system.create_vm().map_err(device::no_vm)?);
        // What came last of all that can't be done without: where it is, the rest is (Linux 5.10).
        if capability(&vm, KVM_CAP_X86_USER_SPACE_MSR) == 0 {
            let (what, mend) = ("MSR accesses in user space".to_owned(), ": use Linux 5.10 or later".to_owned());
            return Err(HypervisorError::Missing { backend: NAME, what, mend });
        }
        let cpuid = cpuid::supported(kvm)?.clone();
        let capabilities = Capabilities {
            powers: request.powers,
            max_vcpus: capability(&vm, Cap::MaxVcpus as u32),
            address_bits: cpuid::address_bits(&cpuid),
            memory_slots: capability(&vm, Cap::NrMemslots as u32),
            arch: X86Capabilities {
                arch_capabilities: arch_capabilities(kvm, &cpuid),
                cpuid,
                apic_ids: capability(&vm, KVM_CAP_MAX_VCPU_ID),
                extended_msi_destinations: true,
                tsc_khz: ioctl::vm_tsc_khz(&vm),
                tsc_scaling: capability(&vm, KVM_CAP_TSC_CONTROL) != 0,
            },
        };
        limit("vCPUs", request.max_vcpus.into(), capabilities.max_vcpus.into(), ": choose fewer --cpus")?;
        let bits = u64::BITS - request.highest_gpa.leading_zeros();
        let mend = ": choose a smaller --memory";
        limit("guest physical address bits", bits.into(), capabilities.address_bits.into(), mend)?;
        Ok(Self { kvm: kvm.clone(), vm, capabilities })
    }

    fn check(&self, vcpus: &[VcpuConfig]) -> Result<(), HypervisorError> {
        let capabilities = &self.capabilities;
        limit("vCPUs", vcpus.len() as u64, capabilities.max_vcpus.into(), ": choose fewer --cpus")?;
        let mut ids = BTreeSet::new();
        for VcpuConfig { apic_id, .. } in vcpus {
            let mend = ": choose fewer --cpus, or a topology that wastes fewer ids";
            limit("the highest APIC id, plus one", u64::from(*apic_id) + 1, capabilities.arch.apic_ids.into(), mend)?;
            if !ids.insert(*apic_id) {
                let twice = io::Error::new(io::ErrorKind::InvalidInput, "no two vCPUs have the same");
                return Err(HypervisorError::call(format!("give a vCPU APIC id {apic_id}"), twice));
            }
        }
        Ok(())
    }
}

/// Makes a new VM what every VM here is, before its first vCPU.
fn prepare(vm: &VmFd, amd: bool, pins: u32, boot_cpu: u32) -> Result<(), HypervisorError> {
    let done = |what: &str, result: io::Result<()>| result.map_err(|e| HypervisorError::call(what, e));
    if !amd {
        let places = vm.set_identity_map_address(VMX_IDENTITY_MAP).and_then(|()| vm.set_tss_address(VMX_TSS));
        done("give VMX its pages for real mode", places.map_err(io::Error::from))?;
    }
    done("split the interrupt controllers (local APICs to KVM)", enable(vm, KVM_CAP_SPLIT_IRQCHIP, pins.into()))?;
    let ids = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    done("use 32-bit APIC ids", enable(vm, KVM_CAP_X2APIC_API, ids.into()))?;
    let unknown = u64::from(KVM_MSR_EXIT_REASON_UNKNOWN);
    done("take MSR accesses that KVM does not know", enable(vm, KVM_CAP_X86_USER_SPACE_MSR, unknown))?;
    if boot_cpu != 0 {
        done("name the bootstrap processor", ioctl::set_boot_cpu(vm, boot_cpu))?;
    }
    Ok(())
}

impl VmBuilder<X86_64> for Builder {
    fn capabilities(&self) -> &Capabilities<X86_64> {
        &self.capabilities
    }

    fn build(self: Box<Self>, config: &VmConfig, vcpus: &[VcpuConfig]) -> Result<Parts<X86_64>, HypervisorError> {
        self.check(vcpus)?;
        let Self { kvm, vm, capabilities } = *self;
        let boot_cpu = vcpus.first().map_or(0, |first| first.apic_id);
        let powers = capabilities.powers;
        let apics = Arc::new(Apics::new(vm.clone(), config.ioapic_pins, powers.contains(Powers::INTERRUPT_EVENTFDS)));
        let shared = Shared::new(kvm, vm.clone(), Arc::new(capabilities), config.ioapic_pins, boot_cpu)?;
        let vcpus = (0..).zip(vcpus).map(|(index, config)| X86Vcpu::boxed(&shared, index, config));
        let vcpus = vcpus.collect::<Result<Vec<_>, _>>()?;
        let machine = X86Vm {
            next_vcpu: AtomicU32::new(u32::try_from(vcpus.len()).unwrap_or(u32::MAX)),
            doorbells: powers.contains(Powers::DOORBELLS).then(|| IoEvents::new(vm.clone())),
            clock: KvmClock(vm),
            shared,
        };
        Ok(Parts { vm: Arc::new(machine), vcpus, interrupts: Interrupts { apics } })
    }
}

/// What a VM and its vCPUs share.
pub(super) struct Shared {
    pub(super) kvm: Kvm,
    pub(super) vm: Arc<VmFd>,
    pub(super) slots: Arc<Slots>,
    pub(super) posted: Arc<Posted>,
    pub(super) capabilities: Arc<Capabilities<X86_64>>,
    pins: u32,
    /// The bootstrap processor's APIC id.
    pub(super) boot_cpu: u32,
    pub(super) standstill: Standstill,
    support: OnceLock<Support>,
    /// The user has been told that the TSC can't be offset.
    pub(super) tsc_told: Once,
    spare: Mutex<Option<Arc<Self>>>,
}

impl Shared {
    fn new(
        kvm: Kvm,
        vm: Arc<VmFd>,
        capabilities: Arc<Capabilities<X86_64>>,
        pins: u32,
        boot_cpu: u32,
    ) -> Result<Arc<Self>, HypervisorError> {
        prepare(&vm, cpuid::is_amd(&capabilities.arch.cpuid), pins, boot_cpu)?;
        let slots = Arc::new(Slots::new(vm.clone(), capabilities.memory_slots, capabilities.address_bits));
        let posted = Arc::new(Posted::new(vm.clone()));
        let (standstill, support, spare) = (Standstill::default(), OnceLock::new(), Mutex::new(None));
        let tsc_told = Once::new();
        Ok(Arc::new(Self {
            kvm,
            vm,
            slots,
            posted,
            capabilities,
            pins,
            boot_cpu,
            standstill,
            support,
            tsc_told,
            spare,
        }))
    }

    /// What saving and restoring need to know; `vcpu` is any of this VM.
    pub(super) fn support(&self, vcpu: &VcpuFd) -> Result<&Support, HypervisorError> {
        if let Some(support) = self.support.get() {
            return Ok(support);
        }
        let support = Support::new(self, vcpu)?;
        Ok(self.support.get_or_init(|| support))
    }

    /// A VM of the same kind, without memory, whose vCPUs are never run: what power-on is on this host is read from them.
    pub(super) fn spare(&self) -> Result<Arc<Self>, HypervisorError> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spare) = &*spare {
            return Ok(spare.clone());
        }
        let vm = Arc::new(self.kvm.system.create_vm().map_err(device::no_vm)?);
        let made = Self::new(self.kvm.clone(), vm, self.capabilities.clone(), self.pins, self.boot_cpu)?;
        Ok(spare.insert(made).clone())
    }
}

/// A VM.
struct X86Vm {
    shared: Arc<Shared>,
    next_vcpu: AtomicU32,
    doorbells: Option<IoEvents>,
    clock: KvmClock,
}

impl Vm<X86_64> for X86Vm {
    fn memory(&self) -> Arc<dyn Listener> {
        self.shared.slots.clone()
    }

    fn add_vcpu(&self, config: &VcpuConfig) -> Result<Option<Box<dyn Vcpu<X86_64>>>, HypervisorError> {
        // A number that was given to a vCPU which could not be made is not given again; KVM's limit is by its own ids.
        let index = self.next_vcpu.fetch_add(1, Ordering::Relaxed);
        limit("vCPUs", u64::from(index) + 1, self.shared.capabilities.max_vcpus.into(), "")?;
        X86Vcpu::boxed(&self.shared, index, config).map(Some)
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        self.doorbells.as_ref().map(|doorbells| doorbells as &dyn Doorbells)
    }

    fn posted_writes(&self) -> Option<Arc<dyn PostedWrites>> {
        let offered = self.shared.capabilities.powers.contains(Powers::POSTED_WRITES);
        offered.then(|| self.shared.posted.clone() as Arc<dyn PostedWrites>)
    }

    fn dirty_source(&self) -> Option<Arc<dyn DirtySource>> {
        let offered = self.shared.capabilities.powers.contains(Powers::DIRTY_LOG);
        offered.then(|| self.shared.slots.clone() as Arc<dyn DirtySource>)
    }

    fn clock(&self) -> &dyn GuestClock {
        &self.clock
    }

    fn begin_save(&self) {
        self.shared.standstill.renew();
    }
}
