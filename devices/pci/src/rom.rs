//! Option ROMs (PCI Local Bus 3.0 section 6.3): what firmware runs to boot from a device that it has no driver for.

use std::fmt;
use std::sync::Arc;

use crate::bar::{Decoded, Space};
use crate::config_space::{Bits, ConfigSpace, command};
use crate::endpoint::Identity;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "rom_test.rs"]
pub(crate) mod test;

/// The expansion ROM base address register of an endpoint, and by which number its range is known among the BARs.
pub(crate) const REGISTER: u16 = 0x30;
pub(crate) const BAR: u8 = 6;
/// The register's lowest bit: the ROM is decoded.
const ENABLE: u32 = 1;
/// Bits of an address begin here.
const SMALLEST: usize = 0x800;
/// Larger ones there are none.
const LARGEST: usize = 16 << 20;

/// How an image begins; where it says where its data structure is, how long it is for a BIOS, and a byte that is nobody's.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
const BLOCK: usize = 512;
const INITIAL_LENGTH: usize = 2;
const SPARE: usize = 6;
const POINTER: usize = 0x18;
/// The data structure, and what is where in it.
const DATA: &[u8; 4] = b"PCIR";
const VENDOR: usize = 4;
const DEVICE: usize = 6;
const LENGTH: usize = 0x10;
const CODE_TYPE: usize = 0x14;
const INDICATOR: usize = 0x15;
const LAST: u8 = 0x80;
/// Code for a PC's BIOS, which has a checksum.
const BIOS: u8 = 0;

/// Why a file is no option ROM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RomError {
    /// Its size.
    #[error("an option ROM has 1 byte to 16 MiB, and this file has {0}")]
    Size(usize),
    /// Its beginning.
    #[error("this is no PCI option ROM: it has no image with a PCI data structure")]
    NoImage,
}

/// An option ROM.
#[derive(Clone)]
pub struct OptionRom(Arc<[u8]>);

/// An image in a ROM: where it begins, and where its data structure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image {
    start: usize,
    data: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(usize::from(u16::from_le_bytes(*word)))
}

fn images(bytes: &[u8]) -> Vec<Image> {
    let mut found = Vec::new();
    let mut start = 0;
    while bytes.get(start..).is_some_and(|rest| rest.starts_with(&SIGNATURE)) {
        let Some(data) = word(bytes, start + POINTER).map(|at| start + at) else { break };
        let structure = bytes.get(data..).unwrap_or_default();
        let (Some(length), Some(indicator)) = (word(structure, LENGTH), structure.get(INDICATOR)) else { break };
        if !structure.starts_with(DATA) {
            break;
        }
        found.push(Image { start, data });
        if indicator & LAST != 0 || length == 0 {
            break;
        }
        start += length * BLOCK;
    }
    found
}

impl OptionRom {
    /// The ROM that a file holds.
    ///
    /// # Errors
    /// [`RomError`].
    pub fn new(bytes: &[u8]) -> Result<Self, RomError> {
        if bytes.is_empty() || bytes.len() > LARGEST {
            return Err(RomError::Size(bytes.len()));
        }
        if images(bytes).is_empty() {
            return Err(RomError::NoImage);
        }
        Ok(Self(bytes.into()))
    }

    /// The same for a function of that identity. Firmware starts no image that is for another: where one is, as in a ROM that serves several
    /// cards, its ids become the function's, and a checksum that there is becomes right again.
    pub(crate) fn of(&self, identity: &Identity) -> Self {
        let mut bytes = self.0.to_vec();
        for image in images(&self.0) {
            let ids = [(VENDOR, identity.vendor), (DEVICE, identity.device)];
            let mut change = 0u8;
            for (at, new) in ids.into_iter().flat_map(|(at, id)| (image.data + at..).zip(id.to_le_bytes())) {
                if let Some(byte) = bytes.get_mut(at) {
                    change = change.wrapping_add(new).wrapping_sub(*byte);
                    *byte = new;
                }
            }
            let has_checksum = bytes.get(image.data + CODE_TYPE) == Some(&BIOS)
                && bytes.get(image.start + INITIAL_LENGTH).is_some_and(|blocks| *blocks != 0);
            if let Some(spare) = bytes.get_mut(image.start + SPARE).filter(|_| has_checksum) {
                *spare = spare.wrapping_sub(change);
            }
        }
        Self(bytes.into())
    }

    /// Bytes of the range that it is decoded in.
    fn size(&self) -> u32 {
        self.0.len().max(SMALLEST).next_power_of_two() as u32
    }

    /// Lays the register out.
    pub(crate) fn define(&self, space: &mut ConfigSpace) {
        space.define(REGISTER, Bits::fixed(0).writable(!(self.size() - 1) | ENABLE));
    }

    /// What is decoded now.
    pub(crate) fn decoded(&self, space: &ConfigSpace) -> Option<Decoded> {
        let value = space.register(REGISTER);
        let memory = space.register(crate::config_space::header::COMMAND) & command::MEMORY != 0;
        let (base, size) = (u64::from(value & !(self.size() - 1)), u64::from(self.size()));
        // As for a BAR: address 0 is none, and all ones is a guest that asks for the size.
        let placed = base != 0 && base + size <= u64::from(u32::MAX);
        (value & ENABLE != 0 && memory && placed).then_some(Decoded { bar: BAR, space: Space::Memory, base, size })
    }

    /// Reads at `offset`; behind its end there is nothing.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0xff);
        }
    }
}

impl fmt::Debug for OptionRom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptionRom").field("bytes", &self.0.len()).field("images", &images(&self.0)).finish()
    }
}
