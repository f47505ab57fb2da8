//! Making a VM: what KVM on this host can do, and its order of things. vCPUs are all made before the GIC, which then takes no more; all but
//! the first wait, powered off, for PSCI's CPU_ON.

use std::sync::Arc;

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_SVE,
    KVM_CAP_ARM_NISV_TO_USER, KVM_CAP_ARM_PMU_V3, KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC,
    KVM_CAP_ARM_SVE, KVM_CAP_ARM_VM_IPA_SIZE, KVM_CAP_COALESCED_MMIO, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD,
    KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_MAX_VCPUS, KVM_CAP_NR_MEMSLOTS, kvm_device_attr, kvm_enable_cap, kvm_vcpu_init,
};
use kvm_ioctls::VmFd;
use skep_hypervisor::aarch64::{self, GicConfig, GicVersion, Interrupts, VcpuConfig, VmConfig};
use skep_hypervisor::{Aarch64, Capabilities, Hypervisor, HypervisorError, Parts, Powers, Vcpu, VmBuilder, VmRequest};
use skep_irq::MsiTarget;

use super::clock::{self, Clock};
use super::gic::{self, KvmGic};
use super::lines::{ItsTarget, Lines, Spis, to_kvm};
use super::vcpu::{self, KvmVcpu};
use super::vm::KvmVm;
use crate::NAME;
use crate::device::{Kvm, no_vm};
use crate::doorbells::IoEvents;
use crate::posted::Posted;
use crate::routes::Routes;
use crate::slots::Slots;
use crate::vcpu::Core;

/// Guest physical address bits of a KVM that does not tell (Linux 4.19), and of one that is not asked for others.
const DEFAULT_ADDRESS_BITS: u32 = 40;
/// The fewest that KVM takes.
const MIN_ADDRESS_BITS: u32 = 32;
/// INTID of a vCPU's performance monitor: PPI 7, as the Base System Architecture recommends (DEN 0094).
const PMU_INTID: u32 = 23;
/// The most SPIs: KVM takes them by 32, and INTIDs end at 1019.
const MAX_SPIS: u32 = 960;

/// What KVM answers to `KVM_CHECK_EXTENSION`: 0 is no.
pub(super) fn check(vm: &VmFd, capability: u32) -> u32 {
    u32::try_from(vm.check_extension_raw(u64::from(capability) as libc::c_ulong)).unwrap_or(0)
}

/// The most guest physical address bits of a VM on this host.
pub(super) fn address_bits(kvm: &Kvm) -> u32 {
    let told = kvm.system.check_extension_raw(u64::from(KVM_CAP_ARM_VM_IPA_SIZE) as libc::c_ulong);
    u32::try_from(told).ok().filter(|bits| *bits > 0).unwrap_or(DEFAULT_ADDRESS_BITS)
}

/// A VM of enough address bits for `highest_gpa`: the fewer there are, the shorter the walk of stage 2's tables.
pub(super) fn make_vm(kvm: &Kvm, limit: u32, highest_gpa: u64) -> Result<VmFd, HypervisorError> {
    let needed = u64::BITS - highest_gpa.leading_zeros();
    if needed > limit {
        return Err(HypervisorError::Limit {
            backend: NAME,
            what: "guest physical address bits",
            wanted: needed.into(),
            limit: limit.into(),
            mend: ": choose a smaller --memory".to_owned(),
        });
    }
    // A KVM that does not tell its limit has the default only, and its type is 0.
    let bits = if limit == DEFAULT_ADDRESS_BITS { 0 } else { needed.max(MIN_ADDRESS_BITS) };
    kvm.system.create_vm_with_type(bits.into()).map_err(no_vm)
}

/// What KVM can do for a VM.
pub(super) fn capabilities(vm: &VmFd, powers: Powers, address_bits: u32) -> Capabilities<Aarch64> {
    let offered = [
        (Powers::DOORBELLS, KVM_CAP_IOEVENTFD),
        (Powers::INTERRUPT_EVENTFDS, KVM_CAP_IRQFD),
        (Powers::RESAMPLE, KVM_CAP_IRQFD_RESAMPLE),
        (Powers::POSTED_WRITES, KVM_CAP_COALESCED_MMIO),
    ];
    let missing = offered.into_iter().filter(|(power, cap)| powers.contains(*power) && check(vm, *cap) == 0);
    let missing = missing.fold(Powers::empty(), |all, (power, _)| all | power);
    let max_vcpus = check(vm, KVM_CAP_MAX_VCPUS);
    Capabilities {
        powers: powers - missing,
        max_vcpus,
        address_bits: u8::try_from(address_bits).unwrap_or(u8::MAX),
        memory_slots: check(vm, KVM_CAP_NR_MEMSLOTS),
        arch: aarch64::Capabilities {
            gics: gic::offered(vm, max_vcpus),
            sve: check(vm, KVM_CAP_ARM_SVE) > 0,
            pointer_authentication: check(vm, KVM_CAP_ARM_PTRAUTH_ADDRESS) > 0
                && check(vm, KVM_CAP_ARM_PTRAUTH_GENERIC) > 0,
            pmu: check(vm, KVM_CAP_ARM_PMU_V3) > 0,
            counter_hz: clock::frequency(),
        },
    }
}

