//! What a file of UEFI's variables holds (edk2's VariableFormat.h).

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a file, of which the variables are in the first.
const STORE: usize = 1 << 20;
/// Bytes of a variable's header (AUTHENTICATED_VARIABLE_HEADER), before its name, and what it begins with.
const HEADER: usize = 60;
const START: usize = 0x55aa;
/// States: its header is all that there is; it is there; it is there, and about to be replaced.
const BEGUN: u8 = 0xff;
const ADDED: u8 = 0x3f;
const LEAVING: u8 = 0x3e;

/// A firmware volume (PI 1.7, volume 3, section 3.2.1) of type EFI_SYSTEM_NV_DATA_FV_GUID, with nothing in it.
pub fn volume(size: usize) -> Vec<u8> {
    let mut volume = vec![0xff; size];
    volume[..16].fill(0);
    let nv_data = [0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50];
    volume[16..32].copy_from_slice(&nv_data);
    volume[32..40].copy_from_slice(&(size as u64).to_le_bytes());
    volume[40..44].copy_from_slice(b"_FVH");
    volume
}

#[derive(Debug)]
pub struct Variables {
    /// Those that firmware finds at power-on: state, name and value, in the order in which they were set.
    found: Vec<(u8, String, Vec<u8>)>,
    /// Behind the last one is nothing.
    whole: bool,
}

impl Variables {
    /// # Panics
    /// If there is no such file, or none of variables.
    pub fn of(file: &Path) -> Self {
        // By one call: somebody may write to it.
        let mut bytes = vec![0; STORE];
        let length = File::open(file).expect("a file of variables").read(&mut bytes).unwrap();
        let bytes = &bytes[..length];
        let number = |at: usize, size: usize| {
            Some(bytes.get(at..at + size)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
        };
        let store = number(48, 2).unwrap();
        assert_eq!((&bytes[40..44], &bytes[store + 20..store + 22]), (&b"_FVH"[..], &[0x5a, 0xfe][..]));
        let end = store + number(store + 16, 4).unwrap();
        let mut found = Vec::new();
        let mut at = store + 28;
        while number(at, 2) == Some(START) {
            let state = bytes[at + 2];
            let [name, data] = [36, 40].map(|field| if state == BEGUN { 0 } else { number(at + field, 4).unwrap() });
            let start = at + HEADER;
            if matches!(state, ADDED | LEAVING) {
                let units = bytes[start..start + name - 2].as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
                let value = bytes[start + name..start + name + data].to_vec();
                found.push((state, String::from_utf16(&units.collect::<Vec<_>>()).unwrap(), value));
            }
            at = (start + name + data).next_multiple_of(4);
            assert!(at < end, "a variable leaves the store");
        }
        Self { found, whole: bytes[at..end].iter().all(|byte| *byte == 0xff) }
    }

    /// Names and values, of a file to which nobody writes.
    ///
    /// # Panics
    /// If something is written where nothing is.
    pub fn set(self) -> Vec<(String, Vec<u8>)> {
        assert!(self.whole, "something is written where nothing is");
        self.found.into_iter().map(|(_, name, value)| (name, value)).collect()
    }

    /// The value of the variable `name`, as firmware finds it at power-on.
    ///
    /// # Panics
    /// If there are two that are there.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        let of = |state: u8| {
            let mut values = self.found.iter().filter(|found| found.0 == state && found.1 == name);
            let value = values.next();
            assert!(values.next().is_none(), "{name} is there twice: {self:x?}");
            value.map(|found| &*found.2)
        };
        of(ADDED).or_else(|| of(LEAVING))
    }
}
