//! The driver's side of a split virtqueue.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use skep_memory::vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{BUFFERS, Guest, event};
use crate::QueueConfig;

/// A piece of a chain: bytes that the device reads, room that it writes, or any descriptor at all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Piece<'a> {
    Read(&'a [u8]),
    Write(u32),
    At { gpa: u64, len: u32, write: bool },
}

/// A chain that the device has used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) head: u16,
    pub(crate) len: u32,
    /// What the writable pieces hold, in a row, up to `len` bytes.
    pub(crate) data: Vec<u8>,
}

/// A ring, its buffers, and which descriptors are free.
pub(crate) struct Ring {
    pub(crate) guest: Arc<Guest>,
    pub(crate) config: QueueConfig,
    pub(crate) doorbell: Arc<EventFd>,
    free: Vec<u16>,
    /// The descriptors of each chain that is available, by its head.
    chains: Vec<Vec<u16>>,
    available: u16,
    used: u16,
    /// Where the next buffer goes; the room is used again from its beginning.
    bump: u64,
}

/// Room that one ring's buffers have.
const ROOM: u64 = 0x8_0000;

impl Ring {
    /// Where the parts of a ring at `gpa` are.
    pub(crate) fn place(gpa: u64, size: u16, event_index: bool) -> QueueConfig {
        let (descriptors, available) = (gpa, gpa + u64::from(size) * 16);
        let used = (available + u64::from(size) * 2 + 6).next_multiple_of(4);
        QueueConfig { size, descriptors, available, used, event_index, indirect: true }
    }

    pub(crate) fn new(guest: Arc<Guest>, config: QueueConfig) -> Self {
        let place = (config.descriptors >> 13) % 10;
        let free = (0..config.size).rev().collect();
        let chains = vec![Vec::new(); config.size.into()];
        let bump = BUFFERS + place * ROOM;
        Self { guest, config, doorbell: event(), free, chains, available: 0, used: 0, bump }
    }

    /// Room for a buffer.
    pub(crate) fn room(&mut self, len: u64) -> u64 {
        assert!(len <= ROOM);
        let base = BUFFERS + (self.config.descriptors >> 13) % 10 * ROOM;
        if self.bump + len > base + ROOM {
            self.bump = base;
        }
        let gpa = self.bump;
        self.bump += len.next_multiple_of(16);
        gpa
    }

    fn descriptor(&self, index: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        Self::descriptor_at(&self.guest, self.config.descriptors + u64::from(index) * 16, gpa, len, flags, next);
    }

    /// Writes a descriptor wherever it may be.
    pub(crate) fn descriptor_at(guest: &Guest, at: u64, gpa: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&gpa.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        guest.write(at, &bytes);
    }

    /// Makes a chain available without ringing, and says its head.
    pub(crate) fn add(&mut self, pieces: &[Piece<'_>]) -> u16 {
        let list: Vec<u16> = pieces.iter().map(|_| self.free.pop().expect("the test's ring is full")).collect();
        for (place, piece) in pieces.iter().enumerate() {
            let (gpa, len, write) = match *piece {
                Piece::Read(bytes) => {
                    let gpa = self.room(bytes.len() as u64);
                    self.guest.write(gpa, bytes);
                    (gpa, bytes.len() as u32, false)
                }
                Piece::Write(len) => (self.room(len.into()), len, true),
                Piece::At { gpa, len, write } => (gpa, len, write),
            };
            let next = list.get(place + 1).copied();
            let flags = u16::from(next.is_some()) | u16::from(write) << 1;
            self.descriptor(list[place], gpa, len, flags, next.unwrap_or(0));
        }
        let head = list[0];
        self.chains[usize::from(head)] = list;
        self.offer(head);
        head
    }

    /// Makes `head` available, whatever it is.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.config.size);
        self.guest.write(self.config.available + 4 + slot * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let index = GuestAddress(self.config.available + 2);
        self.guest.ram().store(self.available, index, Ordering::Release).unwrap();
    }

    /// Whether the device wants to be told of what was made available since `old`.
    pub(crate) fn wants_kick(&self, old: u16) -> bool {
        fence(Ordering::SeqCst);
        let size = u64::from(self.config.size);
        if self.config.event_index {
            let event = self.load(self.config.used + 4 + size * 8);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            self.load(self.config.used) & 1 == 0
        }
    }

    pub(crate) fn kick(&self) {
        self.doorbell.write(1).unwrap();
    }

    fn load(&self, gpa: u64) -> u16 {
        self.guest.ram().load(GuestAddress(gpa), Ordering::Acquire).unwrap()
    }

    /// Asks for an interrupt after the next used chain.
    pub(crate) fn want_interrupt(&self) {
        if self.config.event_index {
            let gpa = self.config.available + 4 + u64::from(self.config.size) * 2;
            self.guest.ram().store(self.used, GuestAddress(gpa), Ordering::Release).unwrap();
        }
        fence(Ordering::SeqCst);
    }

    /// How far the device has used the ring.
    pub(crate) fn used_index(&self) -> u16 {
        self.load(self.config.used + 2)
    }

    /// How far the driver has filled the ring.
    pub(crate) fn available_index(&self) -> u16 {
        self.available
    }

    /// Takes the next used chain.
    pub(crate) fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.config.size);
        let entry = self.guest.read(self.config.used + 4 + slot * 8, 8);
        self.used = self.used.wrapping_add(1);
        let head = u16::from_le_bytes([entry[0], entry[1]]);
        let len = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let list = std::mem::take(&mut self.chains[usize::from(head)]);
        assert!(!list.is_empty(), "chain {head} was used that was not available");
        let mut data = Vec::new();
        for index in list {
            let bytes = self.guest.read(self.config.descriptors + u64::from(index) * 16, 16);
            let gpa = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let room = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            let left = (len as usize).saturating_sub(data.len()).min(room as usize);
            if bytes[12] & 2 != 0 && left > 0 {
                data.extend(self.guest.read(gpa, left));
            }
            self.free.push(index);
        }
        Some(Used { head, len, data })
    }

    /// How many descriptors are free.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }
}
