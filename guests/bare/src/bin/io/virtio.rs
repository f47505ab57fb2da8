//! A virtio block device (VIRTIO 1.2) on PCI, with a split ring.

use core::sync::atomic::{Ordering, fence};

use bare::arch::cpu;
use bare::arch::memory::{read8, read16, read32, write8, write16, write32};

use crate::disk::{Disk, MOST_BYTES, MOST_DEPTH, SECTOR};
use crate::memory::{Pool, get, put};
use crate::pci::Function;

/// PCI's capability for vendors, and its kinds (section 4.1.4).
const VENDOR: u8 = 9;
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
const DEVICE: u32 = 4;

/// The common configuration (section 4.1.4.3).
const FEATURE_SELECT: u64 = 0;
const FEATURES: u64 = 4;
const DRIVER_SELECT: u64 = 8;
const DRIVER_FEATURES: u64 = 12;
const STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY: u64 = 30;
const QUEUE_PARTS: [u64; 3] = [32, 40, 48];

/// Device status (section 2.1): acknowledged, there is a driver, features accepted, ready.
const KNOWN: u8 = 3;
const FEATURES_OK: u8 = 8;
const DRIVER_OK: u8 = 4;

/// Features: write cache, indirect descriptors, event index, version 1.
const FLUSH: u64 = 1 << 9;
const INDIRECT: u64 = 1 << 28;
const EVENT_INDEX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Descriptors' flags, and the available ring's.
const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const TABLE: u16 = 4;
const NO_INTERRUPT: u16 = 1;

const ENTRIES: u16 = 256;
/// Bytes of a descriptor, and of a request: header of 16 bytes, status, and its three descriptors if they are in a table of their own.
const DESCRIPTOR: u64 = 16;
const REQUEST: u64 = 128;
const REQUEST_STATUS: u64 = 16;
const REQUEST_TABLE: u64 = 32;
const PER_REQUEST: u64 = 3;
/// What a request is at most, which no device limits.
const MOST: u64 = 1 << 20;
/// How often the status is read before the device is given up.
const PATIENCE: u32 = 2_000_000;

/// A block device with one queue.
pub struct Virtio {
    /// Descriptors, available ring, used ring.
    parts: [u64; 3],
    notify: u64,
    size: u16,
    event_index: bool,
    indirect: bool,
    requests: u64,
    buffers: u64,
    bytes: u64,
    available: u16,
    shown: u16,
    used: u16,
    bells: u64,
}

fn put_descriptor(at: u64, address: u64, length: u64, flags: u16, next: u64) {
    put(at, address);
    put(at + 8, u64::from(flags) << 32 | length | next << 48);
}

impl Virtio {
    /// Resets the device and makes its queue.
    pub fn open(function: &Function<'_>, pool: &mut Pool, indirect: bool) -> Result<Self, &'static str> {
        let structure = |kind| -> Result<(u64, u16), &'static str> {
            let found = function.capabilities(VENDOR).find(|&at| function.read(at) >> 24 == kind);
            let at = found.ok_or("it has no modern interface")?;
            let bar = function.bar((function.read(at + 4) & 0xff) as u16)?;
            Ok((bar + u64::from(function.read(at + 8)), at))
        };
        let (common, (notify, capability), device) = (structure(COMMON)?.0, structure(NOTIFY)?, structure(DEVICE)?.0);
        let multiplier = function.read(capability + 16);
        function.enable();

        let size;
        let parts;
        let accepted;
        let (bytes, notify) = {
            // SAFETY: the registers of a device that nobody else uses, as its capabilities place them, and a queue that is its own.
            unsafe {
                write8(common + STATUS, 0);
                if !(0..PATIENCE).any(|_| read8(common + STATUS) == 0) {
                    return Err("it does not become reset");
                }
                write8(common + STATUS, KNOWN);
                write32(common + FEATURE_SELECT, 0);
                let low = u64::from(read32(common + FEATURES));
                write32(common + FEATURE_SELECT, 1);
                let offered = u64::from(read32(common + FEATURES)) << 32 | low;
                let wanted = FLUSH | EVENT_INDEX | VERSION_1 | if indirect { INDIRECT } else { 0 };
                accepted = offered & wanted;
                for (half, bits) in [(0, accepted as u32), (1, (accepted >> 32) as u32)] {
                    write32(common + DRIVER_SELECT, half);
                    write32(common + DRIVER_FEATURES, bits);
                }
                write8(common + STATUS, KNOWN | FEATURES_OK);
                if read8(common + STATUS) & FEATURES_OK == 0 {
                    return Err("it does not accept these features");
                }
                write16(common + QUEUE_SELECT, 0);
                size = read16(common + QUEUE_SIZE).min(ENTRIES);
                write16(common + QUEUE_SIZE, size);
                write16(common + QUEUE_VECTOR, u16::MAX);
                let entries = u64::from(size);
                parts = [pool.take(entries * DESCRIPTOR)?, pool.take(entries * 2 + 6)?, pool.take(entries * 8 + 6)?];
                for (register, part) in QUEUE_PARTS.into_iter().zip(parts) {
                    write32(common + register, part as u32);
                    write32(common + register + 4, (part >> 32) as u32);
                }
                let offset = u64::from(read16(common + QUEUE_NOTIFY)) * u64::from(multiplier);
                put(parts[1], NO_INTERRUPT);
                write16(common + QUEUE_ENABLE, 1);
                write8(common + STATUS, KNOWN | FEATURES_OK | DRIVER_OK);
                let sectors = u64::from(read32(device + 4)) << 32 | u64::from(read32(device));
                (sectors * SECTOR, notify + offset)
            }
        };
        if u64::from(size) < u64::from(MOST_DEPTH) * PER_REQUEST {
            return Err("its queue is too small");
        }
        Ok(Self {
            parts,
            notify,
            size,
            event_index: accepted & EVENT_INDEX != 0,
            indirect: accepted & INDIRECT != 0,
            requests: pool.take(u64::from(MOST_DEPTH) * REQUEST)?,
            buffers: pool.take(MOST_BYTES)?,
            bytes,
            available: 0,
            shown: 0,
            used: 0,
            bells: 0,
        })
    }

