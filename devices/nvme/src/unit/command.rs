//! I/O commands (NVM chapter 3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_block::{Buffer, Completion, IoError, Operation};
use skep_memory::RamView;

use super::{Active, Cancel, Unit};
use crate::namespace::Namespace;
use crate::shared::Counters;
use crate::spec::{Command, Status, io};
use crate::transfer;

/// The largest transfer: this power of two of pages of 4 KiB (MDTS).
pub(crate) const MAX_TRANSFER_SHIFT: u8 = 8;
/// The same in bytes.
const MAX_TRANSFER: u64 = 4096 << MAX_TRANSFER_SHIFT;
/// Compare and Verify read this much at once.
const CHUNK: u64 = 128 << 10;
/// Bytes of a range of Dataset Management.
const RANGE: usize = 16;

/// What is left to do of a command in flight. One request of it is at the disk.
pub(super) enum Work {
    /// A read or a write of so many bytes.
    Move { write: bool, bytes: u64 },
    /// A read that must not see the cache: first what is in it is written.
    FlushThenRead { offset: u64, buffer: Buffer },
    /// Nothing.
    Single { write: bool },
    /// Ranges to deallocate, the last one first.
    Discard { ranges: Vec<(u64, u64)> },
    /// Reading, and comparing with guest memory from `seen` on.
    Scan { offset: u64, left: u64, seen: usize, compare: Option<Buffer> },
}

/// What a command begins with.
struct Start {
    work: Work,
    operation: Operation,
    buffer: Buffer,
}

impl Work {
    fn writes(&self) -> bool {
        matches!(self, Self::Move { write: true, .. } | Self::Single { write: true } | Self::Discard { .. })
    }
}

fn status_of(error: IoError, write: bool) -> Status {
    match (error, write) {
        (IoError::OutOfRange, _) => Status::LBA_OUT_OF_RANGE,
        (IoError::ReadOnly, _) => Status::WRITE_PROTECTED,
        (IoError::Unsupported, _) => Status::INVALID_FIELD,
        (IoError::NoSpace, _) => Status::CAPACITY_EXCEEDED,
        (IoError::Cancelled, _) => Status::ABORT_REQUESTED,
        (IoError::Host(_) | IoError::Damaged, true) => Status::WRITE_FAULT,
        (IoError::Host(_) | IoError::Damaged, false) => Status::READ_ERROR,
    }
}

