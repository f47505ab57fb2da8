//! What /proc and the device node tell of this host.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

#[cfg(test)]
#[path = "host_test.rs"]
mod test;

/// The memory that the host could give without swapping, in bytes; nothing where it does not tell.
pub(crate) fn available_memory() -> Option<u64> {
    available_in(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// By the text of a /proc/meminfo.
fn available_in(text: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// How this host's CPUs can run a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Virtualization {
    /// Intel VMX.
    Vmx,
    /// AMD SVM.
    Svm,
    /// Arm's EL2.
    El2,
    /// None of them: a /dev/kvm that is there all the same works by page tables and emulates guest code at CPL 0.
    Absent,
}

impl Virtualization {
    /// This host's.
    pub(crate) fn of_host() -> Self {
        if cfg!(target_arch = "aarch64") {
            return Self::El2;
        }
        // The first of them tells for all; a host may have hundreds.
        let mut first = [0; 8 << 10];
        let length = File::open("/proc/cpuinfo").and_then(|mut file| file.read(&mut first)).unwrap_or(0);
        Self::of_cpuinfo(&String::from_utf8_lossy(first.get(..length).unwrap_or_default()))
    }

    /// By the text of an x86 /proc/cpuinfo.
    fn of_cpuinfo(text: &str) -> Self {
        let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
        let has = |flag| flags.split_whitespace().any(|f| f == flag);
        if has("vmx") {
            Self::Vmx
        } else if has("svm") {
            Self::Svm
        } else {
            Self::Absent
        }
    }

    /// In words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vmx => "Intel VMX",
            Self::Svm => "AMD SVM",
            Self::El2 => "Arm EL2",
            Self::Absent => "without hardware virtualization (neither vmx nor svm in /proc/cpuinfo)",
        }
    }

    /// What makes a missing /dev/kvm appear.
    pub(crate) const fn load(self) -> &'static str {
        match self {
            Self::Vmx => "sudo modprobe kvm_intel (in a container: give it /dev/kvm, e.g. --device /dev/kvm)",
            Self::Svm => "sudo modprobe kvm_amd (in a container: give it /dev/kvm, e.g. --device /dev/kvm)",
            Self::El2 => {
                "boot the host at EL2 with a kernel that has CONFIG_KVM (in a container: give it /dev/kvm, e.g. --device /dev/kvm)"
            }
            Self::Absent => {
                "turn virtualization on in the firmware setup (or, where this machine is a guest itself, nested virtualization on its \
                 host), or use the lab, an emulated host with KVM: cargo xtask lab (docs/lab.md)"
            }
        }
    }
}

/// Who may open a device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    mode: u32,
    /// The node's group, by name where it has one.
    group: Option<String>,
}

impl Rights {
    /// Those of the node at `path`.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let node = fs::metadata(path).ok()?;
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        Some(Self { mode: node.mode(), group: group_name(&groups, node.gid()) })
    }

    /// The command that gives this user the right.
    pub(crate) fn mend(&self, path: &Path) -> String {
        let path = path.display();
        match &self.group {
            // The group of root is no group to join.
            Some(group) if group != "root" && self.mode & 0o060 == 0o060 => {
                format!(
                    "sudo usermod -aG {group} $USER, then log in again (for this session only: sudo setfacl -m u:$USER:rw {path})"
                )
            }
            _ => format!("sudo setfacl -m u:$USER:rw {path} (no group of users has the right to it)"),
        }
    }
}

/// A group's name by the text of /etc/group.
fn group_name(text: &str, gid: u32) -> Option<String> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(gid)).then(|| name.to_owned())
    })
}
