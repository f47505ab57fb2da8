//! What this host's KVM can do, for a person (`skep doctor`).

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_READONLY_MEM,
};
use skep_hypervisor::HypervisorError;
use skep_hypervisor::report::{Finding, Verdict};

use crate::Kvm;
use crate::device::{self, PATH};
use crate::host::Virtualization;
use crate::meaning::NO_HARDWARE;

/// Everything found out about this host's KVM, the most important first.
#[must_use]
pub fn report() -> Vec<Finding> {
    let host = Virtualization::of_host();
    let kvm = match device::open() {
        Ok(kvm) => kvm,
        Err(error) => return vec![refusal(error), hardware(host, false)],
    };
    let mut findings = vec![
        Finding::new("KVM", format!("{PATH} opens, API version {}", kvm.system.get_api_version()), Verdict::Ok),
        hardware(host, true),
    ];
    findings.extend(limits(&kvm));
    findings.push(powers(&kvm));
    #[cfg(target_arch = "x86_64")]
    findings.extend(crate::x86_64::report(&kvm));
    #[cfg(target_arch = "aarch64")]
    findings.extend(crate::aarch64::report(&kvm));
    findings
}

/// What a person should know before an operating system is booted on this host; nothing where all is well.
#[must_use]
pub fn caveat() -> Option<&'static str> {
    (Virtualization::of_host() == Virtualization::Absent).then_some(NO_HARDWARE)
}

fn refusal(error: HypervisorError) -> Finding {
    match error {
        HypervisorError::Unavailable { what, source, mend } => {
            Finding::new("KVM", format!("{what}: {source}"), Verdict::Fatal).mend(mend)
        }
        other => Finding::new("KVM", other.to_string(), Verdict::Fatal),
    }
}

fn hardware(host: Virtualization, works: bool) -> Finding {
    match (host, works) {
        (Virtualization::Absent, true) => Finding::new(
            "virtualization",
            format!(
                "{}: KVM works by page tables and emulates guest code at CPL 0, so small guests run (skep hello) and operating systems do not",
                host.name()
            ),
            Verdict::Limited,
        )
        .mend("for operating systems, the lab: cargo xtask lab (docs/lab.md)"),
        (Virtualization::Absent, false) => {
            Finding::new("virtualization", host.name(), Verdict::Missing).mend(host.load())
        }
        _ => Finding::new("virtualization", host.name(), Verdict::Ok),
    }
}

fn limits(kvm: &Kvm) -> [Finding; 2] {
    let vcpus = kvm.system.get_max_vcpus();
    let host_cpus = kvm.system.get_nr_vcpus();
    [
        Finding::new("vCPUs", format!("up to {vcpus} in one VM ({host_cpus} recommended by this host)"), Verdict::Ok),
        Finding::new("memory regions", format!("up to {} mapped at once", kvm.system.get_nr_memslots()), Verdict::Ok),
    ]
}

/// The optional powers, in words.
fn powers(kvm: &Kvm) -> Finding {
    let known = [
        (KVM_CAP_IOEVENTFD, "doorbells by eventfd"),
        (KVM_CAP_IRQFD, "interrupts by eventfd"),
        (KVM_CAP_IRQFD_RESAMPLE, "level interrupts by eventfd"),
        (KVM_CAP_READONLY_MEM, "read-only memory"),
        (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, "dirty log cleared in steps"),
        (KVM_CAP_DIRTY_LOG_RING, "dirty ring"),
    ];
    let has = |cap: u32| kvm.system.check_extension_raw(u64::from(cap) as libc::c_ulong) > 0;
    let (there, missing): (Vec<_>, Vec<_>) = known.into_iter().partition(|(cap, _)| has(*cap));
    let names = |list: Vec<(u32, &'static str)>| list.into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(", ");
    let verdict = if missing.is_empty() { Verdict::Ok } else { Verdict::Limited };
    let mut text = names(there);
    if !missing.is_empty() {
        text = format!("{text}; not here: {}", names(missing));
    }
    Finding::new("powers", text, verdict)
}
