//! SMBIOS tables (DMTF DSP0134 3.4) with a 64-bit entry point, as firmware takes them from fw_cfg.
//!
//! There are: system (1), chassis (3), processors (4), memory (16, 17, 19), boot information (32). BIOS information (0) is firmware's own.

use crate::layout::{AddressRange, KIB, MIB};
use crate::topology::Topology;

/// What the tables tell of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The product's name.
    pub product: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The machine's UUID, in the order in which it is written; all zero where it has none.
    pub uuid: [u8; 16],
    /// How its CPUs are arranged.
    pub topology: Topology,
    /// The CPUs' family, from 0x100 on by number: see [`ARMV8`] and [`OTHER_FAMILY`].
    pub family: u16,
    /// RAM.
    pub ram: &'a [AddressRange],
}

/// Processor family of arm64.
pub const ARMV8: u16 = 0x101;
/// A processor of which nothing is told.
pub const OTHER_FAMILY: u16 = 0x01;

/// Entry point and tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// The entry point; firmware fills in where the tables are, and the checksum.
    pub anchor: Vec<u8>,
    /// The tables.
    pub tables: Vec<u8>,
}

const MANUFACTURER: &str = "skep";
/// No handle.
const NONE: u16 = 0xfffe;
const MEMORY_ARRAY: u16 = 0x1000;
const MEMORY_DEVICE: u16 = 0x1100;

#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
}

/// One structure that is being written.
struct Structure {
    bytes: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let mut bytes = vec![kind, 0];
        bytes.extend(handle.to_le_bytes());
        Self { bytes, strings: Vec::new() }
    }

    fn text(mut self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        self.strings.push(text.to_owned());
        let number = self.strings.len() as u8;
        self.byte(number)
    }

    fn byte(self, value: u8) -> Self {
        self.raw(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }
}

impl Tables {
    fn add(&mut self, mut structure: Structure) {
        structure.bytes[1] = structure.bytes.len() as u8;
        self.bytes.extend(structure.bytes);
        for text in &structure.strings {
            self.bytes.extend(text.bytes());
            self.bytes.push(0);
        }
        // A set of strings ends with an empty one, and where there is none, with two zeroes.
        self.bytes.extend(vec![0; if structure.strings.is_empty() { 2 } else { 1 }]);
    }
}

/// The first three fields of a UUID are little-endian in SMBIOS (section 7.2.1).
fn uuid(written: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = written;
    let mut mixed = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
    mixed[8..].copy_from_slice(&rest);
    mixed
}

/// The machine's tables.
#[must_use]
pub fn tables(machine: &Machine<'_>) -> Smbios {
    const POWER_SWITCH: u8 = 6;
    let mut tables = Tables::default();
    tables.add(
        Structure::new(1, 0x100)
            .text(MANUFACTURER)
            .text(machine.product)
            .text(machine.version)
            .text("")
            .raw(&uuid(machine.uuid))
            .byte(POWER_SWITCH)
            .text("")
            .text(""),
    );
    // Of a kind of its own; states: safe; no security.
    let chassis = Structure::new(3, 0x300).text(MANUFACTURER).byte(1).text(machine.version).text("").text("");
    tables.add(chassis.raw(&[3, 3, 3, 3]).dword(0).raw(&[0, 0, 0, 0]).text(""));
    (0..machine.topology.sockets).for_each(|socket| processor(&mut tables, machine, socket));
    memory(&mut tables, machine.ram);
    tables.add(Structure::new(32, 0x2000).raw(&[0; 7]));
    tables.add(Structure::new(127, 0x7f00));
    Smbios { anchor: anchor(tables.bytes.len() as u32), tables: tables.bytes }
}

