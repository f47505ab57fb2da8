//! The floors of the house: a crate uses only what stands below it.

use super::Finding;
use crate::cargo::{Dependency, Metadata};
use crate::paths;
use std::path::Path;

/// What each crate of the workspace may use of the others; from the ground up.
///
/// Tests may use more: dev-dependencies, and the fuzzer's, are not looked at.
const FLOORS: &[(&str, &[&str])] = &[
    ("skep-guest-protocol", &[]),
    ("skep-state", &[]),
    ("skep-clock", &["skep-state"]),
    ("skep-irq", &["skep-state"]),
    ("skep-memory", &["skep-state", "skep-irq"]),
    // The protocol: the conformance suite talks with a guest.
    ("skep-hypervisor", &["skep-state", "skep-clock", "skep-irq", "skep-memory", "skep-guest-protocol"]),
    ("skep-bus", BASE),
    ("skep-arch", ON_HYPERVISOR),
    ("skep-kvm", ON_HYPERVISOR),
    ("skep-chipset", DEVICES),
    // Doorbells are a backend's optional power.
    ("skep-pci", PCI),
    ("skep-worker", &[]),
    ("skep-block", HOST_SIDE),
    ("skep-net", HOST_SIDE),
    ("skep-nvme", QUEUES),
    ("skep-ne2k", QUEUES),
    ("skep-virtio", QUEUES),
    ("skep-guests", &["skep-guest-protocol"]),
    ("skep-config", CONFIG),
    ("skep-vmm", VMM),
    ("skep", &ALL),
    ("skep-fuzzing", &[]),
    ("stopwatch", &[]),
    ("xtask", TOOLS),
];

const BASE: &[&str] = &["skep-state", "skep-clock", "skep-irq", "skep-memory"];
const ON_HYPERVISOR: &[&str] =
    &["skep-guest-protocol", "skep-state", "skep-clock", "skep-irq", "skep-memory", "skep-hypervisor"];
const DEVICES: &[&str] = &["skep-state", "skep-clock", "skep-irq", "skep-memory", "skep-bus"];
const PCI: &[&str] = &["skep-state", "skep-clock", "skep-irq", "skep-memory", "skep-bus", "skep-hypervisor"];
const HOST_SIDE: &[&str] = &["skep-memory", "skep-worker"];
const QUEUES: &[&str] = &[
    "skep-state",
    "skep-clock",
    "skep-irq",
    "skep-memory",
    "skep-bus",
    "skep-hypervisor",
    "skep-pci",
    "skep-worker",
    "skep-block",
    "skep-net",
];
const CONFIG: &[&str] = &["skep-state", "skep-clock", "skep-irq", "skep-memory", "skep-hypervisor", "skep-arch"];
// Not skep-kvm: the machine knows no backend.
const VMM: &[&str] = &[
    "skep-state",
    "skep-clock",
    "skep-irq",
    "skep-memory",
    "skep-hypervisor",
    "skep-bus",
    "skep-arch",
    "skep-chipset",
    "skep-pci",
    "skep-worker",
    "skep-block",
    "skep-net",
    "skep-nvme",
    "skep-ne2k",
    "skep-virtio",
    "skep-guest-protocol",
    "skep-guests",
    "skep-config",
];
const ALL: [&str; 19] = [
    "skep-state",
    "skep-clock",
    "skep-irq",
    "skep-memory",
    "skep-hypervisor",
    "skep-bus",
    "skep-arch",
    "skep-chipset",
    "skep-pci",
    "skep-block",
    "skep-net",
    "skep-nvme",
    "skep-ne2k",
    "skep-virtio",
    "skep-guest-protocol",
    "skep-guests",
    "skep-config",
    "skep-vmm",
    "skep-kvm",
];
const TOOLS: &[&str] = &["skep-guests", "stopwatch"];

/// Where a person finds the table.
const TABLE: &str = "tools/xtask/src/lint/floors.rs";

/// Checks what each crate of the workspace depends on.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let members: Vec<_> = metadata.packages.iter().filter(|one| metadata.workspace_members.contains(&one.id)).collect();
    let is_member = |name: &str| members.iter().any(|member| member.name == name);
    let mut findings = Vec::new();
    for package in &members {
        let manifest = package.manifest_path.strip_prefix(paths::workspace()).unwrap_or(&package.manifest_path);
        let for_tests =
            |one: &&Dependency| one.kind.as_deref() == Some("dev") || one.target.as_deref() == Some("cfg(fuzzing)");
        let used = package.dependencies.iter().filter(|one| !for_tests(one)).map(|one| one.name.as_str());
        findings.extend(check_one(manifest, &package.name, used.filter(|name| is_member(name))));
    }
    findings
}

fn check_one<'a>(manifest: &Path, name: &str, used: impl Iterator<Item = &'a str>) -> Vec<Finding> {
    let Some((_, may_use)) = FLOORS.iter().find(|(other, _)| *other == name) else {
        return vec![Finding::file(manifest, format!("{name} stands on no floor: give it one in {TABLE}"))];
    };
    used.filter(|other| !may_use.contains(other))
        .map(|other| {
            Finding::file(manifest, format!("{name} uses {other}, which does not stand below it: turn the need around, or move what it needs down ({TABLE})"))
        })
        .collect()
}

#[cfg(test)]
#[path = "floors_test.rs"]
mod test;