impl Unit {
    /// Begins a command. Says its status if it has ended already.
    pub(super) fn begin(&mut self, queue: u16, command: &Command, ram: &Arc<RamView>) -> Option<Status> {
        let id = command.namespace();
        let start = match self.start(command, ram) {
            Ok(Some(start)) => start,
            Ok(None) => return Some(Status::SUCCESS),
            Err(status) => return Some(status),
        };
        let Some(slot) = self.free.pop() else { return Some(Status::INTERNAL_ERROR) };
        let (command_id, first_block) = (command.id(), command.first_block());
        let active = Active { queue, command: command_id, namespace: id, first_block, work: start.work, cancel: None };
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = Some(active);
        }
        self.submit(id, slot, start.operation, start.buffer);
        None
    }

    /// Checks a command and finds what it begins with; `None` where nothing is to be done.
    fn start(&mut self, command: &Command, ram: &Arc<RamView>) -> Result<Option<Start>, Status> {
        const KNOWN: [u8; 7] =
            [io::FLUSH, io::WRITE, io::READ, io::COMPARE, io::WRITE_ZEROES, io::DATASET_MANAGEMENT, io::VERIFY];
        if !KNOWN.contains(&command.opcode()) {
            return Err(Status::INVALID_OPCODE);
        }
        if command.fuse() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let spare = self.spare.pop().unwrap_or_default();
        let page = self.page;
        let cached = self.shared.write_cache.load(Ordering::Relaxed);
        let namespace = &*self.open(command.namespace())?.namespace;
        if namespace.is_formatting() {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        let writes = matches!(command.opcode(), io::WRITE | io::WRITE_ZEROES | io::DATASET_MANAGEMENT);
        if writes && namespace.is_read_only() {
            return Err(Status::WRITE_PROTECTED);
        }
        let force = command.dword::<12>() & 1 << 30 != 0;
        let single = |operation, write| Start { work: Work::Single { write }, operation, buffer: Buffer::empty() };
        Ok(Some(match command.opcode() {
            io::FLUSH => single(Operation::Flush, false),
            io::READ => {
                let (offset, len) = data_range(command, namespace)?;
                let buffer = transfer::map(command, len as usize, page, ram, spare)?;
                if force && cached {
                    let work = Work::FlushThenRead { offset, buffer };
                    Start { work, operation: Operation::Flush, buffer: Buffer::empty() }
                } else {
                    let work = Work::Move { write: false, bytes: len };
                    Start { work, operation: Operation::Read { offset }, buffer }
                }
            }
            io::WRITE => {
                // Directives.
                if command.dword::<12>() >> 20 & 0xf != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                let (offset, len) = data_range(command, namespace)?;
                let buffer = transfer::map(command, len as usize, page, ram, spare)?;
                let operation = Operation::Write { offset, fua: force || !cached };
                Start { work: Work::Move { write: true, bytes: len }, operation, buffer }
            }
            io::COMPARE => {
                let (offset, len) = data_range(command, namespace)?;
                let compare = Some(transfer::map(command, len as usize, page, ram, spare)?);
                scan(offset, len, compare)
            }
            io::VERIFY => {
                let (offset, len) = range(command, namespace)?;
                scan(offset, len, None)
            }
            io::WRITE_ZEROES => {
                let (offset, len) = range(command, namespace)?;
                let may_discard = command.dword::<12>() & 1 << 25 != 0;
                single(Operation::WriteZeroes { offset, len, may_discard, fua: force || !cached }, true)
            }
            _ => {
                let mut ranges = discards(command, namespace, page, ram, spare)?;
                let Some((offset, len)) = ranges.pop() else { return Ok(None) };
                let operation = Operation::Discard { offset, len };
                Start { work: Work::Discard { ranges }, operation, buffer: Buffer::empty() }
            }
        }))
    }

    /// Takes the end of a request: its command goes on, or ends.
    pub(super) fn finish(&mut self, completion: Completion, ram: Option<&Arc<RamView>>) {
        let Completion { tag, result, buffer } = completion;
        let place = usize::try_from(tag).ok().and_then(|tag| self.slots.get_mut(tag));
        let Some(mut active) = place.and_then(Option::take) else { return };
        let (slot, namespace) = (tag as u16, active.namespace);
        let write = active.work.writes();
        let next = match result {
            Err(error) => Err(status_of(error, write)),
            Ok(()) => next(&mut active.work, &buffer),
        };
        if let Work::Move { .. } = active.work {
            self.keep(buffer);
        }
        let status = match next {
            Ok(Some((operation, buffer))) if active.cancel.is_none() && self.goes_on() => {
                if let Some(place) = self.slots.get_mut(usize::from(slot)) {
                    *place = Some(active);
                }
                return self.submit(namespace, slot, operation, buffer);
            }
            Ok(Some(_)) => Status::ABORT_REQUESTED,
            Ok(None) => Status::SUCCESS,
            Err(status) => status,
        };
        self.free.push(slot);
        self.end(&active, status, ram);
    }

    fn keep(&mut self, buffer: Buffer) {
        if self.spare.len() < self.slots.len() {
            self.spare.push(buffer);
        }
    }

    fn end(&mut self, active: &Active, mut status: Status, ram: Option<&Arc<RamView>>) {
        let aborted = status == Status::ABORT_REQUESTED;
        match active.cancel {
            Some(Cancel::Deleted) if aborted => status = Status::ABORTED_BY_DELETION,
            Some(Cancel::Asked(token)) => self.answers.give(super::Answer::Aborted { token, aborted }),
            _ => {}
        }
        let counters = &self.counters;
        if status.is_success() {
            match &active.work {
                Work::Move { write: true, bytes } => {
                    Counters::add(&counters.writes, 1);
                    Counters::add(&counters.sectors_written, bytes / 512);
                }
                Work::Move { bytes, .. } => {
                    Counters::add(&counters.reads, 1);
                    Counters::add(&counters.sectors_read, bytes / 512);
                }
                Work::Scan { .. } => Counters::add(&counters.reads, 1),
                _ => {}
            }
        } else {
            if matches!(status, Status::WRITE_FAULT | Status::READ_ERROR) {
                Counters::add(&counters.media_errors, 1);
            }
            self.shared.note_error(active.queue, active.command, status, active.first_block, active.namespace);
        }
        match ram {
            Some(ram) => self.complete(active.queue, active.command, status, ram),
            None => {
                if let Some(queue) = self.submission.iter_mut().find(|queue| queue.id() == active.queue) {
                    queue.in_flight -= 1;
                }
                if matches!(self.mode, super::Mode::Running | super::Mode::Pausing(_)) {
                    self.die("bus mastering was turned off with commands in flight");
                }
            }
        }
    }

    fn goes_on(&self) -> bool {
        matches!(self.mode, super::Mode::Running | super::Mode::Pausing(_))
    }
}

