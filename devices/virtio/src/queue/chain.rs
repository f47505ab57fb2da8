//! Descriptor chains: what a driver makes available at once.

use std::ops::Range;

use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, Permissions, VolatileSlice};
use skep_memory::{DirtySlice, RamView};

use super::{QueueConfig, QueueError};

/// Descriptor flags (section 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub(super) const DESCRIPTOR_SIZE: u64 = 16;

/// A piece of guest memory that a descriptor names. It may be anything: it is checked when it is accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The guest physical address.
    pub gpa: u64,
    /// The length in bytes.
    pub len: u32,
}

/// A descriptor chain that has been taken from a queue: its buffers, the device-readable ones first. It goes back by
/// [`super::Queue::complete`] or [`super::Queue::give_back`], which take it, so that none is used twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the driver waits for the chain to be used"]
pub struct Chain {
    pub(super) head: u16,
    pub(super) buffers: Vec<Buffer>,
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

fn descriptor(memory: &RamView, table: u64, index: u16) -> Result<Descriptor, QueueError> {
    let gpa = table.wrapping_add(u64::from(index) * DESCRIPTOR_SIZE);
    let mut bytes = [0; DESCRIPTOR_SIZE as usize];
    let not_ram = |_| QueueError::NotRam { part: "descriptor", gpa, len: DESCRIPTOR_SIZE };
    memory.read_slice(&mut bytes, GuestAddress(gpa)).map_err(not_ram)?;
    let field = |range: Range<usize>| bytes[range].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Ok(Descriptor {
        buffer: Buffer { gpa: field(0..8), len: field(8..12) as u32 },
        flags: field(12..14) as u16,
        next: field(14..16) as u16,
    })
}

impl Chain {
    /// Walks the chain that begins at `head`, no further than the queue has descriptors (section 2.7.5.3.1 holds indirect ones to that,
    /// too). `buffers` is an empty list to fill, so that its memory can be used again.
    pub(super) fn walk(
        memory: &RamView,
        config: &QueueConfig,
        head: u16,
        buffers: Vec<Buffer>,
    ) -> Result<Self, QueueError> {
        let mut chain = Self { head, buffers, readable: 0, readable_len: 0, writable_len: 0 };
        let (mut table, mut size, mut index) = (config.descriptors, u32::from(config.size), head);
        let mut indirect = false;
        loop {
            if u32::from(index) >= size {
                return Err(QueueError::Index { index, size });
            }
            let descriptor = descriptor(memory, table, index)?;
            if descriptor.flags & INDIRECT != 0 {
                (table, size) = config.indirect_table(&descriptor, indirect)?;
                (index, indirect) = (0, true);
                continue;
            }
            chain.add(&descriptor, config.size)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    fn add(&mut self, descriptor: &Descriptor, size: u16) -> Result<(), QueueError> {
        if self.buffers.len() >= usize::from(size) {
            return Err(QueueError::Long { size });
        }
        self.buffers.push(descriptor.buffer);
        let len = u64::from(descriptor.buffer.len);
        if descriptor.flags & WRITE != 0 {
            self.writable_len += len;
        } else if self.buffers.len() > self.readable + 1 {
            return Err(QueueError::Order);
        } else {
            self.readable += 1;
            self.readable_len += len;
        }
        if self.readable_len + self.writable_len > 1 << 32 { Err(QueueError::Bytes) } else { Ok(()) }
    }

    /// The number of the chain's first descriptor.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver gives the device to read.
    #[must_use]
    pub fn readable(&self) -> Buffers<'_> {
        let list = self.buffers.get(..self.readable).unwrap_or_default();
        Buffers { list, len: self.readable_len }
    }

    /// What the driver gives the device to write.
    #[must_use]
    pub fn writable(&self) -> Buffers<'_> {
        let list = self.buffers.get(self.readable..).unwrap_or_default();
        Buffers { list, len: self.writable_len }
    }
}

impl QueueConfig {
    /// Address and size of the table that an indirect descriptor names.
    fn indirect_table(&self, descriptor: &Descriptor, nested: bool) -> Result<(u64, u32), QueueError> {
        let Buffer { gpa, len } = descriptor.buffer;
        let wrong = |what| Err(QueueError::Indirect(what));
        if !self.indirect {
            return wrong("was not negotiated");
        }
        if nested {
            return wrong("is in an indirect table");
        }
        if descriptor.flags & NEXT != 0 {
            return wrong("has a next one");
        }
        if len == 0 || u64::from(len) % DESCRIPTOR_SIZE != 0 {
            return wrong("names no whole number of descriptors");
        }
        if gpa.checked_add(u64::from(len)).is_none() {
            return wrong("leaves the address space");
        }
        Ok((gpa, len / DESCRIPTOR_SIZE as u32))
    }
}

/// The readable or the writable part of a chain: bytes in a row, wherever in guest memory they are.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    list: &'a [Buffer],
    len: u64,
}