fn processor(tables: &mut Tables, machine: &Machine<'_>, socket: u32) {
    const CENTRAL: u8 = 3;
    const SEE_FAMILY_2: u8 = 0xfe;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const OTHER_UPGRADE: u8 = 1;
    const NO_CACHE: u16 = 0xffff;
    const UNKNOWN: u16 = 1 << 1;
    let cores = machine.topology.cores;
    let threads = cores.saturating_mul(machine.topology.threads);
    let byte = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    let word = |count: u32| u16::try_from(count).unwrap_or(0xfffe);
    let structure = Structure::new(4, 0x400 + socket as u16)
        .text(&format!("CPU {socket}"))
        .byte(CENTRAL)
        .byte(SEE_FAMILY_2)
        .text(MANUFACTURER)
        .qword(0)
        .text(machine.version)
        .raw(&[0; 7])
        .byte(POPULATED_AND_ENABLED)
        .byte(OTHER_UPGRADE)
        .word(NO_CACHE)
        .word(NO_CACHE)
        .word(NO_CACHE);
    let structure = structure.text("").text("").text("").byte(byte(cores)).byte(byte(cores)).byte(byte(threads));
    tables.add(structure.word(UNKNOWN).word(machine.family).word(word(cores)).word(word(cores)).word(word(threads)));
}

fn memory(tables: &mut Tables, ram: &[AddressRange]) {
    const OTHER_LOCATION: u8 = 1;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    /// The field of 64 bits holds.
    const EXTENDED: u32 = 0x8000_0000;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER: u16 = 1 << 1;
    const UNKNOWN_TECHNOLOGY: u8 = 2;
    const VOLATILE: u16 = 1 << 3;
    let total: u64 = ram.iter().map(|part| part.size).sum();
    let array = Structure::new(16, MEMORY_ARRAY).raw(&[OTHER_LOCATION, SYSTEM_MEMORY, NO_CORRECTION]);
    tables.add(array.dword(EXTENDED).word(NONE).word(1).qword(total));
    let mib = total / MIB;
    let (size, extended) = if mib < 0x7fff { (mib as u16, 0) } else { (0x7fff, mib.min(0x7fff_ffff) as u32) };
    let device = Structure::new(17, MEMORY_DEVICE).word(MEMORY_ARRAY).word(NONE).word(0xffff).word(0xffff).word(size);
    let device = device.byte(DIMM).byte(0).text("DIMM 0").text("").byte(RAM).word(OTHER).word(0);
    let device = device.text(MANUFACTURER).text("").text("").text("").byte(0).dword(extended).raw(&[0; 8]);
    // No version of firmware; nobody's ids.
    let device = device.byte(UNKNOWN_TECHNOLOGY).word(VOLATILE).text("").raw(&[0; 8]);
    // Sizes: none of it lasts, all of it is volatile, none is a cache, none logical. The speeds of 32 bits count where those of 16 have no room.
    tables.add(device.qword(0).qword(total).qword(0).qword(0).dword(0).dword(0));
    for (number, part) in (0x1300..).zip(ram) {
        // In KiB where they fit, else in bytes.
        let kib = |address: u64| u32::try_from(address / KIB).ok().filter(|kib| *kib < u32::MAX);
        let mapped = Structure::new(19, number);
        let (first, last) = (part.base, part.end() - 1);
        tables.add(match (kib(first), kib(last)) {
            (Some(first), Some(last)) => mapped.dword(first).dword(last).word(MEMORY_ARRAY).byte(1).qword(0).qword(0),
            _ => mapped.dword(u32::MAX).dword(u32::MAX).word(MEMORY_ARRAY).byte(1).qword(first).qword(last),
        });
    }
}

/// The entry point (section 5.2.2), whose checksum is right while the tables' address is 0.
fn anchor(size: u32) -> Vec<u8> {
    const LENGTH: u8 = 24;
    const CHECKSUM: usize = 5;
    let mut bytes = b"_SM3_".to_vec();
    // Version 3.4, docrev 0, entry point revision 1.
    bytes.extend([0, LENGTH, 3, 4, 0, 1, 0]);
    bytes.extend(size.to_le_bytes());
    bytes.extend([0; 8]);
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[CHECKSUM] = sum.wrapping_neg();
    bytes
}

#[cfg(test)]
#[path = "smbios_test.rs"]
mod test;