    /// Where a slot's three descriptors lie.
    fn table(&self, slot: u32) -> u64 {
        let slot = u64::from(slot);
        if self.indirect {
            self.requests + slot * REQUEST + REQUEST_TABLE
        } else {
            self.parts[0] + slot * PER_REQUEST * DESCRIPTOR
        }
    }

    /// The descriptor that a slot's chain begins with.
    fn head(&self, slot: u32) -> u16 {
        (if self.indirect { u64::from(slot) } else { u64::from(slot) * PER_REQUEST }) as u16
    }
}

impl Disk for Virtio {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn block(&self) -> u64 {
        SECTOR
    }

    fn most(&self) -> u64 {
        MOST
    }

    fn buffers(&self) -> u64 {
        self.buffers
    }

    fn prepare(&mut self, depth: u32, stride: u64, length: u64) {
        for slot in 0..depth {
            let (table, request) = (self.table(slot), self.requests + u64::from(slot) * REQUEST);
            let first = if self.indirect { 0 } else { u64::from(slot) * PER_REQUEST };
            put_descriptor(table, request, 16, NEXT, first + 1);
            put_descriptor(table + DESCRIPTOR, self.buffers + u64::from(slot) * stride, length, NEXT, first + 2);
            put_descriptor(table + 2 * DESCRIPTOR, request + REQUEST_STATUS, 1, DEVICE_WRITES, 0);
            if self.indirect {
                let head = self.parts[0] + u64::from(slot) * DESCRIPTOR;
                put_descriptor(head, table, PER_REQUEST * DESCRIPTOR, TABLE, 0);
            }
        }
    }

    fn queue(&mut self, slot: u32, write: bool, offset: u64) {
        const FAILED: u8 = 0xff;
        let request = self.requests + u64::from(slot) * REQUEST;
        put(request, u64::from(write));
        put(request + 8, offset / SECTOR);
        put(request + REQUEST_STATUS, FAILED);
        let flags = if write { NEXT } else { NEXT | DEVICE_WRITES };
        put(self.table(slot) + DESCRIPTOR + 12, flags);
        put(self.parts[1] + 4 + u64::from(self.available % self.size) * 2, self.head(slot));
        self.available = self.available.wrapping_add(1);
    }

    fn ring(&mut self) {
        let (old, new) = (self.shown, self.available);
        if old == new {
            return;
        }
        let [_, available, used] = self.parts;
        // No interrupt before the ring has gone round.
        put(available + 4 + u64::from(self.size) * 2, self.used.wrapping_sub(1));
        fence(Ordering::Release);
        put(available + 2, new);
        self.shown = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = get::<u16>(used + 4 + u64::from(self.size) * 8);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            get::<u16>(used) & 1 == 0
        };
        if wanted {
            // SAFETY: the doorbell of the device's queue.
            unsafe { write16(self.notify, 0) };
            self.bells += 1;
        }
    }

    fn reap(&mut self, mut done: impl FnMut(u32, bool)) -> u32 {
        let used = self.parts[2];
        let new = get::<u16>(used + 2);
        fence(Ordering::Acquire);
        let count = new.wrapping_sub(self.used);
        while self.used != new {
            let head = get::<u32>(used + 4 + u64::from(self.used % self.size) * 8);
            let slot = if self.indirect { head } else { head / PER_REQUEST as u32 };
            if slot < MOST_DEPTH {
                done(slot, get::<u8>(self.requests + u64::from(slot) * REQUEST + REQUEST_STATUS) == 0);
            }
            self.used = self.used.wrapping_add(1);
        }
        if count == 0 {
            cpu::relax();
        }
        count.into()
    }

    fn bells(&self) -> u64 {
        self.bells
    }

    fn is_quiet(&self) -> bool {
        self.event_index
    }
}
