//! Which MSRs are a vCPU's state, and how they are read and written.
//!
//! The list below is what a guest can change or see change. Left out are: what has a field of its own in the state (the TSC, its deadline, the
//! APIC base, EFER, FS and GS base), what is the CPU's configuration rather than its state (capabilities, microcode revision, platform
//! information), second names (kvmclock's old numbers), commands (which read as zero), the records of past branches, and the state of
//! features that the backend does not show (nested virtualization, SGX, CET, processor trace, Hyper-V's).

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use skep_hypervisor::{HypervisorError, VcpuError};

use crate::vcpu::Core;

#[cfg(test)]
#[path = "msrs_test.rs"]
mod test;

/// By number, in the order in which they are written: a selector or counter before what enables it.
const MSRS: &[(u32, &str)] = &[
    (0x174, "IA32_SYSENTER_CS"),
    (0x175, "IA32_SYSENTER_ESP"),
    (0x176, "IA32_SYSENTER_EIP"),
    (0xc000_0081, "IA32_STAR"),
    (0xc000_0082, "IA32_LSTAR"),
    (0xc000_0083, "IA32_CSTAR"),
    (0xc000_0084, "IA32_FMASK"),
    (0xc000_0102, "IA32_KERNEL_GS_BASE"),
    (0xc000_0103, "IA32_TSC_AUX"),
    (0x03a, "IA32_FEATURE_CONTROL"),
    (0x03b, "IA32_TSC_ADJUST"),
    (0x048, "IA32_SPEC_CTRL"),
    (0x0e1, "IA32_UMWAIT_CONTROL"),
    (0x122, "IA32_TSX_CTRL"),
    (0x140, "MISC_FEATURES_ENABLES"),
    (0x1a0, "IA32_MISC_ENABLE"),
    (0x1c4, "IA32_XFD"),
    (0x1c5, "IA32_XFD_ERR"),
    (0x1d9, "IA32_DEBUGCTL"),
    (0x1fc, "POWER_CTL"),
    (0x277, "IA32_PAT"),
    (0xd90, "IA32_BNDCFGS"),
    (0xda0, "IA32_XSS"),
    (0xc001_0015, "HWCR"),
    (0xc001_011f, "VIRT_SPEC_CTRL"),
    // Machine check.
    (0x17a, "IA32_MCG_STATUS"),
    (0x17b, "IA32_MCG_CTL"),
    (0x4d0, "IA32_MCG_EXT_CTL"),
    // Performance monitoring, Intel.
    (0x0c1, "IA32_PMC0"),
    (0x0c2, "IA32_PMC1"),
    (0x0c3, "IA32_PMC2"),
    (0x0c4, "IA32_PMC3"),
    (0x0c5, "IA32_PMC4"),
    (0x0c6, "IA32_PMC5"),
    (0x0c7, "IA32_PMC6"),
    (0x0c8, "IA32_PMC7"),
    (0x309, "IA32_FIXED_CTR0"),
    (0x30a, "IA32_FIXED_CTR1"),
    (0x30b, "IA32_FIXED_CTR2"),
    (0x30c, "IA32_FIXED_CTR3"),
    (0x186, "IA32_PERFEVTSEL0"),
    (0x187, "IA32_PERFEVTSEL1"),
    (0x188, "IA32_PERFEVTSEL2"),
    (0x189, "IA32_PERFEVTSEL3"),
    (0x18a, "IA32_PERFEVTSEL4"),
    (0x18b, "IA32_PERFEVTSEL5"),
    (0x18c, "IA32_PERFEVTSEL6"),
    (0x18d, "IA32_PERFEVTSEL7"),
    (0x600, "IA32_DS_AREA"),
    (0x3f1, "IA32_PEBS_ENABLE"),
    (0x3f2, "PEBS_DATA_CFG"),
    (0x38e, "IA32_PERF_GLOBAL_STATUS"),
    (0x38d, "IA32_FIXED_CTR_CTRL"),
    (0x38f, "IA32_PERF_GLOBAL_CTRL"),
    // Performance monitoring, AMD.
    (0xc001_0004, "PERF_LEGACY_CTR0"),
    (0xc001_0005, "PERF_LEGACY_CTR1"),
    (0xc001_0006, "PERF_LEGACY_CTR2"),
    (0xc001_0007, "PERF_LEGACY_CTR3"),
    (0xc001_0201, "PERF_CTR0"),
    (0xc001_0203, "PERF_CTR1"),
    (0xc001_0205, "PERF_CTR2"),
    (0xc001_0207, "PERF_CTR3"),
    (0xc001_0209, "PERF_CTR4"),
    (0xc001_020b, "PERF_CTR5"),
    (0xc001_0000, "PERF_LEGACY_CTL0"),
    (0xc001_0001, "PERF_LEGACY_CTL1"),
    (0xc001_0002, "PERF_LEGACY_CTL2"),
    (0xc001_0003, "PERF_LEGACY_CTL3"),
    (0xc001_0200, "PERF_CTL0"),
    (0xc001_0202, "PERF_CTL1"),
    (0xc001_0204, "PERF_CTL2"),
    (0xc001_0206, "PERF_CTL3"),
    (0xc001_0208, "PERF_CTL4"),
    (0xc001_020a, "PERF_CTL5"),
    (0xc000_0300, "PERF_CNTR_GLOBAL_STATUS"),
    (0xc000_0301, "PERF_CNTR_GLOBAL_CTL"),
    // KVM's own (Documentation/virt/kvm/x86/msr.rst).
    (0x4b56_4d00, "MSR_KVM_WALL_CLOCK_NEW"),
    (0x4b56_4d01, "MSR_KVM_SYSTEM_TIME_NEW"),
    (0x4b56_4d06, "MSR_KVM_ASYNC_PF_INT"),
    (0x4b56_4d02, "MSR_KVM_ASYNC_PF_EN"),
    (0x4b56_4d03, "MSR_KVM_STEAL_TIME"),
    (0x4b56_4d04, "MSR_KVM_PV_EOI_EN"),
    (0x4b56_4d05, "MSR_KVM_POLL_CONTROL"),
    (0x4b56_4d08, "MSR_KVM_MIGRATION_CONTROL"),
];

