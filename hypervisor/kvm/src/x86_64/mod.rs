//! x86_64 guests.
//!
//! Follows the Intel 64 and IA-32 Architectures Software Developer's Manual (SDM) and AMD's Architecture Programmer's Manual (APM).

mod apic;
mod boot;
mod clock;
mod convert;
mod cpuid;
mod events;
mod ioctl;
mod msrs;
mod state;
mod tsc;
mod vcpu;
mod vm;
mod xsave;

use kvm_bindings::{KVM_CAP_MAX_VCPU_ID, KVM_CAP_TSC_CONTROL, KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_XSAVE2};
use skep_hypervisor::report::{Finding, Verdict};
use skep_hypervisor::{Hypervisor, HypervisorError, VmBuilder, VmRequest, X86_64};

use crate::{Kvm, NAME};

impl Hypervisor<X86_64> for Kvm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn address_bits(&self) -> Result<u8, HypervisorError> {
        Ok(cpuid::address_bits(cpuid::supported(self)?))
    }

    fn builder(&self, request: &VmRequest) -> Result<Box<dyn VmBuilder<X86_64>>, HypervisorError> {
        Ok(Box::new(vm::Builder::new(self, request)?))
    }
}

/// What only x86_64 has to report.
pub(crate) fn report(kvm: &Kvm) -> Vec<Finding> {
    let capability = |cap: u32| kvm.system.check_extension_raw(u64::from(cap));
    let mut findings = Vec::new();
    if capability(KVM_CAP_X86_USER_SPACE_MSR) <= 0 {
        findings.push(
            Finding::new("kernel", "its KVM is older than Linux 5.10", Verdict::Fatal).mend("use a current kernel"),
        );
    }
    let ids = capability(KVM_CAP_MAX_VCPU_ID);
    findings.push(Finding::new(
        "APIC ids",
        format!("up to {} (x2APIC, extended MSI destinations)", ids - 1),
        Verdict::Ok,
    ));
    findings.push(match cpuid::supported(kvm) {
        Ok(cpuid) => {
            let bits = cpuid::address_bits(cpuid);
            Finding::new("addresses", format!("{bits} guest physical address bits"), Verdict::Ok)
        }
        Err(error) => Finding::new("CPUID", error.to_string(), Verdict::Fatal),
    });
    let scaling = if capability(KVM_CAP_TSC_CONTROL) > 0 {
        Finding::new("TSC", "its frequency can be scaled", Verdict::Ok)
    } else {
        Finding::new(
            "TSC",
            "its frequency is the host's: a snapshot moves only between hosts of the same",
            Verdict::Limited,
        )
    };
    findings.push(scaling);
    let size = capability(KVM_CAP_XSAVE2);
    let state =
        if size > 0 { format!("{size} bytes of XSAVE state") } else { "4096 bytes of XSAVE state at most".to_owned() };
    findings.push(Finding::new("extended state", state, Verdict::Ok));
    findings
}
