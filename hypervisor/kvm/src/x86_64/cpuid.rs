//! What the guest may be shown of the host's CPU.

use std::io;

use crate::Kvm;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use skep_hypervisor::HypervisorError;
use skep_hypervisor::x86_64::{Cpuid, CpuidEntry};

#[cfg(test)]
#[path = "cpuid_test.rs"]
mod test;

/// KVM's features (Documentation/virt/kvm/x86/cpuid.rst), and among them in EAX: MSIs can name 15 bits of destination.
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;

/// What KVM supports on this host, completed by what it leaves to its user, and less what this backend can't save.
pub(super) fn supported(kvm: &Kvm) -> Result<&Cpuid, HypervisorError> {
    if let Some(known) = kvm.cpuid.get() {
        return Ok(known);
    }
    let entries = kvm
        .system
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| HypervisorError::call("ask KVM for the CPUID it supports", e))?;
    let mut cpuid = Cpuid(entries.as_slice().iter().map(from_kvm).collect());
    complete(&mut cpuid);
    Ok(kvm.cpuid.get_or_init(|| cpuid))
}

fn complete(cpuid: &mut Cpuid) {
    if let Some(leaf) = cpuid.get_mut(1, 0) {
        // KVM has TSC deadlines wherever the local APIC is its own, and does not say so here.
        leaf.ecx |= 1 << 24;
        // VMX: a nested guest's state is not saved.
        leaf.ecx &= !(1 << 5);
    }
    if let Some(leaf) = cpuid.get_mut(7, 0) {
        // SGX needs enclave memory, and CET's shadow stack pointer is not saved: bits EBX 2, ECX 7, EDX 20.
        leaf.ebx &= !(1 << 2);
        leaf.ecx &= !(1 << 7);
        leaf.edx &= !(1 << 20);
    }
    if is_amd(cpuid)
        && let Some(leaf) = cpuid.get_mut(7, 0)
    {
        // AMD's have no IA32_ARCH_CAPABILITIES. KVM emulates one there, some versions of it for nobody to read, and Windows stops where it finds one.
        leaf.edx &= !(1 << 29);
    }
    if let Some(leaf) = cpuid.get_mut(0x8000_0001, 0) {
        // SVM, as VMX.
        leaf.ecx &= !(1 << 2);
    }
    if let Some(leaf) = cpuid.get_mut(KVM_FEATURES, 0) {
        // The backend's APIC bus takes them.
        leaf.eax |= KVM_FEATURE_MSI_EXT_DEST_ID;
    }
}

fn from_kvm(entry: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        leaf: entry.function,
        subleaf: entry.index,
        indexed: entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    }
}

/// As KVM takes it.
pub(super) fn to_kvm(cpuid: &Cpuid) -> io::Result<CpuId> {
    let entries: Vec<_> = cpuid
        .0
        .iter()
        .map(|entry| kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf,
            flags: if entry.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|e| io::Error::other(format!("{} leaves: {e:?}", entries.len())))
}

/// The guest's physical address bits (leaf 0x80000008; 36 on a CPU without it).
pub(super) fn address_bits(cpuid: &Cpuid) -> u8 {
    cpuid.get(0x8000_0008, 0).map_or(36, |leaf| leaf.eax.to_le_bytes()[0])
}

/// Whether the CPU is one of AMD's line, which has SVM and not VMX.
pub(super) fn is_amd(cpuid: &Cpuid) -> bool {
    cpuid.get(0, 0).is_some_and(|leaf| {
        let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        matches!(&vendor[..], b"AuthenticAMD" | b"HygonGenuine")
    })
}
