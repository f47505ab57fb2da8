//! Whether memory holds nothing but zeroes.

use vm_memory::{GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory};

use crate::{PAGE_SIZE, Region};

#[cfg(test)]
#[path = "zero_test.rs"]
mod test;

/// What is looked at at once.
type Word = u128;
/// Words of a page.
const WORDS: usize = PAGE_SIZE as usize / size_of::<Word>();

/// Whether all of `bytes` are zeroes. `memcmp` of some C libraries goes byte by byte, and what is optimised for size has no vectors.
#[must_use]
#[inline(never)] // A caller that is optimised for size would have it so as well.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    words.iter().all(|word| Word::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

impl Region {
    /// Whether the page at `offset`, of [`PAGE_SIZE`] bytes, holds nothing but zeroes as it is read; who writes meanwhile may be missed.
    ///
    /// # Errors
    /// [`GuestMemoryError::InvalidBackendAddress`] for what is not in the region.
    #[inline(never)] // As above.
    pub fn is_zero_page(&self, offset: u64) -> Result<bool, GuestMemoryError> {
        let page = self.get_slice(MemoryRegionAddress(offset), PAGE_SIZE as usize)?;
        let words = page.get_array_ref::<Word>(0, WORDS)?;
        // What is something else shows it in the first words, as a rule.
        Ok((0..WORDS).all(|word| words.load(word) == 0))
    }
}
