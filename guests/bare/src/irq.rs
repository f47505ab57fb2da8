//! Counting interrupts in a table of [`IrqSlot`]s.

use core::sync::atomic::{AtomicU64, Ordering};

use skep_guest_protocol::{IrqSlot, irq_slot};

use crate::arch;

static TABLE: AtomicU64 = AtomicU64::new(0);

/// Take the table at `table` into use: [`skep_guest_protocol::IRQ_TABLE_SIZE`] bytes, or as many as the interrupts in use need.
pub fn set_table(table: u64) {
    TABLE.store(table, Ordering::Release);
}

/// The slot of interrupt `irq`, if there is a table and room for it.
pub fn slot(irq: u64) -> Option<*mut IrqSlot> {
    let table = TABLE.load(Ordering::Acquire);
    let slot = irq_slot(irq).filter(|_| table != 0)?;
    let address = table + slot * size_of::<IrqSlot>() as u64;
    Some(arch::memory::pointer(address))
}

/// How often `irq` was taken.
pub fn count(irq: u64) -> u64 {
    slot(irq).map_or(0, |slot| {
        // SAFETY: the slot is mapped memory.
        unsafe { (&raw const (*slot).count).read_volatile() }
    })
}

/// What a handler does for `irq` on `cpu` before it ends the interrupt.
pub fn taken(irq: u64, cpu: u64) {
    let Some(slot) = slot(irq) else { return };
    // SAFETY: the slot is mapped memory, and its count is only changed atomically.
    unsafe {
        (&raw mut (*slot).cpu).write_volatile(cpu);
        let address = (&raw const (*slot).address).read_volatile();
        if address != 0 {
            let value = (&raw const (*slot).value).read_volatile() as u32;
            arch::memory::write32(address, value);
        }
        AtomicU64::from_ptr(&raw mut (*slot).count).fetch_add(1, Ordering::Release);
    }
}
