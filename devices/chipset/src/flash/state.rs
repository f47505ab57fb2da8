//! The flash's saved state.

use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use skep_state::{State, StateError, ensure};

use super::{BUFFER, FLASH_MAX};

/// A block whose content is not that of the file it came from.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BlockState {
    /// Its number.
    #[n(0)]
    pub number: u32,
    /// Its content.
    #[n(1)]
    pub bytes: ByteVec,
}

/// What a bank with a file holds, by which the file is known again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ContentState {
    /// Bytes of the bank.
    #[n(0)]
    pub size: u64,
    /// Bytes of a block.
    #[n(1)]
    pub block: u32,
    /// Blocks, ascending, without those that are zero. One that holds the same byte everywhere has that alone.
    #[n(2)]
    pub blocks: Vec<BlockState>,
}

/// What a bank of flash is about to do, and what it holds where no file has that.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FlashState {
    /// What it answers, or what it waits for, by numbers: 0 reads its content; 1 status; 2 id; 3 query; 4, 5 and 6 the second cycle of program, erase and
    /// lock; 7, 8 and 9 count, data and confirmation of a buffered program.
    #[n(0)]
    pub mode: u8,
    /// The status register. Any value.
    #[n(1)]
    pub status: u8,
    /// Numbers of locked blocks, ascending.
    #[n(2)]
    pub locked: Vec<u32>,
    /// Bytes of a buffered program that are still to come.
    #[n(3)]
    pub expected: u32,
    /// Where the buffer's window begins, once a byte of it is known.
    #[n(4)]
    pub window: Option<u32>,
    /// Something was written outside of the window.
    #[n(5)]
    pub astray: bool,
    /// The buffer.
    #[n(6)]
    pub buffer: ByteVec,
    /// Blocks that were changed, of a bank without a file; ascending.
    #[n(7)]
    pub changed: Vec<BlockState>,
    /// Of a bank with a file: what that holds.
    #[n(8)]
    pub content: Option<ContentState>,
    /// Of a bank with a file: a block that was erased, and that the file has as it was before; its content.
    #[n(9)]
    pub held: Option<BlockState>,
}

impl State for FlashState {
    const ID: &'static str = "cfi-flash";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.mode <= 9, id, "mode", self.mode, "there are ten")?;
        let ascending = self.locked.windows(2).all(|pair| pair[0] < pair[1]);
        ensure(ascending, id, "locked", &self.locked, "numbers ascend")?;
        ensure(self.expected as usize <= BUFFER, id, "expected", self.expected, "the buffer has 2048 bytes")?;
        let aligned = self.window.is_none_or(|window| (window as usize).is_multiple_of(BUFFER));
        ensure(aligned, id, "window", self.window, "it is aligned to its size")?;
        let size = self.buffer.len();
        ensure(size == BUFFER, id, "buffer", size, "the buffer has 2048 bytes")?;
        let total: u64 = self.changed.iter().map(|block| block.bytes.len() as u64).sum();
        let ascending = self.changed.windows(2).all(|pair| pair[0].number < pair[1].number);
        ensure(ascending && total <= FLASH_MAX, id, "changed", total, "blocks ascend, and fit the largest bank")?;
        let empty = self.changed.iter().find(|block| block.bytes.is_empty()).map(|block| block.number);
        ensure(empty.is_none(), id, "changed", empty, "no block is empty")?;
        let held = self.held.as_ref().map_or(1, |block| block.bytes.len());
        let fits = (1..=FLASH_MAX).contains(&(held as u64));
        ensure(fits, id, "held", held, "a block has something, and fits the largest bank")?;
        let number = self.held.as_ref().map_or(0, |block| block.number);
        ensure(u64::from(number) < FLASH_MAX, id, "held.number", number, "the largest bank has no such block")?;
        let alone = self.content.is_some() || self.held.is_none();
        ensure(alone, id, "held", held, "only a bank with a file holds a block back")?;
        let Some(content) = &self.content else { return Ok(()) };
        let (size, block) = (content.size, u64::from(content.block));
        ensure(block > 0, id, "content.block", block, "no block is empty")?;
        let whole = size <= FLASH_MAX && size.is_multiple_of(block);
        ensure(whole, id, "content.size", size, "it is made of whole blocks, and fits the largest bank")?;
        let ascending = content.blocks.windows(2).all(|pair| pair[0].number < pair[1].number);
        let fits =
            |one: &BlockState| u64::from(one.number) < size / block && [1, block].contains(&(one.bytes.len() as u64));
        let wrong = content.blocks.iter().find(|one| !ascending || !fits(one)).map(|one| one.number);
        ensure(wrong.is_none(), id, "content.blocks", wrong, "blocks ascend, and are within the bank")
    }
}
