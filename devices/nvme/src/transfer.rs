//! Data pointers: PRPs (Base 4.1.1) and SGLs (Base 4.1.2).

use std::sync::Arc;

use skep_block::Buffer;
use skep_memory::RamView;
use skep_memory::vm_memory::{Bytes, GuestAddress};

use crate::spec::{Command, Status};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "transfer_test.rs"]
pub(crate) mod test;

/// Entries of a PRP list that are read at once.
const BATCH: usize = 512;
/// SGL descriptors of one command at most: each may move as little as nothing.
const MOST_DESCRIPTORS: u32 = 2048;
/// Bytes of an SGL descriptor.
const DESCRIPTOR: usize = 16;

/// The guest memory of `len` bytes that `command` points to, by pages of `page` bytes, put into `buffer`, which is empty. The caller has
/// bounded `len` by the largest transfer.
pub(crate) fn map(
    command: &Command,
    len: usize,
    page: u64,
    ram: &Arc<RamView>,
    buffer: Buffer,
) -> Result<Buffer, Status> {
    let mut walk = Walk { ram, buffer: buffer.reuse(ram.clone()), left: len };
    match command.data_kind() {
        0 => walk.prps(command.prp1(), command.prp2(), page)?,
        1 | 2 => walk.sgl(Descriptor::of_command(command))?,
        _ => return Err(Status::INVALID_FIELD),
    }
    Ok(walk.buffer)
}

struct Walk<'a> {
    ram: &'a RamView,
    buffer: Buffer,
    left: usize,
}

impl Walk<'_> {
    fn push(&mut self, address: u64, len: usize) -> Result<(), Status> {
        self.buffer.push(address, len).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        self.left -= len;
        Ok(())
    }

    fn prps(&mut self, first: u64, second: u64, page: u64) -> Result<(), Status> {
        let offset = first & (page - 1);
        if first & 3 != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        self.push(first, self.left.min((page - offset) as usize))?;
        if self.left == 0 {
            return Ok(());
        }
        if self.left as u64 > page {
            return self.prp_list(second, page);
        }
        self.prp(second, page)
    }

    /// A whole page, or what is left.
    fn prp(&mut self, address: u64, page: u64) -> Result<(), Status> {
        if address & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        self.push(address, self.left.min(page as usize))
    }

    /// A list begins at any quadword, and goes on, by its page's last entry, at the begin of a page.
    fn prp_list(&mut self, mut at: u64, page: u64) -> Result<(), Status> {
        if at & 7 != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let mut room = ((page - (at & (page - 1))) / 8) as usize;
        let mut bytes = [0; BATCH * 8];
        while self.left > 0 {
            let wanted = self.left.div_ceil(page as usize);
            // One entry more than fits is wanted: then the last one is a pointer.
            let chained = wanted > room;
            let here = if chained { room } else { wanted };
            let mut read = 0;
            while read < here {
                let some = (here - read).min(BATCH);
                let batch = &mut bytes[..some * 8];
                let from = at.checked_add(read as u64 * 8).ok_or(Status::DATA_TRANSFER_ERROR)?;
                self.ram.read_slice(batch, GuestAddress(from)).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                read += some;
                for (index, entry) in batch.as_chunks::<8>().0.iter().enumerate() {
                    let entry = u64::from_le_bytes(*entry);
                    if chained && read - some + index + 1 == room {
                        if entry & (page - 1) != 0 {
                            return Err(Status::PRP_OFFSET_INVALID);
                        }
                        at = entry;
                    } else {
                        self.prp(entry, page)?;
                    }
                }
            }
            room = (page / 8) as usize;
        }
        Ok(())
    }

    fn sgl(&mut self, first: Descriptor) -> Result<(), Status> {
        let mut seen = 1;
        let mut segment = match first.kind {
            Descriptor::DATA => {
                self.block(&first)?;
                None
            }
            Descriptor::SEGMENT | Descriptor::LAST_SEGMENT => Some(first),
            _ => return Err(Status::SGL_TYPE_INVALID),
        };
        while let Some(current) = segment.take() {
            let count = current.len as usize / DESCRIPTOR;
            if count == 0 || !(current.len as usize).is_multiple_of(DESCRIPTOR) {
                return Err(Status::SGL_SEGMENT_INVALID);
            }
            for index in 0..count {
                seen += 1;
                if seen > MOST_DESCRIPTORS {
                    return Err(Status::SGL_COUNT_INVALID);
                }
                let descriptor = Descriptor::read(self.ram, &current, index)?;
                let last = index + 1 == count;
                match descriptor.kind {
                    Descriptor::DATA if last && current.kind == Descriptor::SEGMENT => {
                        return Err(Status::SGL_SEGMENT_INVALID);
                    }
                    Descriptor::DATA => self.block(&descriptor)?,
                    Descriptor::SEGMENT | Descriptor::LAST_SEGMENT if last && current.kind == Descriptor::SEGMENT => {
                        segment = Some(descriptor);
                    }
                    Descriptor::SEGMENT | Descriptor::LAST_SEGMENT => return Err(Status::SGL_SEGMENT_INVALID),
                    _ => return Err(Status::SGL_TYPE_INVALID),
                }
            }
        }
        if self.left == 0 { Ok(()) } else { Err(Status::SGL_LENGTH_INVALID) }
    }

    fn block(&mut self, descriptor: &Descriptor) -> Result<(), Status> {
        let len = descriptor.len as usize;
        if len > self.left {
            return Err(Status::SGL_LENGTH_INVALID);
        }
        if len == 0 { Ok(()) } else { self.push(descriptor.address, len) }
    }
}

/// An SGL descriptor.
struct Descriptor {
    address: u64,
    len: u32,
    /// Type and subtype; the only subtype that there is here is 0, an address.
    kind: u8,
}

impl Descriptor {
    const DATA: u8 = 0x00;
    const SEGMENT: u8 = 0x20;
    const LAST_SEGMENT: u8 = 0x30;

    fn of_command(command: &Command) -> Self {
        Self { address: command.prp1(), len: command.dword::<8>(), kind: (command.dword::<9>() >> 24) as u8 }
    }

    fn read(ram: &RamView, segment: &Self, index: usize) -> Result<Self, Status> {
        let at = segment.address.checked_add((index * DESCRIPTOR) as u64).ok_or(Status::DATA_TRANSFER_ERROR)?;
        let mut bytes = [0; DESCRIPTOR];
        ram.read_slice(&mut bytes, GuestAddress(at)).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
        let value = u128::from_le_bytes(bytes);
        Ok(Self { address: value as u64, len: (value >> 64) as u32, kind: (value >> 120) as u8 })
    }
}
