//! The table in which the guest counts its interrupts.

/// How many slots the table of interrupts has.
pub const IRQ_SLOTS: u64 = 2048;
/// The size of the table of interrupts in guest memory, in bytes. It begins as zeros and is aligned to 8.
pub const IRQ_TABLE_SIZE: u64 = IRQ_SLOTS * size_of::<IrqSlot>() as u64;

/// What the guest's handler knows of one interrupt, as it lies in guest memory: 32 bytes, little-endian.
///
/// The table is the host's to place, and the host may read it at any time. The slot's index is [`irq_slot`].
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqSlot {
    /// How often the interrupt was taken, on any CPU.
    pub count: u64,
    /// The CPU that took the last one: its APIC id, or the affinity fields of its `MPIDR_EL1`.
    pub cpu: u64,
    /// Where the handler writes [`IrqSlot::value`], as 4 bytes, before it ends the interrupt; 0 for nowhere.
    pub address: u64,
    /// What the handler writes.
    pub value: u64,
}

/// The index in the table of x86_64 vector or aarch64 INTID `irq`: vectors, SGIs, PPIs and SPIs have their own number, LPIs follow from 1024.
/// `None` for what the table has no room for.
pub const fn irq_slot(irq: u64) -> Option<u64> {
    match irq {
        0..1024 => Some(irq),
        8192..9216 => Some(irq - 8192 + 1024),
        _ => None,
    }
}
