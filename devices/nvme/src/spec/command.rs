//! Submission and completion queue entries (Base 3.3.3).

use super::Status;

/// Bytes of a submission queue entry.
pub(crate) const ENTRY: u64 = 64;
/// Bytes of a completion queue entry.
pub(crate) const COMPLETION: u64 = 16;
/// All namespaces.
pub(crate) const EVERY_NAMESPACE: u32 = 0xffff_ffff;

/// Opcodes of the admin command set (Base 5).
pub(crate) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
    pub(crate) const KEEP_ALIVE: u8 = 0x18;
    pub(crate) const DOORBELL_BUFFER: u8 = 0x7c;
    pub(crate) const FORMAT: u8 = 0x80;
}

/// Opcodes of the NVM command set (NVM 3).
pub(crate) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const COMPARE: u8 = 0x05;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
    pub(crate) const VERIFY: u8 = 0x0c;
}

/// A submission queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Command([u32; 16]);

impl Command {
    pub(crate) fn from_bytes(bytes: &[u8; ENTRY as usize]) -> Self {
        let mut dwords = [0; 16];
        for (dword, bytes) in dwords.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *dword = u32::from_le_bytes(*bytes);
        }
        Self(dwords)
    }

    /// Command dword `N`.
    pub(crate) fn dword<const N: usize>(&self) -> u32 {
        const { assert!(N < 16) };
        self.0[N]
    }

    fn quad<const N: usize>(&self) -> u64 {
        const { assert!(N < 15) };
        u64::from(self.0[N]) | u64::from(self.0[N + 1]) << 32
    }

    pub(crate) fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    /// Fused operation; 0 for none.
    pub(crate) fn fuse(&self) -> u8 {
        (self.0[0] >> 8 & 3) as u8
    }

    /// How the data pointer is to be read (PSDT): 0 for PRPs.
    pub(crate) fn data_kind(&self) -> u8 {
        (self.0[0] >> 14 & 3) as u8
    }

    pub(crate) fn id(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    pub(crate) fn namespace(&self) -> u32 {
        self.0[1]
    }

    pub(crate) fn prp1(&self) -> u64 {
        self.quad::<6>()
    }

    pub(crate) fn prp2(&self) -> u64 {
        self.quad::<8>()
    }

    /// The first logical block: dwords 10 and 11.
    pub(crate) fn first_block(&self) -> u64 {
        self.quad::<10>()
    }

    /// How many logical blocks; dword 12 counts from 0.
    pub(crate) fn blocks(&self) -> u64 {
        u64::from(self.0[12] as u16) + 1
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn of(dwords: [u32; 16]) -> Self {
        Self(dwords)
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn to_bytes(self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes.as_chunks_mut::<4>().0.iter_mut().zip(self.0).for_each(|(bytes, dword)| *bytes = dword.to_le_bytes());
        bytes
    }
}

/// A completion queue entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CompletionEntry {
    /// Dword 0, which is the command's own.
    pub(crate) result: u32,
    /// Where the submission queue's head is.
    pub(crate) sq_head: u16,
    pub(crate) sq_id: u16,
    pub(crate) command: u16,
    pub(crate) status: Status,
}

impl CompletionEntry {
    /// Its first three dwords, and the last one, which makes it the host's.
    pub(crate) fn to_parts(self, phase: bool) -> ([u8; 12], u32) {
        let mut first = [0; 12];
        first[..4].copy_from_slice(&self.result.to_le_bytes());
        first[8..10].copy_from_slice(&self.sq_head.to_le_bytes());
        first[10..].copy_from_slice(&self.sq_id.to_le_bytes());
        (first, u32::from(self.command) | u32::from(phase) << 16 | u32::from(self.status.0) << 17)
    }
}
