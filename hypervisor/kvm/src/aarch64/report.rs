//! The aarch64 part of what a person is told about this host.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use skep_hypervisor::Powers;
use skep_hypervisor::aarch64::{GicSupport, GicVersion};
use skep_hypervisor::report::{Finding, Verdict};

use super::build;
use crate::device::Kvm;

/// What this host can do for aarch64 guests.
pub(crate) fn report(kvm: &Kvm) -> Vec<Finding> {
    let bits = build::address_bits(kvm);
    let vm = match build::make_vm(kvm, bits, 0) {
        Ok(vm) => vm,
        Err(error) => return vec![Finding::new("VM", error.to_string(), Verdict::Fatal)],
    };
    let found = build::capabilities(&vm, Powers::empty(), bits);
    let arch = &found.arch;
    let features =
        [(arch.sve, "SVE"), (arch.pointer_authentication, "pointer authentication"), (arch.pmu, "performance monitor")];
    let names = |there: bool| features.iter().filter(|(on, _)| *on == there).map(|(_, name)| *name).collect::<Vec<_>>();
    let mut text = names(true).join(", ");
    if !names(false).is_empty() {
        let separator = if text.is_empty() { "" } else { "; " };
        text = format!("{text}{separator}not here: {}", names(false).join(", "));
    }
    vec![
        gics(&arch.gics),
        Finding::new(
            "addresses",
            format!("{bits} guest physical address bits"),
            if bits < 44 { Verdict::Limited } else { Verdict::Ok },
        ),
        Finding::new("CPU features", text, Verdict::Ok),
        Finding::new("counter", format!("{} Hz", arch.counter_hz), Verdict::Ok),
        mode(),
    ]
}

fn gics(gics: &[GicSupport]) -> Finding {
    let one = |gic: &GicSupport| {
        let (name, msi) = match gic.version {
            GicVersion::V2 => ("GICv2", "MSIs by skep's v2m frame"),
            GicVersion::V3 if gic.its => ("GICv3", "MSIs by an ITS"),
            GicVersion::V3 => ("GICv3", "no MSIs"),
        };
        format!("{name} for up to {} vCPUs ({msi})", gic.max_vcpus)
    };
    let text = gics.iter().map(one).collect::<Vec<_>>().join(", ");
    match gics.first() {
        None => Finding::new("GIC", "none: KVM on this host has no interrupt controller", Verdict::Fatal)
            .mend("a host whose GIC has the virtualization extensions, described in its device tree or ACPI tables"),
        Some(GicSupport { version: GicVersion::V2, .. }) => Finding::new("GIC", text, Verdict::Limited),
        Some(_) => Finding::new("GIC", text, Verdict::Ok),
    }
}

/// Whether the host's kernel runs at EL2 itself (VHE), which makes an exit several times cheaper. Only its log tells.
fn mode() -> Finding {
    let finding = |text: &str, verdict| Finding::new("exits", text, verdict);
    match kernel_log().as_deref().and_then(of_log) {
        Some(text) => finding(text, Verdict::Ok),
        None => {
            finding("with or without VHE: the kernel's log does not tell", Verdict::Ok).mend("sudo dmesg | grep -i kvm")
        }
    }
}

fn of_log(log: &str) -> Option<&'static str> {
    let said = |what: &str| log.lines().any(|line| line.contains("kvm [") && line.contains(what));
    if said("VHE mode initialized") {
        Some("the host's kernel runs at EL2 (VHE): cheap")
    } else if said("Hyp mode initialized") || said("nVHE mode initialized") {
        Some("the host's kernel runs at EL1 (no VHE): each costs two switches of the exception level more")
    } else {
        None
    }
}

/// The kernel's log, where this user may read it.
fn kernel_log() -> Option<String> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let (mut log, mut record) = (String::new(), [0; 8192]);
    // One record each; at the end a read would wait, which is an error.
    while let Ok(length @ 1..) = file.read(&mut record) {
        log.push_str(&String::from_utf8_lossy(&record[..length]));
    }
    Some(log)
}
