//! Tables that both machines have.

use acpi_tables::fadt::FADTBuilder;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::{Aml, AmlSink};
use skep_irq::LineDescription;

use super::{HEADER_SIZE, Table};
use crate::layout::AddressRange;

/// A serial port's programming interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SerialKind {
    /// 16550 at I/O ports.
    Ns16550,
    /// Arm PL011 in memory.
    Pl011,
}

impl SerialKind {
    /// As SPCR and DBG2 number it.
    pub(crate) fn interface(self) -> u8 {
        match self {
            Self::Ns16550 => 0,
            Self::Pl011 => 3,
        }
    }

    /// Its registers as a generic address.
    pub(crate) fn address(self, registers: AddressRange) -> GAS {
        let (space, width, access) = match self {
            Self::Ns16550 => (AddressSpace::SystemIo, 8, AccessSize::ByteAccess),
            Self::Pl011 => (AddressSpace::SystemMemory, 32, AccessSize::DwordAccess),
        };
        GAS::new(space, width, 0, access, registers.base)
    }
}

/// The serial port that is the console.
#[derive(Clone, Copy, Debug)]
pub struct SerialConsole {
    /// What it is.
    pub kind: SerialKind,
    /// Its registers: ports or memory.
    pub registers: AddressRange,
    /// Its interrupt.
    pub line: LineDescription,
}

/// Serial Port Console Redirection table, revision 2: the console at 115200 baud, 8 bits, no parity, one stop bit.
pub fn spcr(console: &SerialConsole) -> Table {
    const INTERRUPT_PIC: u8 = 1 << 0;
    const INTERRUPT_IOAPIC: u8 = 1 << 1;
    const INTERRUPT_GIC: u8 = 1 << 3;
    const BAUD_115200: u8 = 7;
    const ONE_STOP_BIT: u8 = 1;
    const ANSI: u8 = 3;
    const NO_PCI_DEVICE: u32 = u32::MAX;
    let (interrupts, irq) = match console.kind {
        SerialKind::Ns16550 => (INTERRUPT_PIC | INTERRUPT_IOAPIC, console.line.number as u8),
        SerialKind::Pl011 => (INTERRUPT_GIC, 0),
    };
    let mut body = vec![console.kind.interface(), 0, 0, 0];
    console.kind.address(console.registers).to_aml_bytes(&mut body);
    body.vec(&[interrupts, irq]);
    body.dword(console.line.number);
    body.vec(&[BAUD_115200, 0, ONE_STOP_BIT, 0, ANSI, 0]);
    body.dword(NO_PCI_DEVICE);
    body.vec(&[0; 12]);
    Table::new(*b"SPCR", 2, &body)
}

/// Memory-mapped configuration space of a PCI segment's buses 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// The segment group.
    pub segment: u16,
    /// Where it is.
    pub region: AddressRange,
}

/// PCI Express memory-mapped configuration space table.
pub fn mcfg(segments: &[Ecam]) -> Table {
    const BUS_SIZE: u64 = 1 << 20;
    let mut body = vec![0; 8];
    for ecam in segments {
        body.qword(ecam.region.base);
        body.word(ecam.segment);
        body.byte(0);
        body.byte((ecam.region.size / BUS_SIZE).saturating_sub(1).min(255) as u8);
        body.dword(0);
    }
    Table::new(*b"MCFG", 1, &body)
}

/// Where the FADT's 64-bit pointer to the DSDT is.
pub(crate) const FADT_X_DSDT: usize = 140;

/// A FADT of ACPI 6.3, with everything zero.
pub(crate) fn new_fadt() -> FADTBuilder {
    let mut fadt = FADTBuilder::new([0; 6], [0; 8], 0);
    fadt.fadt_minor_version = 3;
    fadt
}

/// The table, with the header that all of skep's have.
pub(crate) fn finish_fadt(fadt: FADTBuilder) -> Table {
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    Table::new(*b"FACP", bytes[8], &bytes[HEADER_SIZE..])
}
