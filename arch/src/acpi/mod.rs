//! ACPI tables (ACPI 6.5), as data that is placed at the end.
//!
//! A [`Table`] is a header and a body with pointers to other tables in it. [`link`] lays all tables of a machine into
//! one blob and answers where its pointers and checksums are, so that the same tables are either placed at an address
//! ([`Linked::place`], a machine without firmware), or handed to firmware, which places them itself and patches what
//! the lists name (fw_cfg's table loader, [`loader`]).
//!
//! The tables' content is each architecture's: [`crate::x86_64::acpi`], [`crate::aarch64::acpi`]. What a device says
//! of itself in the DSDT is the device's: anything that is [`Aml`] is added to a [`Dsdt`]. Those of the platform are
//! in [`devices`].
//!
//! Not here: SRAT, SLIT, HMAT (NUMA).

use std::ops::Range;

use acpi_tables::rsdp::Rsdp;
pub use acpi_tables::{Aml, AmlSink, aml};
use zerocopy::IntoBytes;

pub mod devices;
pub mod loader;
mod pci;
mod pci_links;
mod shared;

pub use pci::PciHost;
pub use shared::{Ecam, SerialConsole, SerialKind, mcfg, spcr};
pub(crate) use shared::{FADT_X_DSDT, finish_fadt, new_fadt};

/// Who made the tables: OEM id and creator id are skep's.
const OEM_ID: [u8; 6] = *b"SKEP  ";
const OEM_TABLE_ID: [u8; 8] = *b"SKEP    ";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: [u8; 4] = *b"SKEP";
const CREATOR_REVISION: u32 = 1;

/// Length of the header that all tables but FACS begin with.
pub const HEADER_SIZE: usize = 36;
const CHECKSUM_OFFSET: usize = 9;
/// Tables begin at multiples of this, as FACS must.
const ALIGNMENT: usize = 64;

/// A place in a table where another table's address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference {
    /// From the start of the table.
    offset: usize,
    size: PointerSize,
    /// Signature of the other table, of which there is one.
    to: [u8; 4],
}

/// Bytes of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerSize {
    /// 32-bit.
    Four,
    /// 64-bit.
    Eight,
}

impl PointerSize {
    /// As a number of bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// One table, not placed.
#[derive(Clone, Debug)]
pub struct Table {
    bytes: Vec<u8>,
    references: Vec<Reference>,
    /// FACS has no checksum, and the XSDT does not list it.
    is_facs: bool,
}

impl Table {
    /// A table with the standard header in front of `body`.
    pub fn new(signature: [u8; 4], revision: u8, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
        bytes.extend(signature);
        bytes.extend(((HEADER_SIZE + body.len()) as u32).to_le_bytes());
        bytes.extend([revision, 0]);
        bytes.extend(OEM_ID);
        bytes.extend(OEM_TABLE_ID);
        bytes.extend(OEM_REVISION.to_le_bytes());
        bytes.extend(CREATOR_ID);
        bytes.extend(CREATOR_REVISION.to_le_bytes());
        bytes.extend(body);
        Self { bytes, references: Vec::new(), is_facs: false }
    }

    /// The firmware ACPI control structure, which chipsets with a PM block have.
    pub fn facs() -> Self {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(b"FACS");
        bytes[4] = 64;
        bytes[32] = 2;
        Self { bytes, references: Vec::new(), is_facs: true }
    }

    /// Has `size` bytes at `offset`, from the start of the table, hold the address of table `to`.
    ///
    /// # Panics
    /// If that is not within the body.
    #[must_use]
    pub fn with_pointer(mut self, offset: usize, size: PointerSize, to: [u8; 4]) -> Self {
        assert!(offset >= HEADER_SIZE && offset + size.bytes() <= self.bytes.len(), "a pointer is within the body");
        self.references.push(Reference { offset, size, to });
        self
    }

    /// The table's signature.
    pub fn signature(&self) -> [u8; 4] {
        std::array::from_fn(|i| self.bytes[i])
    }
}

/// A pointer in a blob, whose value is an offset into the tables' blob until it is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Where it is in its blob.
    pub offset: usize,
    /// Its size.
    pub size: PointerSize,
}

/// A checksum in a blob: the byte that makes all bytes of a range add up to zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where it is in its blob.
    pub offset: usize,
    /// The bytes that add up to zero.
    pub range: Range<usize>,
}

/// Bytes with pointers into the tables' blob and with checksums, which are zero until placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The bytes. They begin at an address that is a multiple of 64.
    pub bytes: Vec<u8>,
    /// Pointers, each holding an offset.
    pub pointers: Vec<Pointer>,
    /// Checksums, to be computed in this order once the pointers are addresses.
    pub checksums: Vec<Checksum>,
}

/// The tables do not fit below the addresses that their 32-bit pointers reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ACPI tables at {0:#x} are out of reach of their 32-bit pointers; place them below 4 GiB")]
pub struct OutOfReach(pub u64);

