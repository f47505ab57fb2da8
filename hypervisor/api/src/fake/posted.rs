//! Writes that the fake's guests don't wait for.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Mutex;

use super::lock;
use crate::{HypervisorError, MemoryIo, PostedWrites};

/// More than so many call back at once.
const ROOM: usize = 8;

/// Where writes are posted, and those that the bus does not have yet.
#[derive(Default)]
pub(super) struct Posted {
    ranges: Mutex<Vec<Range<u64>>>,
    waiting: Mutex<VecDeque<(u64, Vec<u8>)>>,
    /// One at a time delivers.
    delivers: Mutex<()>,
}

impl Posted {
    /// Posts a write, where that is wanted and there is room.
    pub(super) fn post(&self, address: u64, data: &[u8]) -> bool {
        let end = address.saturating_add(data.len() as u64);
        let inside = |range: &Range<u64>| range.start <= address && end <= range.end;
        if !lock(&self.ranges).iter().any(inside) {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        let room = waiting.len() < ROOM;
        if room {
            waiting.push_back((address, data.to_vec()));
        }
        room
    }

    /// Gives the bus what waits.
    pub(super) fn deliver<I: MemoryIo + ?Sized>(&self, io: &mut I) {
        let _one = lock(&self.delivers);
        let count = lock(&self.waiting).len();
        for _ in 0..count {
            let Some((address, data)) = lock(&self.waiting).pop_front() else { return };
            io.memory_write(address, &data);
        }
    }
}

impl PostedWrites for Posted {
    fn attach(&self, range: Range<u64>) -> Result<(), HypervisorError> {
        lock(&self.ranges).push(range);
        Ok(())
    }

    fn detach(&self, range: Range<u64>) -> Result<(), HypervisorError> {
        let mut ranges = lock(&self.ranges);
        let place = ranges.iter().position(|attached| *attached == range);
        let gone = || HypervisorError::call(format!("detach posted writes at {range:#x?}"), io::ErrorKind::NotFound);
        ranges.remove(place.ok_or_else(gone)?);
        Ok(())
    }
}
