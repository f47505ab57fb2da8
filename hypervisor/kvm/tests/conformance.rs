//! The conformance suite on this host's KVM, for guests of this host's architecture. Without /dev/kvm it fails.

use skep_hypervisor::Powers;
use skep_hypervisor::conformance::{Lacks, Subject};

#[cfg(target_arch = "x86_64")]
fn subject(powers: Powers) -> Subject<skep_hypervisor::X86_64> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("/proc is there");
    let has_hardware = cpuinfo.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    let lacks = match has_hardware {
        true if cpuinfo.contains("QEMU TCG CPU") => Lacks::GUEST_XSAVE,
        true => Lacks::empty(),
        false => Lacks::all(),
    };
    let hypervisor = Box::new(skep_kvm::open().expect("this host has a KVM that this user may use"));
    Subject { hypervisor, probe: skep_guests::PROBE_X86_64, powers, lacks }
}

#[cfg(target_arch = "aarch64")]
fn subject(powers: Powers) -> Subject<skep_hypervisor::Aarch64> {
    let hypervisor = Box::new(skep_kvm::open().expect("this host has a KVM that this user may use"));
    Subject { hypervisor, probe: skep_guests::PROBE_AARCH64, powers, lacks: Lacks::empty() }
}

#[cfg(target_arch = "x86_64")]
skep_hypervisor::conformance_suite!(x86_64: crate::subject);
#[cfg(target_arch = "aarch64")]
skep_hypervisor::conformance_suite!(aarch64: crate::subject);
