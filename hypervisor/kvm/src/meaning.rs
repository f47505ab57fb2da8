//! What KVM's failures mean on this host.

use crate::host::Virtualization;

#[cfg(test)]
#[path = "meaning_test.rs"]
mod test;

/// What is said wherever a /dev/kvm without hardware virtualization is the likely reason.
pub(crate) const NO_HARDWARE: &str = "this host's /dev/kvm works without hardware virtualization (neither vmx nor svm in /proc/cpuinfo): it emulates \
    guest code at CPL 0 one instruction at a time and knows few of them, so an operating system does not boot here. Use a host with hardware \
    virtualization, or the lab, an emulated host with a real KVM: cargo xtask lab (docs/lab.md)";

/// An instruction that could not be emulated.
pub(crate) fn emulation(host: Virtualization) -> String {
    match host {
        Virtualization::Absent => NO_HARDWARE.to_owned(),
        _ => "KVM emulates an instruction only where it accesses memory that no RAM backs, or where this CPU can't run it by itself; the \
              guest has probably jumped to the wrong place, or uses an unusual instruction on a device's registers"
            .to_owned(),
    }
}

/// A failed entry, by the hardware's reason.
pub(crate) fn entry_failed(host: Virtualization, reason: u64) -> String {
    // SDM 3C table C-1: the top bit of an exit reason is an entry failure.
    let what = match (host, reason & 0xffff) {
        (Virtualization::Vmx, 33) => "the guest's registers are in a state that VMX refuses",
        (Virtualization::Vmx, 34) => "an MSR to be loaded is refused",
        (Virtualization::Vmx, _) => "a VMX control field is refused",
        (Virtualization::Svm, _) => "the VMCB holds a state that SVM refuses",
        (Virtualization::El2, _) => "the CPU can't run this guest where it is now",
        (Virtualization::Absent, _) => return NO_HARDWARE.to_owned(),
    };
    format!("{what}; the host's kernel log may say more (sudo dmesg | grep -i kvm)")
}

/// `KVM_EXIT_INTERNAL_ERROR`'s reasons but the first, which is an emulation failure.
pub(crate) fn internal(host: Virtualization, suberror: u32) -> (&'static str, String) {
    let (reason, meaning) = match suberror {
        2 => (
            "simultaneous exceptions",
            "an exception came while another was delivered, in a way that KVM does not know",
        ),
        3 => (
            "an exit during the delivery of an event",
            "the guest's descriptor tables or stacks probably lie in no RAM",
        ),
        4 => ("an unexpected exit", "this kernel's KVM does not know what this CPU reports; a newer kernel may"),
        _ => ("an internal error", "the host's kernel log may say more (sudo dmesg | grep -i kvm)"),
    };
    let meaning = if host == Virtualization::Absent { format!("{meaning}; {NO_HARDWARE}") } else { meaning.to_owned() };
    (reason, meaning)
}

/// Why `KVM_RUN` itself failed.
pub(crate) fn run_failed(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EFAULT) => {
            "run guest code (the host can't give the memory behind a guest address: it is out of memory or of huge pages, or a backing \
             file has shrunk)"
        }
        Some(libc::ENOMEM) => "run guest code (the host is out of memory)",
        Some(libc::ENOEXEC) => "run guest code (the vCPU was never initialised, or its features are not complete)",
        Some(libc::EIO) => {
            "run guest code (the process that made the VM is not the one that runs it, or the VM is dead)"
        }
        _ => "run guest code",
    }
}
