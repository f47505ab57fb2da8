//! The PCI host bridge, as it is described in the DSDT (PCI Firmware Specification 3.3, chapters 3 and 4).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Local,
    Method, Name, NotEqual, Or, PackageBuilder, Path, ResourceTemplate, Return, Store, Uuid,
};
use acpi_tables::{Aml, AmlSink};
use skep_irq::LineDescription;

use super::{Raw, pci_links};
use crate::layout::AddressRange;

/// Devices of bus 0, and pins of each.
pub(super) const DEVICES: u32 = 32;
pub(super) const PINS: u32 = 4;

/// The host bridge of segment 0, with all that is below it: a kernel looks for the devices itself.
#[derive(Clone, Debug)]
pub struct PciHost<'a> {
    /// Memory-mapped configuration space.
    pub ecam: AddressRange,
    /// The ports of configuration mechanism 1, on x86.
    pub config_ports: Option<AddressRange>,
    /// What the bridge forwards of PCI's I/O space: I/O BARs, and on x86 what stands behind the LPC bridge.
    pub io: &'a [AddressRange],
    /// What is added to them where I/O space is a window in memory; 0 on x86.
    pub io_offset: u64,
    /// Addresses of memory BARs below 4 GiB.
    pub memory32: &'a [AddressRange],
    /// Addresses of memory BARs above.
    pub memory64: AddressRange,
    /// The lines that interrupt pins share: device `d`'s pin `p` is on line `(d + p) % lines`.
    pub lines: &'a [LineDescription],
    /// Device number of an LPC bridge of ICH9, on x86: its registers route the lines to the PIC as well.
    pub lpc_bridge: Option<u8>,
}

fn last(range: AddressRange) -> u64 {
    range.end() - 1
}

impl PciHost<'_> {
    /// Buses and windows.
    fn resources(&self) -> Name {
        use AddressSpaceCacheable::{Cacheable, NotCacheable};
        let buses = AddressSpace::new_bus_number(0u16, (self.ecam.size >> 20).saturating_sub(1).min(255) as u16);
        let offset = (self.io_offset != 0).then_some(self.io_offset as u32);
        let config = self.config_ports.map(|ports| IO::new(ports.base as u16, ports.base as u16, 1, ports.size as u8));
        let io: Vec<_> = self
            .io
            .iter()
            .map(|window| AddressSpace::new_io(window.base as u32, last(*window) as u32, offset))
            .collect();
        let memory32: Vec<_> = self
            .memory32
            .iter()
            .map(|window| AddressSpace::new_memory(NotCacheable, true, window.base as u32, last(*window) as u32, None))
            .collect();
        let memory64 = AddressSpace::new_memory(Cacheable, true, self.memory64.base, last(self.memory64), None);
        let mut all: Vec<&dyn Aml> = vec![&buses];
        all.extend(config.iter().map(|ports| ports as &dyn Aml));
        all.extend(io.iter().map(|window| window as &dyn Aml));
        all.extend(memory32.iter().map(|window| window as &dyn Aml));
        all.push(&memory64);
        Name::new("_CRS".into(), &ResourceTemplate::new(all))
    }

    /// Interrupt routing, as `name`: each pin of each device goes to a line that is not configurable.
    fn routing(&self, name: &str) -> Name {
        let mut table = PackageBuilder::new();
        for device in 0..DEVICES {
            for pin in 0..PINS {
                let Some(line) = self.lines.get((device + pin) as usize % self.lines.len()) else { continue };
                let mut entry = PackageBuilder::new();
                // All functions of the device.
                entry.add_element(&(device << 16 | 0xffff));
                entry.add_element(&pin);
                entry.add_element(&0u8);
                entry.add_element(&line.number);
                table.add_element(&entry);
            }
        }
        Name::new(name.into(), &table)
    }
}

impl Aml for PciHost<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let mut children = Vec::new();
        Name::new("_HID".into(), &EISAName::new("PNP0A08")).to_aml_bytes(&mut children);
        Name::new("_CID".into(), &EISAName::new("PNP0A03")).to_aml_bytes(&mut children);
        for (name, value) in [("_UID", 0u8), ("_SEG", 0), ("_BBN", 0), ("_CCA", 1)] {
            Name::new(name.into(), &value).to_aml_bytes(&mut children);
        }
        self.resources().to_aml_bytes(&mut children);
        match self.lpc_bridge {
            _ if self.lines.is_empty() => {}
            None => self.routing("_PRT").to_aml_bytes(&mut children),
            Some(bridge) => {
                pci_links::mode(sink);
                pci_links::links(bridge, &mut children);
                self.routing("PRTA").to_aml_bytes(&mut children);
                pci_links::routing(self.lines.len() as u32, &mut children);
            }
        }
        control(&mut children);
        Device::new("PCI0".into(), vec![&Raw(children)]).to_aml_bytes(sink);
        reserved(self.ecam, sink);
    }
}

/// Keeps what is no PCI device's for the board: kernels use ECAM only where it is.
fn reserved(ecam: AddressRange, sink: &mut dyn AmlSink) {
    let id = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let uid = Name::new("_UID".into(), &1u8);
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, ecam.base, last(ecam), None);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory]));
    Device::new("PRES".into(), vec![&id, &uid, &resources]).to_aml_bytes(sink);
}

/// `_OSC`: the operating system may have native hot-plug, power management events and the PCI Express capability. What is not
/// there (SHPC hot-plug, AER, LTR) stays with the platform.
fn control(sink: &mut dyn AmlSink) {
    const UNRECOGNISED_UUID: u8 = 1 << 2;
    const UNRECOGNISED_REVISION: u8 = 1 << 3;
    const CAPABILITIES_MASKED: u8 = 1 << 4;
    /// Native hot-plug, power management events, the capability's structure.
    const GRANTED: u8 = 1 << 0 | 1 << 2 | 1 << 4;
    const REVISION: u8 = 1;

    let uuid = Uuid::new("33db4d5b-1ff7-401c-9657-7441c03dd766");
    let (status, asked, allowed) = (Path::new("CDW1"), Path::new("CDW3"), Local(0));
    let (buffer, nothing) = (Arg(3), acpi_tables::aml::ZERO);

    let status_field = CreateDWordField::new(&status, &buffer, &nothing);
    let asked_field = CreateDWordField::new(&asked, &buffer, &8u8);
    let allow = And::new(&allowed, &asked, &GRANTED);
    let other_revision = NotEqual::new(&Arg(1), &REVISION);
    let say_revision = Or::new(&status, &status, &UNRECOGNISED_REVISION);
    let if_revision = If::new(&other_revision, vec![&say_revision]);
    let fewer = NotEqual::new(&asked, &allowed);
    let say_fewer = Or::new(&status, &status, &CAPABILITIES_MASKED);
    let if_fewer = If::new(&fewer, vec![&say_fewer]);
    let answer = Store::new(&asked, &allowed);
    let known = Equal::new(&Arg(0), &uuid);
    let if_known = If::new(&known, vec![&asked_field, &allow, &if_revision, &if_fewer, &answer]);
    let say_unknown = Or::new(&status, &status, &UNRECOGNISED_UUID);
    let otherwise = Else::new(vec![&say_unknown]);
    let result = Return::new(&buffer);
    // The fields are objects of one call.
    Method::new("_OSC".into(), 4, true, vec![&status_field, &if_known, &otherwise, &result]).to_aml_bytes(sink);
}

#[cfg(test)]
#[path = "pci_test.rs"]
pub(crate) mod test;
