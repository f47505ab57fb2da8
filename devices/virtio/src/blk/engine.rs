//! The thread of one of a block device's queues.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use skep_block::{Buffer, Completion, Disk, DiskQueue, IoError, Operation, Request as DiskRequest};
use skep_memory::DmaGuard;
use skep_worker::{EventSet, Sources};

use super::request::{ID_LEN, Request, Status, parse};
use crate::engine::{Engine, Queues};
use crate::{ActiveQueue, Chain, QueueError};

/// Requests taken in one round.
const BATCH: usize = 64;
/// The token of the disk's descriptor.
const DISK: u64 = 0;

/// A request that the disk has.
struct InFlight {
    chain: Chain,
    /// Bytes that a success has written for the driver, the status not counted.
    written: u32,
}

/// The disk's side of a queue that runs.
struct Open {
    disk: Box<dyn DiskQueue>,
    /// By the requests' tags.
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
}

pub(super) struct BlkEngine {
    /// The number of the one queue that it works.
    index: u16,
    disk: Arc<dyn Disk>,
    /// Writes wait for the medium.
    through: Arc<AtomicBool>,
    id: [u8; ID_LEN],
    open: Option<Open>,
    done: Vec<Completion>,
    /// Buffers whose lists are filled again: no more than were ever in flight.
    spare: Vec<Buffer>,
}

/// Writes the status, which is the last byte of the writable part, and uses the chain.
fn finish(queue: &mut ActiveQueue, memory: &DmaGuard, chain: Chain, status: Status, written: u32) {
    let place = chain.writable().len().saturating_sub(1);
    match chain.writable().write(memory, place, &[status as u8]) {
        Ok(_) => queue.complete(chain, written + 1),
        Err(error) => refuse(queue, chain, &error),
    }
}

fn refuse(queue: &mut ActiveQueue, chain: Chain, error: &QueueError) {
    queue.complete(chain, 0);
    queue.fail(error);
}

impl BlkEngine {
    pub(super) fn new(index: u16, disk: Arc<dyn Disk>, through: Arc<AtomicBool>, id: [u8; ID_LEN]) -> Self {
        Self { index, disk, through, id, open: None, done: Vec::new(), spare: Vec::new() }
    }

    /// Takes a chain: it is done at once, or the disk has it.
    fn take(&mut self, queue: &mut ActiveQueue, chain: Chain, memory: &DmaGuard) {
        match parse(memory, &chain, self.through.load(Ordering::Acquire)) {
            Err(error) => refuse(queue, chain, &error),
            Ok(Err(status)) => finish(queue, memory, chain, status, 0),
            Ok(Ok(Request::Id)) => {
                let room = usize::try_from(chain.writable().len() - 1).unwrap_or(ID_LEN).min(ID_LEN);
                match chain.writable().write(memory, 0, self.id.get(..room).unwrap_or_default()) {
                    Ok(written) => finish(queue, memory, chain, Status::Ok, written as u32),
                    Err(error) => refuse(queue, chain, &error),
                }
            }
            Ok(Ok(Request::Disk { operation, data })) => match self.buffer(&chain, memory, operation, data) {
                Ok((buffer, written)) => self.submit(queue, InFlight { chain, written }, memory, operation, buffer),
                Err(error) => refuse(queue, chain, &error),
            },
        }
    }

    /// The memory that a request moves, and how many bytes of it are for the driver.
    fn buffer(
        &mut self,
        chain: &Chain,
        memory: &DmaGuard,
        operation: Operation,
        data: Range<u64>,
    ) -> Result<(Buffer, u32), QueueError> {
        if data.is_empty() {
            return Ok((Buffer::empty(), 0));
        }
        let reads = matches!(operation, Operation::Read { .. });
        let part = if reads { chain.writable() } else { chain.readable() };
        let written = if reads { (data.end - data.start) as u32 } else { 0 };
        let mut buffer = self.spare.pop().unwrap_or_default().reuse(memory.clone().into_inner());
        for piece in part.pieces(data) {
            let not_ram = |_| QueueError::NotRam { part: "buffer", gpa: piece.gpa, len: piece.len.into() };
            buffer.push(piece.gpa, piece.len as usize).map_err(not_ram)?;
        }
        Ok((buffer, written))
    }