impl Blob {
    /// The bytes once the tables' blob is at `tables`.
    fn place(&self, tables: u64) -> Result<Vec<u8>, OutOfReach> {
        let mut bytes = self.bytes.clone();
        for pointer in &self.pointers {
            let place = &mut bytes[pointer.offset..pointer.offset + pointer.size.bytes()];
            let mut offset = [0; 8];
            offset[..place.len()].copy_from_slice(place);
            let address = u64::from_le_bytes(offset).checked_add(tables).ok_or(OutOfReach(tables))?;
            if place.len() == 4 && address > u64::from(u32::MAX) {
                return Err(OutOfReach(tables));
            }
            place.copy_from_slice(&address.to_le_bytes()[..place.len()]);
        }
        for checksum in &self.checksums {
            let sum = bytes[checksum.range.clone()].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            bytes[checksum.offset] = bytes[checksum.offset].wrapping_sub(sum);
        }
        Ok(bytes)
    }
}

/// All tables of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The tables, one behind the other, with the XSDT.
    pub tables: Blob,
    /// The RSDP, which stands apart.
    pub rsdp: Blob,
    /// Where each table is in the blob, in order.
    pub parts: Vec<Range<usize>>,
}

impl Linked {
    /// The bytes of the tables at `tables`, and of the RSDP.
    ///
    /// # Errors
    /// If 32-bit pointers don't reach there.
    pub fn place(&self, tables: u64) -> Result<(Vec<u8>, Vec<u8>), OutOfReach> {
        Ok((self.tables.place(tables)?, self.rsdp.place(tables)?))
    }
}

/// Lays `tables` behind each other, with an XSDT that lists all but DSDT and FACS, and an RSDP.
///
/// # Panics
/// If a table points to one that is not there, or has a 32-bit pointer and the tables have 4 GiB: both are the
/// builder's mistakes.
pub fn link(mut tables: Vec<Table>) -> Linked {
    let listed: Vec<usize> =
        (0..tables.len()).filter(|&i| !tables[i].is_facs && tables[i].signature() != *b"DSDT").collect();
    tables.push(Table::new(*b"XSDT", 1, &vec![0; listed.len() * 8]));

    let mut parts = Vec::with_capacity(tables.len());
    let mut end = 0usize;
    for table in &tables {
        let start = end.next_multiple_of(ALIGNMENT);
        end = start + table.bytes.len();
        parts.push(start..end);
    }
    let xsdt = parts[tables.len() - 1].start;
    let mut blob = Blob { bytes: vec![0; end], pointers: Vec::new(), checksums: Vec::new() };
    for (table, part) in tables.iter().zip(&parts) {
        blob.bytes[part.clone()].copy_from_slice(&table.bytes);
        for reference in &table.references {
            let to = tables.iter().position(|table| table.signature() == reference.to);
            let to = parts[to.expect("the table that a pointer names is there")].start;
            blob.point(part.start + reference.offset, reference.size, to);
        }
        if !table.is_facs {
            blob.checksums.push(Checksum { offset: part.start + CHECKSUM_OFFSET, range: part.clone() });
        }
    }
    for (slot, table) in listed.into_iter().enumerate() {
        blob.point(xsdt + HEADER_SIZE + slot * 8, PointerSize::Eight, parts[table].start);
    }
    Linked { tables: blob, rsdp: rsdp(xsdt), parts }
}

impl Blob {
    fn point(&mut self, offset: usize, size: PointerSize, to: usize) {
        let value = (to as u64).to_le_bytes();
        self.bytes[offset..offset + size.bytes()].copy_from_slice(&value[..size.bytes()]);
        self.pointers.push(Pointer { offset, size });
    }
}

fn rsdp(xsdt: usize) -> Blob {
    const CHECKSUM: usize = 8;
    const REVISION_1: usize = 20;
    const XSDT: usize = 24;
    const EXTENDED_CHECKSUM: usize = 32;
    let mut bytes = Rsdp::new(OEM_ID, 0).as_bytes().to_vec();
    (bytes[CHECKSUM], bytes[EXTENDED_CHECKSUM]) = (0, 0);
    let checksums = vec![
        Checksum { offset: CHECKSUM, range: 0..REVISION_1 },
        Checksum { offset: EXTENDED_CHECKSUM, range: 0..bytes.len() },
    ];
    let mut blob = Blob { bytes, pointers: Vec::new(), checksums };
    blob.point(XSDT, PointerSize::Eight, xsdt);
    blob
}

/// The differentiated system description table, to which devices add what describes them.
#[derive(Clone, Debug, Default)]
pub struct Dsdt {
    root: Vec<u8>,
    system_bus: Vec<u8>,
}

impl Dsdt {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `object` to the root of the namespace.
    pub fn root(&mut self, object: &dyn Aml) -> &mut Self {
        object.to_aml_bytes(&mut self.root);
        self
    }

    /// Adds `device` to the system bus, `\_SB`.
    pub fn device(&mut self, device: &dyn Aml) -> &mut Self {
        device.to_aml_bytes(&mut self.system_bus);
        self
    }

    /// The table.
    pub fn table(&self) -> Table {
        let mut body = self.root.clone();
        body.extend(aml::Scope::raw("\\_SB_".into(), self.system_bus.clone()));
        Table::new(*b"DSDT", 2, &body)
    }
}

/// AML that is at hand already.
pub struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

#[cfg(test)]
#[path = "iasl_test.rs"]
pub(crate) mod iasl;
#[cfg(test)]
#[path = "acpi_test.rs"]
mod test;
