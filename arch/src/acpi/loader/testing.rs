//! What tests of the table loader share: firmware, as far as the loader needs it, which refuses what edk2's and SeaBIOS's refuse.

#![allow(clippy::unwrap_used)] // Tests.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{HEADER_SIZE, NAME, STEP, Zone};

/// A blob in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its bytes, as they are at the end.
    pub bytes: Vec<u8>,
    /// Where firmware has put it.
    pub address: u64,
}

impl Placed {
    /// The addresses that it takes up.
    pub fn range(&self) -> Range<u64> {
        self.address..self.address + self.bytes.len() as u64
    }

    /// What is at `address` and behind it, if it is in this blob.
    pub fn at(&self, address: u64) -> Option<&[u8]> {
        self.bytes.get(usize::try_from(address.checked_sub(self.address)?).ok()?..)
    }
}

/// A script that was carried out.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The blobs, by their files' names.
    pub blobs: BTreeMap<String, Placed>,
    /// Addresses that were written back, by the names of the files that they were written to.
    pub written: BTreeMap<String, u64>,
    /// Addresses that pointers have been given.
    pub targets: Vec<u64>,
}

/// Bytes that add up to zero.
pub fn adds_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// A little-endian number of so many bytes.
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn name(bytes: &[u8]) -> String {
    assert!(bytes[..NAME].contains(&0), "a file's name ends");
    bytes.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

/// Where a blob may go.
const LOW: Range<u64> = 0xf_0000..0x10_0000;
const BELOW_4G: Range<u64> = 0x10_0000..1 << 32;
const ANYWHERE: Range<u64> = 0x10_0000..1 << 52;

/// Carries `script` out. Files are looked for in `files`; each blob goes to an address that its number in `places` chooses among those where
/// firmware might put it.
pub fn run(script: &[u8], files: &BTreeMap<String, Vec<u8>>, places: &[u64]) -> Loaded {
    let steps: Vec<_> = script.chunks(STEP).take_while(|step| number(&step[..4]) != 0).collect();
    // What follows is not used.
    assert!(script[steps.len() * STEP..].iter().all(|byte| *byte == 0));
    let mut loaded = Loaded::default();
    for step in &steps {
        let (first, second) = (name(&step[4..4 + NAME]), || name(&step[4 + NAME..4 + 2 * NAME]));
        let word = |at: usize| number(&step[at..at + 4]);
        match word(0) {
            1 => {
                let (alignment, zone) = (word(60), step[64]);
                assert!(alignment.is_power_of_two() && alignment <= 4096);
                // edk2's rule.
                let narrow = |step: &&[u8]| number(&step[..4]) == 2 && name(&step[60..]) == first && step[120] < 8;
                let range = match zone {
                    zone if zone == Zone::Low as u8 => LOW,
                    zone if zone == Zone::High as u8 && steps.iter().any(narrow) => BELOW_4G,
                    zone if zone == Zone::High as u8 => ANYWHERE,
                    other => panic!("zone {other}"),
                };
                let place = places[loaded.blobs.len() % places.len()];
                loaded.allocate(&first, files[&first].clone(), range, alignment, place);
            }
            2 => loaded.point(&first, &second(), word(116) as usize, usize::from(step[120])),
            3 => {
                let (at, start, length) = (word(60) as usize, word(64) as usize, word(68) as usize);
                let bytes = &mut loaded.blobs.get_mut(&first).unwrap().bytes;
                let range = start..start + length;
                assert!(range.contains(&at));
                let sum = bytes[range].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                bytes[at] = bytes[at].wrapping_sub(sum);
            }
            4 => {
                assert_eq!((word(116), word(120), step[124]), (0, 0, 8));
                let address = loaded.blobs[&second()].address;
                assert!(!loaded.blobs.contains_key(&first) && loaded.written.insert(first, address).is_none());
            }
            other => panic!("command {other}"),
        }
    }
    loaded
}

impl Loaded {
    fn allocate(&mut self, name: &str, bytes: Vec<u8>, range: Range<u64>, alignment: u64, place: u64) {
        let room = (range.end - range.start - bytes.len() as u64) / alignment;
        let mut blob = Placed { bytes, address: (range.start + place % room * alignment).next_multiple_of(alignment) };
        let taken = |blob: &Placed| {
            let (new, mut old) = (blob.range(), self.blobs.values().map(Placed::range));
            old.find(|old| old.start < new.end && new.start < old.end)
        };
        while let Some(other) = taken(&blob) {
            blob.address = other.end.next_multiple_of(alignment);
            if blob.range().end > range.end {
                blob.address = range.start.next_multiple_of(alignment);
            }
        }
        assert!(self.blobs.insert(name.to_owned(), blob).is_none(), "{name} is put once");
    }

    fn point(&mut self, from: &str, to: &str, offset: usize, size: usize) {
        assert!([1, 2, 4, 8].contains(&size));
        let target = &self.blobs[to];
        let (address, length) = (target.address, target.bytes.len() as u64);
        let place = &mut self.blobs.get_mut(from).unwrap().bytes[offset..offset + size];
        let value = number(place);
        assert!(value < length, "a pointer is an offset into {to}");
        let value = value + address;
        assert!(size == 8 || value >> (8 * size) == 0, "{value:#x} fits into {size} bytes");
        place.copy_from_slice(&value.to_le_bytes()[..size]);
        self.targets.push(value);
    }

    /// The table at an address, whose length and checksum are right; a FACS has no checksum.
    pub fn table(&self, address: u64) -> Option<&[u8]> {
        let rest = self.blobs.values().find_map(|blob| blob.at(address))?;
        let length = number(rest.get(4..8)?) as usize;
        let is_facs = rest.starts_with(b"FACS") && length == 64;
        let table = rest.get(..length)?;
        (is_facs || length >= HEADER_SIZE && adds_up(table)).then_some(table)
    }

    /// The tables that pointers lead to, by signature, as edk2 finds them.
    pub fn tables(&self) -> BTreeMap<[u8; 4], Vec<u8>> {
        let tables = self.targets.iter().filter_map(|target| self.table(*target));
        tables.map(|table| (std::array::from_fn(|i| table[i]), table.to_vec())).collect()
    }
}
