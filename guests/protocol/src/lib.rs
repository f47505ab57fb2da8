//! What a test and the `probe` guest say to each other: a list of operations in guest memory.
//!
//! The hypervisor conformance suite writes a list of [`Op`]s to guest memory and runs a vCPU, which carries them out in order: `probe`, a
//! freestanding guest, where the vCPU is real, and an interpreter in the host's Rust where it is a fake. Both read the same list by
//! [`Operation::decode`]. Each operation's [`Op::result`] and [`Op::status`] are written back in place. [`Operation::End`] writes its own index
//! to a doorbell, which tells the host that the list is done; the CPU then waits for ever with interrupts off.
//!
//! # How a CPU enters
//!
//! | | x86_64 | aarch64 |
//! |---|---|---|
//! | binary (flat, no header) at | [`X86_64_LOAD`] | [`AARCH64_LOAD`] |
//! | entry | its first byte | its first byte |
//! | state | protected mode, flat 4 GiB code and data segments, paging and interrupts off | EL1, MMU off, `DAIF` all set |
//! | address of the list | `EBX` | `X0` |
//! | RAM that must be there and be zero behind the binary | up to [`X86_64_END`] | up to [`AARCH64_END`] |
//! | list and all it refers to | below 4 GiB for the list, anywhere for the rest | anywhere from 1 GiB to 256 GiB |
//!
//! Addresses are guest-physical. On aarch64 addresses from 1 GiB to 256 GiB are accessed as normal cacheable memory, all others below
//! 512 GiB as device memory. The first CPU has a stack of its own; each other one is given a stack by [`Operation::StartCpu`], which on x86_64
//! also uses the page at [`X86_64_TRAMPOLINE`].
//!
//! An operation that the architecture, or this CPU, does not have ends as [`Status::Unsupported`], one during which the CPU took an exception as
//! [`Status::Faulted`]; the list goes on in either case. At one that is malformed, and at an exception that no operation allows for, the guest
//! ends the machine: by a triple fault, or by PSCI `SYSTEM_OFF`.
//!
//! What this crate does not do: it neither builds guests nor runs them.

#![no_std]
#![forbid(unsafe_code)]

mod irq;
mod operation;
mod registers;

pub use irq::{IRQ_SLOTS, IRQ_TABLE_SIZE, IrqSlot, irq_slot};
pub use operation::{Gic, MalformedOp, Operation, Trigger, code};
pub use registers::{HOLD_AREA_SIZE, RegisterSet, held_value, system_register};

/// Where the x86_64 probe is loaded and entered.
pub const X86_64_LOAD: u64 = 0x10_0000;
/// The end of the RAM that the x86_64 probe uses for itself: from [`X86_64_LOAD`] to here, all but the binary zero.
pub const X86_64_END: u64 = 0x20_0000;
/// The page which [`Operation::StartCpu`] overwrites on x86_64, where another CPU begins in real mode.
pub const X86_64_TRAMPOLINE: u64 = 0x8000;
/// Where the aarch64 probe is loaded and entered: RAM begins at 1 GiB.
pub const AARCH64_LOAD: u64 = 0x4008_0000;
/// The end of the RAM that the aarch64 probe uses for itself: from [`AARCH64_LOAD`] to here, all but the binary zero.
pub const AARCH64_END: u64 = 0x4018_0000;
/// The least stack that [`Operation::StartCpu`] must give to a CPU, in bytes.
pub const STACK_SIZE: u64 = 0x4000;

/// One operation as it lies in guest memory: 40 bytes, little-endian, aligned to 8.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Op {
    /// Which operation: one of [`code`].
    pub code: u16,
    /// Which form of it, mostly the width of the access in bytes.
    pub variant: u16,
    /// How it went: a [`Status`] as a number, 0 until the operation has been carried out.
    pub status: u32,
    /// The first argument.
    pub a: u64,
    /// The second argument.
    pub b: u64,
    /// The third argument.
    pub c: u64,
    /// What came of it: see each [`Operation`].
    pub result: u64,
}

impl Op {
    /// The size of an operation in guest memory, in bytes.
    pub const SIZE: usize = size_of::<Self>();
    /// Where [`Op::status`] lies in an operation.
    pub const STATUS_OFFSET: usize = core::mem::offset_of!(Self, status);
    /// Where [`Op::result`] lies in an operation.
    pub const RESULT_OFFSET: usize = core::mem::offset_of!(Self, result);

    /// The operation as bytes of guest memory.
    pub const fn to_bytes(&self) -> [u8; Self::SIZE] {
        let words = [
            self.code as u64 | (self.variant as u64) << 16 | (self.status as u64) << 32,
            self.a,
            self.b,
            self.c,
            self.result,
        ];
        let mut bytes = [0; Self::SIZE];
        let mut i = 0;
        while i < Self::SIZE {
            bytes[i] = (words[i / 8] >> (i % 8 * 8)) as u8;
            i += 1;
        }
        bytes
    }

    /// The operation that lies in guest memory as `bytes`.
    pub const fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let mut words = [0_u64; Self::SIZE / 8];
        let mut i = 0;
        while i < Self::SIZE {
            words[i / 8] |= (bytes[i] as u64) << (i % 8 * 8);
            i += 1;
        }
        Self {
            code: words[0] as u16,
            variant: (words[0] >> 16) as u16,
            status: (words[0] >> 32) as u32,
            a: words[1],
            b: words[2],
            c: words[3],
            result: words[4],
        }
    }

    /// How the operation went; `None` for a number that no [`Status`] has.
    pub const fn outcome(&self) -> Option<Status> {
        Status::from_raw(self.status)
    }
}

/// How an operation went.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not carried out yet.
    Pending = 0,
    /// Carried out; [`Op::result`] holds.
    Done = 1,
    /// The architecture, or this CPU, has no such operation.
    Unsupported = 2,
    /// The CPU took an exception: [`Op::result`] is the vector on x86_64, and `ESR_EL1` on aarch64.
    Faulted = 3,
    /// The list holds what [`Operation::decode`] refuses.
    Malformed = 4,
}

impl Status {
    /// The status with this number.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Pending,
            1 => Self::Done,
            2 => Self::Unsupported,
            3 => Self::Faulted,
            4 => Self::Malformed,
            _ => return None,
        })
    }
}

/// The width of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    One,
    /// 16 bits.
    Two,
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

impl Width {
    /// All widths, narrowest first.
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Four, Self::Eight];

    /// The width in bytes.
    pub const fn bytes(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The width of `bytes` bytes.
    pub const fn from_bytes(bytes: u16) -> Option<Self> {
        Some(match bytes {
            1 => Self::One,
            2 => Self::Two,
            4 => Self::Four,
            8 => Self::Eight,
            _ => return None,
        })
    }

    /// The low bits of `value` that an access of this width carries.
    pub const fn truncate(self, value: u64) -> u64 {
        match self {
            Self::One => value as u8 as u64,
            Self::Two => value as u16 as u64,
            Self::Four => value as u32 as u64,
            Self::Eight => value,
        }
    }
}

#[cfg(test)]
mod operation_test;
