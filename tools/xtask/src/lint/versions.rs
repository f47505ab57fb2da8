//! One version of each crate whose types cross our own crates' borders.

use super::Finding;
use crate::cargo::Metadata;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The crates of rust-vmm and their like: two versions of one of them are two worlds of types, and twice the code.
const ONCE: &[&str] = &[
    "acpi_tables",
    "event-manager",
    "io-uring",
    "kvm-bindings",
    "kvm-ioctls",
    "landlock",
    "linux-loader",
    "minicbor",
    "seccompiler",
    "vfio-bindings",
    "vfio-ioctls",
    "vhost",
    "virtio-bindings",
    "virtio-queue",
    "vm-allocator",
    "vm-fdt",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// Checks the versions of all packages that the workspace is built with.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    twice(metadata.packages.iter().map(|package| (package.name.as_str(), package.version.as_str())))
}

fn twice<'a>(packages: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, version) in packages.filter(|(name, _)| ONCE.contains(name)) {
        versions.entry(name).or_default().insert(version);
    }
    versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            let list = versions.into_iter().collect::<Vec<_>>().join(" and ");
            let mend = "choose versions of its users that agree (cargo tree -i shows them)";
            Finding::file(Path::new("Cargo.lock"), format!("{name} is there as {list}: {mend}"))
        })
        .collect()
}

#[cfg(test)]
#[path = "versions_test.rs"]
mod test;
