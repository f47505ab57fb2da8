//! The GICv3 ITS (IHI 0069H chapter 5), with flat tables and one collection: the CPU that sets it up.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::memory::{pointer, read32, read64, write32, write64};
use super::{cpu, gic};

/// What lies where in the tables' memory.
const DEVICE_TABLE: u64 = 0;
const COLLECTION_TABLE: u64 = 0x1_0000;
const COMMAND_QUEUE: u64 = 0x2_0000;
const COMMAND_QUEUE_SIZE: u64 = 0x1_0000;
const LPI_CONFIGURATION: u64 = 0x3_0000;
const LPI_PENDING: u64 = 0x4_0000;
const TRANSLATION_TABLES: u64 = 0x8_0000;
const TRANSLATION_TABLE_SIZE: u64 = 0x400;
/// One byte for each device: whether it has been mapped.
const DEVICES_MAPPED: u64 = 0xc_0000;

/// Limits of [`skep_guest_protocol::Operation::MapMsi`].
const DEVICES: u32 = 256;
const EVENT_BITS: u64 = 5;
const FIRST_LPI: u64 = 8192;
const LAST_LPI: u64 = 16383;

const GICR_CTLR: u64 = 0x0;
const GICR_TYPER: u64 = 0x8;
const GICR_PROPBASER: u64 = 0x70;
const GICR_PENDBASER: u64 = 0x78;
const ENABLE_LPIS: u32 = 1;

const GITS_CTLR: u64 = 0x0;
const GITS_TYPER: u64 = 0x8;
const GITS_CBASER: u64 = 0x80;
const GITS_CWRITER: u64 = 0x88;
const GITS_CREADR: u64 = 0x90;
const GITS_BASER: u64 = 0x100;
const TYPER_PTA: u64 = 1 << 19;

/// Inner shareable, inner write-back, in all the registers that name tables; and that the register counts.
const CACHEABLE: u64 = 7 << 59 | 1 << 10;
const CACHEABLE_REDISTRIBUTOR: u64 = 7 << 7 | 1 << 10;
const VALID: u64 = 1 << 63;
const PENDING_TABLE_ZERO: u64 = 1 << 62;
/// 14 bits of INTID, less one.
const INTID_BITS: u64 = 13;
const LPI_ENABLED: u8 = 0xa1;

static ITS: AtomicU64 = AtomicU64::new(0);
static TABLES: AtomicU64 = AtomicU64::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);

/// Enable LPIs on this CPU, and the ITS at `base`. Whether there is a redistributor to do so.
///
/// # Safety
///
/// The tables' memory is RAM that nothing else uses, of [`skep_guest_protocol::Operation::ITS_TABLES_SIZE`] bytes, all zero.
pub unsafe fn init(base: u64, tables: u64) -> bool {
    let Some(redistributor) = gic::redistributor() else { return false };
    // SAFETY: the caller's.
    unsafe {
        write64(redistributor + GICR_PROPBASER, (tables + LPI_CONFIGURATION) | CACHEABLE_REDISTRIBUTOR | INTID_BITS);
        write64(redistributor + GICR_PENDBASER, (tables + LPI_PENDING) | CACHEABLE_REDISTRIBUTOR | PENDING_TABLE_ZERO);
        write32(redistributor + GICR_CTLR, read32(redistributor + GICR_CTLR) | ENABLE_LPIS);

        for register in (0..8).map(|n| base + GITS_BASER + n * 8) {
            const DEVICES: u64 = 1;
            const COLLECTIONS: u64 = 4;
            let table = match read64(register) >> 56 & 7 {
                DEVICES => DEVICE_TABLE,
                COLLECTIONS => COLLECTION_TABLE,
                _ => continue,
            };
            // One page of whichever size the ITS has: 4 KiB hold 256 entries of 16 bytes.
            let kept = read64(register) & (7 << 56 | 0x1f << 48);
            write64(register, kept | VALID | CACHEABLE | (tables + table));
        }
        write64(base + GITS_CBASER, VALID | CACHEABLE | (tables + COMMAND_QUEUE) | (COMMAND_QUEUE_SIZE / 0x1000 - 1));
        write64(base + GITS_CWRITER, 0);
        write32(base + GITS_CTLR, 1);

        let target = if read64(base + GITS_TYPER) & TYPER_PTA != 0 {
            redistributor
        } else {
            (read64(redistributor + GICR_TYPER) >> 8 & 0xffff) << 16
        };
        ITS.store(base, Ordering::Release);
        TABLES.store(tables, Ordering::Release);
        TARGET.store(target, Ordering::Release);
        command([0x09, 0, VALID | target, 0]); // MAPC of collection 0
        synchronise();
    }
    true
}

/// Let `event` of `device` raise LPI `intid`. Whether the tables have room for that, and there is an ITS.
pub fn map(device: u32, event: u32, intid: u64) -> bool {
    let tables = TABLES.load(Ordering::Acquire);
    let fits = device < DEVICES && event < 1 << EVENT_BITS && (FIRST_LPI..=LAST_LPI).contains(&intid);
    if !fits || ITS.load(Ordering::Acquire) == 0 {
        return false;
    }
    let (id, event) = (u64::from(device) << 32, u64::from(event));
    // SAFETY: `init`'s tables, at places that fit into them.
    unsafe {
        let mapped = pointer::<u8>(tables + DEVICES_MAPPED + u64::from(device));
        if mapped.read_volatile() == 0 {
            let table = tables + TRANSLATION_TABLES + u64::from(device) * TRANSLATION_TABLE_SIZE;
            command([0x08 | id, EVENT_BITS - 1, VALID | table, 0]); // MAPD
            mapped.write_volatile(1);
        }
        pointer::<u8>(tables + LPI_CONFIGURATION + intid - FIRST_LPI).write_volatile(LPI_ENABLED);
        command([0x0a | id, event | intid << 32, 0, 0]); // MAPTI to collection 0
        command([0x0c | id, event, 0, 0]); // INV
        synchronise();
    }
    true
}

/// Raise the LPI of `event` of `device`, by the ITS itself.
pub fn raise(device: u32, event: u32) {
    if ITS.load(Ordering::Acquire) != 0 {
        // SAFETY: an interrupt that `map` allowed for, or an error of the ITS's that it keeps to itself.
        unsafe {
            command([0x03 | u64::from(device) << 32, event.into(), 0, 0]); // INT
            synchronise();
        }
    }
}

/// SYNC, and wait until the ITS has come so far.
unsafe fn synchronise() {
    let base = ITS.load(Ordering::Acquire);
    // SAFETY: the ITS that `init` was told of.
    unsafe {
        command([0x05, 0, TARGET.load(Ordering::Acquire), 0]);
        while read64(base + GITS_CREADR) != read64(base + GITS_CWRITER) {
            cpu::relax();
        }
    }
}

/// Append to the command queue. It is waited for often enough never to be full.
unsafe fn command(words: [u64; 4]) {
    let base = ITS.load(Ordering::Acquire);
    // SAFETY: as in `synchronise`; the queue lies in `init`'s tables.
    unsafe {
        let offset = read64(base + GITS_CWRITER);
        pointer::<[u64; 4]>(TABLES.load(Ordering::Acquire) + COMMAND_QUEUE + offset).write_volatile(words);
        asm!("dsb ish");
        write64(base + GITS_CWRITER, (offset + 32) % COMMAND_QUEUE_SIZE);
    }
}
