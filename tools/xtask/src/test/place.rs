//! Where tests can run: on this machine's `/dev/kvm`, or in a lab.

use crate::arch::Arch;
use crate::lab::Board;
use std::fs;

/// Where the tests of one architecture run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On this machine.
    Native,
    /// On an emulated host.
    Lab(Board),
}

/// What this machine's `/dev/kvm` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// There is none, or no right to use it.
    None,
    /// It has no VMX or SVM behind it: guests' kernel code is emulated, and Linux does not boot.
    WithoutHardware,
    /// It runs any guest.
    Hardware,
}

impl Kvm {
    /// What this machine has.
    pub(crate) fn here() -> Kvm {
        if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            return Kvm::None;
        }
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Kvm::of(Arch::of_this_machine(), &cpuinfo)
    }

    fn of(arch: Option<Arch>, cpuinfo: &str) -> Kvm {
        let flags = || cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default().split_whitespace();
        match arch {
            Some(Arch::X86_64) if flags().any(|flag| flag == "vmx" || flag == "svm") => Kvm::Hardware,
            Some(Arch::X86_64) => Kvm::WithoutHardware,
            Some(Arch::Aarch64) => Kvm::Hardware,
            None => Kvm::None,
        }
    }
}

impl Place {
    /// Where all tests of `arch` can run on this machine, best first.
    pub(super) fn of(arch: Arch) -> Place {
        match Kvm::here() {
            Kvm::Hardware if Arch::of_this_machine() == Some(arch) => Place::Native,
            _ => Place::Lab(Board::of(arch)),
        }
    }

    /// Its name in headings and tables.
    pub(super) fn name(self) -> String {
        match self {
            Place::Native => "native".to_owned(),
            Place::Lab(board) => format!("lab {}", board.name()),
        }
    }
}

#[cfg(test)]
#[path = "place_test.rs"]
mod test;
