//! Controller properties (Base 3.1.3).

/// Controller Capabilities.
pub(crate) const CAP: u64 = 0x00;
/// Version.
pub(crate) const VS: u64 = 0x08;
/// Interrupt Mask Set.
pub(crate) const INTMS: u64 = 0x0c;
/// Interrupt Mask Clear.
pub(crate) const INTMC: u64 = 0x10;
/// Controller Configuration.
pub(crate) const CC: u64 = 0x14;
/// Controller Status.
pub(crate) const CSTS: u64 = 0x1c;
/// Admin Queue Attributes.
pub(crate) const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address.
pub(crate) const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address.
pub(crate) const ACQ: u64 = 0x30;
/// Controller Ready Timeouts.
pub(crate) const CRTO: u64 = 0x68;
/// The first doorbell; one for each queue's tail or head from there on, 4 bytes apart.
pub(crate) const DOORBELLS: u64 = 0x1000;

/// Version 2.0.
pub(crate) const VERSION: u32 = 0x0002_0000;
/// Entries of an I/O queue at most.
pub(crate) const MAX_ENTRIES: u32 = 65535;
/// Entries of an admin queue at most.
pub(crate) const MAX_ADMIN_ENTRIES: u32 = 4096;
/// How long enabling and disabling may take, in units of 500 ms: all that is in flight ends first.
const TIMEOUT: u64 = 60;
/// Memory pages of 4 KiB to 64 KiB.
const MAX_PAGE_SHIFT: u32 = 16;

/// What CAP says: queues are contiguous, round robin arbitration only, the NVM command set, ready with media.
pub(crate) const CAPABILITIES: u64 =
    (MAX_ENTRIES as u64 - 1) | 1 << 16 | TIMEOUT << 24 | 1 << 37 | ((MAX_PAGE_SHIFT - 12) as u64) << 52 | 1 << 59;
/// What CRTO says: as CAP's timeout.
pub(crate) const READY_TIMEOUTS: u32 = TIMEOUT as u32;

/// CC, read by its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Configuration(pub(crate) u32);

impl Configuration {
    /// The bits that exist.
    pub(crate) const MASK: u32 = 0x00ff_fff1;

    pub(crate) fn is_enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// Shutdown notification; 0 for none.
    pub(crate) fn shutdown(self) -> u32 {
        self.0 >> 14 & 3
    }

    /// The memory page's size as a power of two.
    pub(crate) fn page_shift(self) -> u32 {
        12 + (self.0 >> 7 & 0xf)
    }

    /// Whether a controller can be enabled with it: the NVM command set, a page size in range, round robin.
    pub(crate) fn is_valid(self) -> bool {
        self.0 >> 4 & 7 == 0 && self.page_shift() <= MAX_PAGE_SHIFT && self.0 >> 11 & 7 == 0
    }

    /// Whether I/O queues' entries have the sizes that they must have.
    pub(crate) fn has_entry_sizes(self) -> bool {
        self.0 >> 16 & 0xff == 0x46
    }
}

/// CSTS bits.
pub(crate) mod status {
    pub(crate) const READY: u32 = 1;
    pub(crate) const FATAL: u32 = 1 << 1;
    pub(crate) const SHUTDOWN_MASK: u32 = 3 << 2;
    pub(crate) const SHUTDOWN_RUNS: u32 = 1 << 2;
    pub(crate) const SHUTDOWN_DONE: u32 = 2 << 2;
}
