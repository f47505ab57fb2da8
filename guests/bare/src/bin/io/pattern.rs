//! Random places, and content that tells where it belongs.

use crate::disk::SECTOR;
use crate::memory::{get, put};

/// Mixes all bits of a number into each other (the finalizer of SplitMix64).
pub fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// Numbers in a row that look random (SplitMix64).
pub struct Random(u64);

impl Random {
    /// Those that follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next one below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        ((u128::from(mix(self.0)) * u128::from(end)) >> 64) as u64
    }
}

/// The words of the pattern from byte `offset` of the disk on.
fn words(seed: u64, offset: u64, length: u64) -> impl Iterator<Item = u64> {
    let first = mix(seed).wrapping_add(offset / SECTOR * (SECTOR / 8));
    (0..length / 8).map(move |word| mix(first.wrapping_add(word)))
}

/// Writes the pattern of `length` bytes at `offset` of the disk to a buffer.
pub fn fill(buffer: u64, seed: u64, offset: u64, length: u64) {
    for (place, word) in (buffer..).step_by(8).zip(words(seed, offset, length)) {
        put(place, word);
    }
}

/// Whether a buffer holds it.
pub fn holds(buffer: u64, seed: u64, offset: u64, length: u64) -> bool {
    (buffer..).step_by(8).zip(words(seed, offset, length)).all(|(place, word)| get::<u64>(place) == word)
}