/// MTRRs, which KVM has without listing them (SDM 3A section 12.11): fixed, and base and mask of eight variable ones, before what enables them.
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// How many machine check banks there are in bits 7:0, and whether they have a CTL2 in bit 10 (SDM 3B section 16.3.1.1).
const MCG_CAP: u32 = 0x179;
/// Control, status, address and miscellany of each bank.
const MC0_CTL: u32 = 0x400;
const MC0_CTL2: u32 = 0x280;

/// The TSC.
pub(super) const TSC: u32 = 0x10;
/// Where kvmclock writes the time of the guest's boot.
pub(super) const WALL_CLOCK: u32 = 0x4b56_4d00;
/// When the local APIC's timer is due.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

/// What the CPU has got against side channels: of the CPU that the guest is shown, like CPUID.
pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;

/// How many MSRs KVM takes in one call.
const BATCH: usize = 256;

/// A number with its name, for messages.
pub(super) fn name(index: u32) -> String {
    let listed = MSRS.iter().find(|(number, _)| *number == index).map(|(_, name)| (*name).to_owned());
    let banked = || match index {
        ARCH_CAPABILITIES => "IA32_ARCH_CAPABILITIES".to_owned(),
        TSC => "IA32_TIME_STAMP_COUNTER".to_owned(),
        TSC_DEADLINE => "IA32_TSC_DEADLINE".to_owned(),
        MTRR_DEF_TYPE => "IA32_MTRR_DEF_TYPE".to_owned(),
        _ if MTRR_FIXED.contains(&index) => "fixed-range MTRR".to_owned(),
        _ if MTRR_VARIABLE.contains(&index) => "variable-range MTRR".to_owned(),
        _ if (MC0_CTL2..MC0_CTL2 + 32).contains(&index) => format!("IA32_MC{}_CTL2", index - MC0_CTL2),
        _ if (MC0_CTL..MC0_CTL + 128).contains(&index) => format!("machine check bank {}", (index - MC0_CTL) / 4),
        _ => "unknown".to_owned(),
    };
    format!("MSR {index:#x} ({})", listed.unwrap_or_else(banked))
}

/// Those of this host's KVM, in the order in which they are written.
pub(super) fn of_host(system: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, HypervisorError> {
    let known = system.get_msr_index_list().map_err(|e| HypervisorError::call("ask KVM for its MSRs", e))?;
    let known = known.as_slice();
    let mut list: Vec<u32> = MSRS.iter().map(|(index, _)| *index).filter(|index| known.contains(index)).collect();
    list.extend(MTRR_FIXED.into_iter().chain(MTRR_VARIABLE).chain([MTRR_DEF_TYPE]));
    let mut capability =
        Msrs::from_entries(&[kvm_msr_entry { index: MCG_CAP, ..Default::default() }]).expect("one fits");
    if let Ok(1) = vcpu.get_msrs(&mut capability) {
        let capability = capability.as_slice()[0].data;
        let banks = (capability & 0xff).min(32) as u32;
        list.extend(MC0_CTL..MC0_CTL + 4 * banks);
        if capability & 1 << 10 != 0 {
            list.extend(MC0_CTL2..MC0_CTL2 + banks);
        }
    }
    Ok(list)
}

/// Reads MSRs; those that this vCPU's CPUID leaves out are passed over.
pub(super) fn read(core: &Core, list: &[u32]) -> Result<Vec<(u32, u64)>, VcpuError> {
    let mut values = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        let batch: Vec<_> = rest.iter().take(BATCH).map(|index| entry(*index, 0)).collect();
        let mut msrs = Msrs::from_entries(&batch).expect("a batch is what KVM takes");
        let count = core.fd.get_msrs(&mut msrs).map_err(core.failed("read MSRs"))?;
        values.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        // It stops at one that can't be read.
        let unread = usize::from(count < batch.len());
        rest = rest.get(count + unread..).unwrap_or_default();
    }
    Ok(values)
}

/// Writes MSRs in the given order. One that this vCPU does not have can hold nothing but 0.
pub(super) fn write(core: &Core, values: &[(u32, u64)]) -> Result<(), VcpuError> {
    let mut rest = values;
    while !rest.is_empty() {
        let batch: Vec<_> = rest.iter().take(BATCH).map(|(index, value)| entry(*index, *value)).collect();
        let msrs = Msrs::from_entries(&batch).expect("a batch is what KVM takes");
        let mut count = core.fd.set_msrs(&msrs).map_err(core.failed("write MSRs"))?;
        if let Some(refused) = batch.get(count) {
            if refused.data != 0 {
                let reason = format!("this host's KVM refuses {:#x} in it", refused.data);
                return Err(core.misfit(name(refused.index), reason));
            }
            count += 1;
        }
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// What this host's CPU and KVM have of an MSR that tells of features.
pub(super) fn feature(system: &Kvm, index: u32) -> u64 {
    let mut msrs = Msrs::from_entries(&[entry(index, 0)]).expect("one fits");
    // Where it can't be read there is none of them.
    system
        .get_msrs(&mut msrs)
        .ok()
        .and_then(|count| msrs.as_slice().get(..count)?.first())
        .map_or(0, |entry| entry.data)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}