impl Hypervisor<Aarch64> for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn address_bits(&self) -> Result<u8, HypervisorError> {
        Ok(u8::try_from(address_bits(self)).unwrap_or(u8::MAX))
    }

    fn builder(&self, request: &VmRequest) -> Result<Box<dyn VmBuilder<Aarch64>>, HypervisorError> {
        let address_bits = address_bits(self);
        let vm = make_vm(self, address_bits, request.highest_gpa)?;
        let capabilities = capabilities(&vm, request.powers, address_bits);
        too_many(request.max_vcpus, capabilities.max_vcpus, "vCPUs", ": choose fewer --cpus")?;
        Ok(Box::new(Builder { vm: Arc::new(vm), capabilities }))
    }
}

fn too_many(wanted: u32, limit: u32, what: &'static str, mend: &str) -> Result<(), HypervisorError> {
    let (wanted, limit, mend) = (wanted.into(), limit.into(), mend.to_owned());
    if wanted > limit { Err(HypervisorError::Limit { backend: NAME, what, wanted, limit, mend }) } else { Ok(()) }
}

fn missing(what: impl Into<String>, mend: &str) -> HypervisorError {
    HypervisorError::Missing { backend: NAME, what: what.into(), mend: mend.to_owned() }
}

struct Builder {
    vm: Arc<VmFd>,
    capabilities: Capabilities<Aarch64>,
}

impl Builder {
    /// Refuses by name what KVM would refuse with a number.
    fn check(&self, config: &VmConfig, vcpus: &[VcpuConfig]) -> Result<(), HypervisorError> {
        let (gics, wanted) = (&self.capabilities.arch.gics, config.gic.version());
        let (name, other) = match wanted {
            GicVersion::V2 => ("GICv2", "GICv3"),
            GicVersion::V3 => ("GICv3", "GICv2"),
        };
        let Some(gic) = gics.iter().find(|gic| gic.version == wanted) else {
            let mend = if gics.is_empty() { String::new() } else { format!(": choose {other}, which it has") };
            return Err(missing(name, &mend));
        };
        let mend = if wanted == GicVersion::V2 {
            " with a GICv2: choose GICv3, or fewer --cpus"
        } else {
            ": choose fewer --cpus"
        };
        too_many(u32::try_from(vcpus.len()).unwrap_or(u32::MAX), gic.max_vcpus, "vCPUs", mend)?;
        if matches!(config.gic, GicConfig::V3 { its: Some(_), .. }) && !gic.its {
            return Err(missing("an ITS for its GICv3", ": use a newer kernel"));
        }
        too_many(config.spis, MAX_SPIS, "shared peripheral interrupts (SPIs)", "")?;
        if config.spis == 0 || !config.spis.is_multiple_of(32) {
            return Err(missing(format!("a GIC of {} SPIs", config.spis), ": it has them by 32"));
        }
        match vcpus.iter().find_map(|vcpu| self.capabilities.arch.lacks(vcpu.features)) {
            Some(name) => Err(missing(name, ": leave the CPU feature out")),
            None => Ok(()),
        }
    }
}

impl VmBuilder<Aarch64> for Builder {
    fn capabilities(&self) -> &Capabilities<Aarch64> {
        &self.capabilities
    }