    fn submit(
        &mut self,
        queue: &mut ActiveQueue,
        in_flight: InFlight,
        memory: &DmaGuard,
        operation: Operation,
        buffer: Buffer,
    ) {
        // There is a slot for each descriptor, and a chain has one at least.
        let Some((open, tag)) = self.open.as_mut().and_then(|open| open.free.pop().map(|tag| (open, tag))) else {
            return finish(queue, memory, in_flight.chain, Status::IoError, 0);
        };
        match open.disk.submit(DiskRequest { tag: tag.into(), operation, buffer }) {
            Ok(()) => {
                if let Some(slot) = open.slots.get_mut(usize::from(tag)) {
                    *slot = Some(in_flight);
                }
            }
            Err(_full) => {
                open.free.push(tag);
                finish(queue, memory, in_flight.chain, Status::IoError, 0);
            }
        }
    }

    /// Looks what the disk has done.
    fn look(&mut self) {
        if let Some(open) = &mut self.open
            && open.disk.in_flight() > 0
        {
            open.disk.reap(&mut self.done);
        }
    }

    /// Uses the chains of what the disk has done.
    fn reap(&mut self, queue: &mut ActiveQueue) -> bool {
        self.look();
        let any = !self.done.is_empty();
        for completion in self.done.drain(..) {
            self.spare.push(completion.buffer);
            let Some(open) = &mut self.open else { continue };
            let slot = open.slots.get_mut(completion.tag as usize);
            let Some(InFlight { chain, written }) = slot.and_then(Option::take) else { continue };
            open.free.push(completion.tag as u16);
            let (status, written) = match completion.result {
                Ok(()) => (Status::Ok, written),
                Err(IoError::Unsupported) => (Status::Unsupported, 0),
                Err(_) => (Status::IoError, 0),
            };
            match queue.memory() {
                Some(memory) => finish(queue, &memory, chain, status, written),
                None => queue.complete(chain, 0),
            }
        }
        any
    }
}

impl Engine for BlkEngine {
    type Command = ();

    fn command(&mut self, (): (), _queues: &mut Queues) {}

    fn started(&mut self, queue: &mut ActiveQueue, sources: &Sources) -> Result<(), QueueError> {
        let depth = queue.size();
        let disk = self.disk.open_queue(depth).map_err(|error| QueueError::Host(error.to_string()))?;
        sources.add(&disk.event(), DISK, EventSet::IN).map_err(|error| QueueError::Host(error.to_string()))?;
        let slots = (0..depth).map(|_| None).collect();
        self.open = Some(Open { disk, slots, free: (0..depth).rev().collect() });
        Ok(())
    }

    fn work(&mut self, queues: &mut Queues) -> bool {
        let Some(queue) = queues.get(self.index) else { return false };
        let mut worked = self.reap(queue);
        for _ in 0..BATCH {
            let Some(memory) = queue.memory() else { break };
            let Some(chain) = queue.pop() else { break };
            self.take(queue, chain, &memory);
            worked = true;
        }
        // Whatever woke it: a disk with a limit may have held requests back, whose time has come.
        if let Some(open) = &mut self.open
            && open.disk.in_flight() > 0
        {
            open.disk.kick();
        }
        worked
    }

    fn peek(&mut self, queues: &mut Queues) -> bool {
        self.look();
        !self.done.is_empty() || queues.get(self.index).is_some_and(ActiveQueue::has_available)
    }

    fn stopped(&mut self, _index: u16, sources: &Sources) {
        if let Some(open) = self.open.take() {
            sources.remove(&open.disk.event());
        }
        self.spare.clear();
    }
}
