//! What the flash tells of itself (JESD68.01, and the primary command set's extension of Intel).

use super::{BUFFER, Geometry};

/// Where the extended table of the primary command set is.
const EXTENDED: u64 = 0x31;

/// The byte of the query table at a word address; the same for each chip.
pub(super) fn byte(geometry: Geometry, size: u64, word: u64) -> u8 {
    let chips = u64::from(geometry.chips());
    let blocks = (size / u64::from(geometry.block)).saturating_sub(1) as u16;
    let block_units = (u64::from(geometry.block) / chips / 256) as u16;
    let chip_size = (size / chips).max(1).next_power_of_two().trailing_zeros() as u8;
    let buffer = (BUFFER as u64 / chips).trailing_zeros() as u8;
    match word {
        0x10 => b'Q',
        0x11 => b'R',
        0x12 => b'Y',
        // Command set 1: Intel's, extended.
        0x13 => 1,
        0x15 => EXTENDED as u8,
        // 4.5 to 5.5 V, as QEMU's.
        0x1b => 0x45,
        0x1c => 0x55,
        // Typical times, and how many times that the longest is: programs of a byte and of a buffer, erase.
        0x1f..=0x20 => 0x07,
        0x21 => 0x0a,
        0x23..=0x25 => 0x04,
        0x27 => chip_size,
        // x8 or x16.
        0x28 if geometry.width == 4 => 2,
        0x2a => buffer,
        // One region of equal blocks.
        0x2c => 1,
        0x2d => blocks.to_le_bytes()[0],
        0x2e => blocks.to_le_bytes()[1],
        0x2f => block_units.to_le_bytes()[0],
        0x30 => block_units.to_le_bytes()[1],
        0x31 => b'P',
        0x32 => b'R',
        0x33 => b'I',
        0x34 => b'1',
        0x35 => b'0',
        _ => 0,
    }
}