    fn build(self: Box<Self>, config: &VmConfig, vcpus: &[VcpuConfig]) -> Result<Parts<Aarch64>, HypervisorError> {
        self.check(config, vcpus)?;
        let Self { vm, capabilities } = *self;
        let powers = capabilities.powers;
        let slots = Arc::new(Slots::new(vm.clone(), capabilities.memory_slots, capabilities.address_bits));
        let posted = Arc::new(Posted::new(vm.clone()));
        let cores = (0u32..).zip(vcpus).map(|(index, _)| Core::new(&vm, &slots, &posted, index, index.into()));
        let cores = cores.collect::<Result<Vec<_>, _>>()?;
        let Some(first) = cores.first() else { return Err(missing("a VM without vCPUs", "")) };
        let clock = Arc::new(Clock::new(&vm, &first.fd)?);

        let mut target = kvm_vcpu_init::default();
        let failed = |e: kvm_ioctls::Error| HypervisorError::call("ask KVM for its kind of vCPU", e);
        vm.get_preferred_target(&mut target).map_err(failed)?;
        let made = cores.into_iter().zip(vcpus).map(|(core, config)| {
            let init = vcpu::init(target.target, core.index(), config.features);
            initialise(core, init, config, clock.clone())
        });
        let made = made.collect::<Result<Vec<_>, _>>()?;
        // Without it KVM_RUN fails on an access that the CPU does not describe, and does not tell where. It is as old as Linux 5.5.
        let _ = vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() });

        let routes = Arc::new(Routes::new(vm.clone(), config.spis, to_kvm));
        let lines = Arc::new(Lines::new(vm.clone(), config.spis, powers, routes.clone()));
        let mpidrs = vcpus.iter().map(|vcpu| vcpu.mpidr).collect();
        let gic = KvmGic::new(&vm, config, mpidrs, lines.clone())?;
        for (vcpu, _) in made.iter().zip(vcpus).filter(|(_, config)| config.features.pmu) {
            initialise_pmu(vcpu)?;
        }
        let its = match config.gic {
            GicConfig::V3 { its: Some(its), .. } => {
                Some(Arc::new(ItsTarget::new(vm.clone(), its, powers, routes)) as Arc<dyn MsiTarget>)
            }
            _ => None,
        };
        let interrupts = Interrupts { gic: Arc::new(gic), lines: Arc::new(Spis(lines)), its };
        let doorbells = IoEvents::new(vm);
        let vm = Arc::new(KvmVm { powers, slots, posted, doorbells, clock });
        let vcpus = made.into_iter().map(|vcpu| Box::new(vcpu) as Box<dyn Vcpu<Aarch64>>).collect();
        Ok(Parts { vm, vcpus, interrupts })
    }
}

/// The affinity that KVM gives the vCPU with this id: 16 of the lowest level in each of the next.
fn derived_affinity(id: u32) -> u64 {
    let id = u64::from(id);
    (id & 0xf) | (id >> 4 & 0xff) << 8 | (id >> 12 & 0xff) << 16
}

fn initialise(
    core: Core,
    init: kvm_vcpu_init,
    config: &VcpuConfig,
    clock: Arc<Clock>,
) -> Result<KvmVcpu, HypervisorError> {
    let index = core.index();
    // Of unlike processors, not all of which have a monitor, a newer kernel says so here, an older one later.
    let monitor =
        if config.features.pmu { " with a performance monitor, which cpu-features pmu=false leaves out" } else { "" };
    let failed = |e: kvm_ioctls::Error| HypervisorError::call(format!("initialise vCPU {index}{monitor}"), e);
    core.fd.vcpu_init(&init).map_err(failed)?;
    if config.features.sve {
        core.fd.vcpu_finalize(&(KVM_ARM_VCPU_SVE as libc::c_int)).map_err(failed)?;
    }
    let derived = derived_affinity(index);
    let affinity = (config.mpidr != derived).then_some(config.mpidr);
    let vcpu = KvmVcpu::new(core, init, config.features, affinity, clock);
    vcpu.set_affinity().map_err(|e| {
        let what = format!("a vCPU {index} with affinity {:#x} (it gives it {derived:#x}: {e})", config.mpidr);
        missing(what, ": number the CPUs 16 to a cluster")
    })?;
    Ok(vcpu)
}

fn initialise_pmu(vcpu: &KvmVcpu) -> Result<(), HypervisorError> {
    let set = |attr: u32, addr| {
        let attribute = kvm_device_attr { group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attr.into(), addr, flags: 0 };
        let failed = |e: kvm_ioctls::Error| {
            HypervisorError::call("initialise a performance monitor, which cpu-features pmu=false leaves out", e)
        };
        vcpu.core.fd.set_device_attr(&attribute).map_err(failed)
    };
    let intid = PMU_INTID;
    set(KVM_ARM_VCPU_PMU_V3_IRQ, &raw const intid as u64)?;
    set(KVM_ARM_VCPU_PMU_V3_INIT, 0)
}