impl<'a> Buffers<'a> {
    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not a byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces of guest memory that hold the bytes of `range`, which is cut to what there is.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = Buffer> + 'a {
        let mut at = 0u64;
        self.list.iter().filter_map(move |buffer| {
            let (begin, end) = (at, at + u64::from(buffer.len));
            at = end;
            let (from, to) = (range.start.clamp(begin, end), range.end.clamp(begin, end));
            // An address beyond the last one is no RAM, whatever it wraps to: saturation keeps it so.
            (from < to).then(|| Buffer { gpa: buffer.gpa.saturating_add(from - begin), len: (to - from) as u32 })
        })
    }

    /// The host's memory behind the bytes of `range`, which is cut to what there is.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn slices<'m>(
        &self,
        memory: &'m RamView,
        range: Range<u64>,
        access: Permissions,
        into: &mut Vec<VolatileSlice<'m, DirtySlice<'m>>>,
    ) -> Result<(), QueueError> {
        for Buffer { gpa, len } in self.pieces(range) {
            let not_ram = || QueueError::NotRam { part: "buffer", gpa, len: len.into() };
            let slices = GuestMemory::get_slices(memory, GuestAddress(gpa), len as usize, access);
            for slice in slices.map_err(|_| not_ram())? {
                into.push(slice.map_err(|_| not_ram())?);
            }
        }
        Ok(())
    }

    /// Reads bytes from `offset` on, and says how many there were: fewer than asked for where the part ends.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn read(&self, memory: &RamView, offset: u64, into: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for Buffer { gpa, len } in self.pieces(offset..offset.saturating_add(into.len() as u64)) {
            let Some(part) = into.get_mut(done..done + len as usize) else { break };
            let not_ram = |_| QueueError::NotRam { part: "buffer", gpa, len: len.into() };
            memory.read_slice(part, GuestAddress(gpa)).map_err(not_ram)?;
            done += len as usize;
        }
        Ok(done)
    }

    /// Writes bytes from `offset` on, and says how many had room.
    ///
    /// # Errors
    /// [`QueueError::NotRam`]; what lies before may have been written.
    pub fn write(&self, memory: &RamView, offset: u64, from: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for Buffer { gpa, len } in self.pieces(offset..offset.saturating_add(from.len() as u64)) {
            let Some(part) = from.get(done..done + len as usize) else { break };
            let not_ram = |_| QueueError::NotRam { part: "buffer", gpa, len: len.into() };
            memory.write_slice(part, GuestAddress(gpa)).map_err(not_ram)?;
            done += len as usize;
        }
        Ok(done)
    }

    /// Reads a fixed number of bytes from `offset` on; `None` where the part is too short.
    ///
    /// # Errors
    /// [`QueueError::NotRam`].
    pub fn read_array<const N: usize>(&self, memory: &RamView, offset: u64) -> Result<Option<[u8; N]>, QueueError> {
        let mut bytes = [0; N];
        let read = self.read(memory, offset, &mut bytes)?;
        Ok((read == N).then_some(bytes))
    }
}

/// Refuses a part of a queue that is not RAM as a whole.
pub(super) fn check_ram(memory: &RamView, part: &'static str, gpa: u64, len: u64) -> Result<(), QueueError> {
    let whole = gpa.checked_add(len).is_some()
        && usize::try_from(len).is_ok_and(|len| GuestMemoryBackend::check_range(memory, GuestAddress(gpa), len));
    if whole { Ok(()) } else { Err(QueueError::NotRam { part, gpa, len }) }
}