/// The range of the disk that a command is about.
fn range(command: &Command, namespace: &Namespace) -> Result<(u64, u64), Status> {
    namespace.range(command.first_block(), command.blocks()).ok_or(Status::LBA_OUT_OF_RANGE)
}

/// The same for one that moves data.
fn data_range(command: &Command, namespace: &Namespace) -> Result<(u64, u64), Status> {
    if command.blocks() << namespace.shift > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    range(command, namespace)
}

/// Begins to read `len` bytes for their own sake.
fn scan(offset: u64, len: u64, compare: Option<Buffer>) -> Start {
    Start {
        work: Work::Scan { offset, left: len, seen: 0, compare },
        operation: Operation::Read { offset },
        buffer: Buffer::zeroed(len.min(CHUNK) as usize),
    }
}

/// What follows a request that has succeeded.
fn next(work: &mut Work, buffer: &Buffer) -> Result<Option<(Operation, Buffer)>, Status> {
    match work {
        Work::Move { .. } | Work::Single { .. } => Ok(None),
        Work::FlushThenRead { offset, buffer } => {
            let (offset, buffer) = (*offset, std::mem::take(buffer));
            *work = Work::Move { write: false, bytes: buffer.len() as u64 };
            Ok(Some((Operation::Read { offset }, buffer)))
        }
        Work::Discard { ranges } => {
            Ok(ranges.pop().map(|(offset, len)| (Operation::Discard { offset, len }, Buffer::empty())))
        }
        Work::Scan { offset, left, seen, compare } => {
            let len = buffer.len();
            if let Some(compare) = compare
                && !equal(buffer, compare, *seen)
            {
                return Err(Status::COMPARE_FAILURE);
            }
            *offset += len as u64;
            *left -= len as u64;
            *seen += len;
            let more =
                (*left > 0).then(|| (Operation::Read { offset: *offset }, Buffer::zeroed((*left).min(CHUNK) as usize)));
            Ok(more)
        }
    }
}

/// Whether `read` holds what `guest` does from `offset` on.
fn equal(read: &Buffer, guest: &Buffer, offset: usize) -> bool {
    let (mut ours, mut theirs) = ([0; 4096], [0; 4096]);
    (0..read.len()).step_by(ours.len()).all(|at| {
        let len = read.copy_out(at, &mut ours);
        guest.copy_out(offset + at, &mut theirs[..len]) == len && ours[..len] == theirs[..len]
    })
}

/// The ranges of a Dataset Management command that are to be deallocated.
fn discards(
    command: &Command,
    namespace: &Namespace,
    page: u64,
    ram: &Arc<RamView>,
    spare: Buffer,
) -> Result<Vec<(u64, u64)>, Status> {
    let len = (command.dword::<10>() as usize & 0xff) * RANGE + RANGE;
    let list = transfer::map(command, len, page, ram, spare)?;
    let mut bytes = [0; 256 * RANGE];
    let bytes = &mut bytes[..len];
    list.copy_out(0, bytes);
    let mut ranges = Vec::new();
    for range in bytes.as_chunks::<RANGE>().0 {
        let value = u128::from_le_bytes(*range);
        let (first, blocks) = ((value >> 64) as u64, u64::from((value >> 32) as u32));
        let range = namespace.range(first, blocks).ok_or(Status::LBA_OUT_OF_RANGE)?;
        if blocks > 0 {
            ranges.push(range);
        }
    }
    // The attributes besides Deallocate are hints of no use here.
    if command.dword::<11>() & 1 << 2 == 0 {
        ranges.clear();
    }
    ranges.reverse();
    Ok(ranges)
}
