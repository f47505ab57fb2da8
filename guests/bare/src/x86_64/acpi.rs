//! ACPI tables (ACPI 6.5, chapter 5).

use super::memory::{bytes, read};
use crate::{problem, say};

/// A table longer than this is not believed.
const MAX_TABLE: u32 = 1 << 20;
const HEADER: u64 = 36;

/// Where the tables are.
pub struct Acpi {
    rsdp: u64,
    root: u64,
    /// The size of the root table's entries: 8 bytes in an XSDT, 4 in an RSDT.
    entry: u64,
}

/// One table.
#[derive(Clone, Copy)]
pub struct Table {
    /// Where it lies.
    pub address: u64,
    /// Its length in bytes.
    pub length: u32,
}

/// What the MADT says of one thing.
pub enum Controller {
    /// A CPU that is enabled.
    Cpu {
        /// The APIC id.
        id: u32,
        /// Whether an x2APIC structure says so.
        x2apic: bool,
    },
    /// An I/O APIC.
    IoApic {
        /// Its id.
        id: u8,
        /// Where its registers lie.
        address: u64,
        /// The GSI of its first input.
        gsi: u32,
    },
    /// An ISA interrupt that is not the GSI of the same number.
    Override {
        /// The ISA interrupt.
        isa: u8,
        /// The GSI.
        gsi: u32,
        /// Polarity and trigger.
        flags: u16,
    },
    /// Something else.
    Other,
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
}

impl Table {
    fn at(address: u64) -> Option<Self> {
        let length = read::<u32>(address + 4);
        (HEADER as u32..=MAX_TABLE).contains(&length).then_some(Self { address, length })
    }

    fn bytes(&self) -> &'static [u8] {
        bytes(self.address, self.length.into())
    }

    /// The value at `offset`; `None` if the table ends before.
    pub fn get<T: Copy>(&self, offset: u64) -> Option<T> {
        (offset + size_of::<T>() as u64 <= self.length.into()).then(|| read(self.address + offset))
    }
}

impl Acpi {
    /// The tables whose RSDP lies at `rsdp`; if that is 0, it is looked for where a PC's firmware leaves it.
    pub fn at(rsdp: u64) -> Self {
        let found = |&address: &u64| read::<[u8; 8]>(address) == *b"RSD PTR ";
        let rsdp = if rsdp == 0 { (0xe0000..0x10_0000).step_by(16).find(found).unwrap_or(0) } else { rsdp };
        if rsdp == 0 || !found(&rsdp) {
            return Self { rsdp: 0, root: 0, entry: 8 };
        }
        let revision: u8 = read(rsdp + 15);
        let (root, entry) = if revision >= 2 { (read(rsdp + 24), 8) } else { (read::<u32>(rsdp + 16).into(), 4) };
        Self { rsdp, root, entry }
    }

    /// All tables but the root table and the DSDT.
    fn tables(&self) -> impl Iterator<Item = Table> {
        let (root, entry) = (self.root, self.entry);
        let length = if root == 0 { 0 } else { Table::at(root).map_or(0, |root| root.length.into()) };
        let entries = (HEADER..length).step_by(entry as usize).filter(move |offset| offset + entry <= length);
        entries.filter_map(move |offset| {
            Table::at(if entry == 8 { read(root + offset) } else { read::<u32>(root + offset).into() })
        })
    }

    /// The table with this signature.
    pub fn find(&self, signature: &[u8; 4]) -> Option<Table> {
        self.tables().find(|table| read::<[u8; 4]>(table.address) == *signature)
    }

    /// The DSDT.
    pub fn dsdt(&self) -> Option<Table> {
        let fadt = self.find(b"FACP")?;
        let address =
            fadt.get::<u64>(140).filter(|&address| address != 0).or_else(|| fadt.get::<u32>(40).map(u64::from));
        address.filter(|&address| address != 0).and_then(Table::at)
    }

    /// The interrupt controllers of the MADT.
    pub fn controllers(&self) -> impl Iterator<Item = Controller> {
        const ENABLED: u32 = 1;
        let madt = self.find(b"APIC");
        let mut offset = 44;
        core::iter::from_fn(move || {
            let madt = madt?;
            let [kind, length] = madt.get::<[u8; 2]>(offset)?;
            let at = offset;
            offset += u64::from(length).max(2);
            Some(match kind {
                0 if madt.get::<u32>(at + 4)? & ENABLED != 0 => {
                    Controller::Cpu { id: madt.get::<u8>(at + 3)?.into(), x2apic: false }
                }
                9 if madt.get::<u32>(at + 8)? & ENABLED != 0 => Controller::Cpu { id: madt.get(at + 4)?, x2apic: true },
                1 => Controller::IoApic {
                    id: madt.get(at + 2)?,
                    address: madt.get::<u32>(at + 4)?.into(),
                    gsi: madt.get(at + 8)?,
                },
                2 => Controller::Override { isa: madt.get(at + 3)?, gsi: madt.get(at + 4)?, flags: madt.get(at + 8)? },
                _ => Controller::Other,
            })
        })
    }

    /// Where the local APICs' registers lie.
    pub fn local_apic(&self) -> u64 {
        self.find(b"APIC").and_then(|madt| madt.get::<u32>(36)).map_or(0xfee0_0000, u64::from)
    }

    /// A port of the FADT: by its generic address structure, or the older field.
    pub fn port(&self, generic: u64, older: u64) -> Option<u16> {
        const IN_PORTS: u8 = 1;
        let fadt = self.find(b"FACP")?;
        let generic =
            fadt.get::<u64>(generic + 4).filter(|&port| port != 0 && fadt.get::<u8>(generic) == Some(IN_PORTS));
        generic
            .or_else(|| fadt.get::<u32>(older).map(u64::from))
            .and_then(|port| u16::try_from(port).ok())
            .filter(|&port| port != 0)
    }

    /// `SLP_TYP` of the state S5, from the DSDT's `\_S5`.
    pub fn sleep_type(&self) -> Option<u8> {
        const PACKAGE: u8 = 0x12;
        const BYTE: u8 = 0x0a;
        let code = self.dsdt()?.bytes();
        let place = code.windows(5).position(|window| window == [b'_', b'S', b'5', b'_', PACKAGE])?;
        // Package length in one byte, the number of elements, the first of them.
        match *code.get(place + 7..place + 9)? {
            [BYTE, value] => Some(value),
            [value, _] if value <= 1 => Some(value),
            _ => None,
        }
    }

    /// Say which tables there are, and check each one's checksum.
    pub fn describe(&self) {
        if self.rsdp == 0 {
            problem!("there is no RSDP");
            return;
        }
        let revision: u8 = read(self.rsdp + 15);
        say!("acpi: revision {revision}, {} tables", self.tables().count());
        let length = if revision >= 2 { 36 } else { 20 };
        if sum(bytes(self.rsdp, 20)) != 0 || sum(bytes(self.rsdp, length)) != 0 {
            problem!("the RSDP's checksum is wrong");
        }
        for table in Table::at(self.root).into_iter().chain(self.tables()).chain(self.dsdt()) {
            let signature: [u8; 4] = read(table.address);
            let name = str::from_utf8(&signature).unwrap_or("????");
            let good = sum(table.bytes()) == 0;
            let verdict = if good { "good" } else { "wrong" };
            let version: u8 = read(table.address + 8);
            say!(
                "acpi table: {name} revision {version} at {:#x}, {} bytes, checksum {verdict}",
                table.address,
                table.length
            );
            if !good {
                problem!("{name}'s checksum is wrong");
            }
        }
    }
}
