//! The blocks of an image's tables that are in memory: a bounded number, however large the tables say they are.

use std::collections::HashMap;

use crate::IoError;
use crate::storage::Storage;

/// Bytes of tables in memory: at clusters of 64 KiB the map of 128 GiB.
const MOST: usize = 16 << 20;
/// Bytes that are read and written at once, where clusters are as large.
const BLOCK: u64 = 4096;

/// What a block is of. Counts that have grown are written before entries that need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Level 1 and level 2 tables.
    Map,
    /// Reference counts and their table.
    Count,
}

struct Block {
    offset: u64,
    data: Box<[u8]>,
    kind: Kind,
    /// Newer than in the file.
    dirty: bool,
    /// A copy is on its way to the file.
    leaving: bool,
    /// Looked at since the hand came by.
    used: bool,
}

/// Blocks by their offset in the file.
pub(super) struct Cache {
    blocks: Vec<Block>,
    places: HashMap<u64, usize>,
    hand: usize,
    size: u64,
    most: usize,
    dirty: usize,
}

/// Blocks on their way to the file.
pub(super) type Leaving = Vec<(u64, Box<[u8]>)>;

impl Cache {
    pub(super) fn new(cluster_size: u64, alignment: u32) -> Self {
        let size = BLOCK.max(alignment.into()).min(cluster_size);
        let most = MOST / size as usize;
        Self { blocks: Vec::new(), places: HashMap::new(), hand: 0, size, most, dirty: 0 }
    }

    /// Whether so much waits to be written that it should be before more is changed.
    pub(super) fn is_full(&self) -> bool {
        self.dirty > self.most / 2
    }

    /// Whether anything waits to be written.
    pub(super) fn is_dirty(&self, kind: Kind) -> bool {
        self.dirty > 0 && self.blocks.iter().any(|block| block.dirty && block.kind == kind)
    }

    /// The block that `offset` is in, and its place in it.
    fn block(&mut self, storage: &dyn Storage, offset: u64, kind: Kind) -> Result<(usize, usize), IoError> {
        let start = offset & !(self.size - 1);
        let within = (offset - start) as usize;
        if let Some(place) = self.places.get(&start) {
            self.blocks[*place].used = true;
            return Ok((*place, within));
        }
        let data = storage.bytes(start, self.size as usize)?.into_boxed_slice();
        Ok((self.insert(Block { offset: start, data, kind, dirty: false, leaving: false, used: true }), within))
    }

    fn insert(&mut self, block: Block) -> usize {
        let offset = block.offset;
        let place = match self.victim() {
            Some(place) => {
                self.places.remove(&self.blocks[place].offset);
                self.blocks[place] = block;
                place
            }
            // Where all of it waits to be written it grows a little: whoever changes it sees to it that it is written.
            None => {
                self.blocks.push(block);
                self.blocks.len() - 1
            }
        };
        self.places.insert(offset, place);
        place
    }

    /// A block that has not been looked at for long and can go, once there are as many as there may be.
    fn victim(&mut self) -> Option<usize> {
        if self.blocks.len() < self.most {
            return None;
        }
        for _ in 0..2 * self.blocks.len() {
            self.hand = (self.hand + 1) % self.blocks.len();
            let block = &mut self.blocks[self.hand];
            if !block.dirty && !block.leaving && !std::mem::take(&mut block.used) {
                return Some(self.hand);
            }
        }
        None
    }

    /// The eight bytes at `offset`, which is a multiple of eight.
    pub(super) fn entry(&mut self, storage: &dyn Storage, offset: u64, kind: Kind) -> Result<u64, IoError> {
        let (place, within) = self.block(storage, offset, kind)?;
        Ok(number(&self.blocks[place].data, within))
    }

    /// The same, if it is in memory.
    pub(super) fn cached(&self, offset: u64) -> Option<u64> {
        let start = offset & !(self.size - 1);
        let place = self.places.get(&start)?;
        Some(number(&self.blocks[*place].data, (offset - start) as usize))
    }

    /// Changes the eight bytes at `offset`, which is a multiple of eight.
    pub(super) fn set_entry(
        &mut self,
        storage: &dyn Storage,
        offset: u64,
        value: u64,
        kind: Kind,
    ) -> Result<(), IoError> {
        let (place, within) = self.block(storage, offset, kind)?;
        let block = &mut self.blocks[place];
        if let Some(bytes) = block.data.get_mut(within..within + 8) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
        self.dirty += usize::from(!block.dirty);
        (block.dirty, block.kind) = (true, kind);
        Ok(())
    }

    /// The blocks of a kind that wait to be written, which are then on their way.
    pub(super) fn leave(&mut self, kind: Kind) -> Leaving {
        let mut leaving = Leaving::new();
        for block in self.blocks.iter_mut().filter(|block| block.dirty && block.kind == kind) {
            (block.dirty, block.leaving) = (false, true);
            self.dirty -= 1;
            leaving.push((block.offset, block.data.clone()));
        }
        leaving
    }

    /// They have been written, or wait again.
    pub(super) fn arrived(&mut self, leaving: &Leaving, written: bool) {
        for (offset, _) in leaving {
            let Some(place) = self.places.get(offset) else { continue };
            let block = &mut self.blocks[*place];
            block.leaving = false;
            if !written && !block.dirty {
                block.dirty = true;
                self.dirty += 1;
            }
        }
    }

    /// Writes what waits of a kind, now.
    pub(super) fn write(&mut self, storage: &dyn Storage, kind: Kind) -> Result<(), IoError> {
        let leaving = self.leave(kind);
        let result = put(storage, &leaving);
        self.arrived(&leaving, result.is_ok());
        result
    }

    /// Forgets `len` bytes from `offset` on, which have been written otherwise or are no table any more.
    pub(super) fn forget(&mut self, offset: u64, len: u64) {
        for start in (offset..offset + len).step_by(self.size as usize) {
            if let Some(place) = self.places.get(&start) {
                let block = &mut self.blocks[*place];
                self.dirty -= usize::from(std::mem::take(&mut block.dirty));
                self.places.remove(&start);
                // The next to go. Nothing finds it by this offset, which no block has.
                (block.offset, block.used, block.leaving) = (u64::MAX, false, false);
            }
        }
    }
}

/// Writes blocks to the file.
pub(super) fn put(storage: &dyn Storage, leaving: &Leaving) -> Result<(), IoError> {
    leaving.iter().try_for_each(|(offset, data)| storage.put(*offset, data))
}

/// The big-endian number of eight bytes there.
fn number(data: &[u8], at: usize) -> u64 {
    data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}
