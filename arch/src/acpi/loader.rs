//! fw_cfg's table loader (QEMU's `etc/table-loader`): a script by which firmware places tables that it does not know.
//!
//! It allocates each blob, adds blobs' addresses to pointers, mends checksums, and writes an address back to the machine.

use super::{Blob, HEADER_SIZE, Linked};

pub mod testing;

/// The files' names.
pub mod file {
    /// All tables but the RSDP.
    pub const TABLES: &str = "etc/acpi/tables";
    /// The RSDP.
    pub const RSDP: &str = "etc/acpi/rsdp";
    /// The script.
    pub const SCRIPT: &str = "etc/table-loader";
    /// A page with the VM generation id, at [`super::GENERATION_OFFSET`].
    pub const GENERATION: &str = "etc/vmgenid_guid";
    /// Where firmware writes the page's address, 8 bytes.
    pub const GENERATION_ADDRESS: &str = "etc/vmgenid_addr";
}

/// Bytes of one step.
const STEP: usize = 128;
/// Bytes of a file's name, with its terminating zero.
const NAME: usize = 56;
/// Bytes of the page with the generation id.
pub const GENERATION_SIZE: usize = 4096;
/// Where it is in its page: behind what firmware would take for a table's header.
pub const GENERATION_OFFSET: usize = 40;

/// Where a blob is put.
#[derive(Clone, Copy)]
enum Zone {
    /// Anywhere.
    High = 1,
    /// Where a PC's operating system looks for the RSDP, from 0xf0000 on.
    Low = 2,
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn step(&mut self, command: u32, names: &[&str], rest: &[u8]) {
        let end = self.0.len() + STEP;
        self.0.extend(command.to_le_bytes());
        for name in names {
            let start = self.0.len();
            self.0.extend(name.bytes().take(NAME - 1));
            self.0.resize(start + NAME, 0);
        }
        self.0.extend(rest);
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, alignment: u32, zone: Zone) {
        self.step(1, &[file], &[&alignment.to_le_bytes()[..], &[zone as u8]].concat());
    }

    fn point(&mut self, from: &str, to: &str, offset: usize, size: usize) {
        self.step(2, &[from, to], &[&(offset as u32).to_le_bytes()[..], &[size as u8]].concat());
    }

    fn write_address(&mut self, into: &str, of: &str) {
        self.step(4, &[into, of], &[&[0; 8][..], &[8]].concat());
    }

    fn pointers(&mut self, file: &str, blob: &Blob) {
        for pointer in &blob.pointers {
            self.point(file, file::TABLES, pointer.offset, pointer.size.bytes());
        }
    }

    fn checksums(&mut self, file: &str, blob: &Blob) {
        for sum in &blob.checksums {
            let words = [sum.offset, sum.range.start, sum.range.len()].map(|word| (word as u32).to_le_bytes());
            self.step(3, &[file], words.as_flattened());
        }
    }
}

/// The script that places `linked`. `generation` is where the tables' blob has a 32-bit pointer to the generation id's page, if it has one.
#[must_use]
pub fn script(linked: &Linked, generation: Option<usize>) -> Vec<u8> {
    let mut script = Script::default();
    script.allocate(file::TABLES, super::ALIGNMENT as u32, Zone::High);
    script.allocate(file::RSDP, 16, Zone::Low);
    if let Some(offset) = generation {
        script.allocate(file::GENERATION, GENERATION_SIZE as u32, Zone::High);
        script.point(file::TABLES, file::GENERATION, offset, 4);
        script.write_address(file::GENERATION_ADDRESS, file::GENERATION);
    }
    script.pointers(file::TABLES, &linked.tables);
    script.pointers(file::RSDP, &linked.rsdp);
    // Last, when the pointers are addresses.
    script.checksums(file::TABLES, &linked.tables);
    script.checksums(file::RSDP, &linked.rsdp);
    script.0
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "loader_test.rs"]
pub(crate) mod test;
