//! The machines that QEMU emulates as hosts with KVM.

use crate::arch::Arch;
use anyhow::{Result, bail};
use clap::ValueEnum;

/// An emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Board {
    /// x86_64 with SVM and nested paging.
    #[value(name = "svm")]
    Svm,
    /// arm64 with VHE, a GICv3 with ITS, 48 address bits.
    #[value(name = "gicv3")]
    GicV3,
    /// arm64 without VHE, GICv2 only: like a Raspberry Pi 4.
    #[value(name = "gicv2")]
    GicV2,
    /// arm64 with VHE, GICv3, and 40 address bits only.
    #[value(name = "40bit")]
    Bits40,
}

impl Board {
    /// The board that stands for an architecture.
    pub(crate) fn of(arch: Arch) -> Board {
        match arch {
            Arch::X86_64 => Board::Svm,
            Arch::Aarch64 => Board::GicV3,
        }
    }

    /// The board asked for, if it is one of `arch`; without one, that which stands for `arch`.
    pub(crate) fn chosen(arch: Arch, board: Option<Board>) -> Result<Board> {
        match board {
            Some(board) if board.arch() != arch => bail!("the board {} is none of {arch}", board.name()),
            Some(board) => Ok(board),
            None => Ok(Board::of(arch)),
        }
    }

    /// The architecture of its processors.
    pub(crate) fn arch(self) -> Arch {
        match self {
            Board::Svm => Arch::X86_64,
            Board::GicV3 | Board::GicV2 | Board::Bits40 => Arch::Aarch64,
        }
    }

    /// Its name, which tests know as `SKEP_LAB`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Board::Svm => "x86_64",
            Board::GicV3 => "aarch64",
            Board::GicV2 => "aarch64-gicv2",
            Board::Bits40 => "aarch64-40bit",
        }
    }

    /// QEMU's options for machine and processor.
    pub(super) fn qemu(self) -> [&'static str; 4] {
        match self {
            // A page that has held much code, of many processes' at as many addresses, is slow to write to in QEMU, write by write: without
            // fast strings Linux clears pages by eight bytes and not one by one, which has taken minutes.
            Board::Svm => ["-machine", "q35", "-cpu", "max,erms=off,fsrm=off"],
            Board::GicV3 => ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "neoverse-n1"],
            Board::GicV2 => ["-machine", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a72"],
            Board::Bits40 => ["-machine", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a76"],
        }
    }

    /// CPUs of the emulated host. QEMU's SVM emulation loses the host's GS base now and then when two of its CPUs run at the same time (the host
    /// then dies of a stack overflow in its fault handler), so that host has one.
    pub(super) fn cpus(self) -> u32 {
        match self {
            Board::Svm => 1,
            Board::GicV3 | Board::GicV2 | Board::Bits40 => 2,
        }
    }

    /// What a person must know of it before believing its results.
    pub(super) fn remark(self) -> Option<&'static str> {
        match self {
            Board::Svm => Some(
                "its host's kvm-amd module is changed to intercept CR8 writes always: QEMU aborts when a guest writes CR8 \
                 without being intercepted while KVM waits for an interrupt window",
            ),
            Board::GicV3 | Board::GicV2 | Board::Bits40 => None,
        }
    }
}
