//! PCI's interrupts for who uses the PIC: link devices over the routing registers of ICH9's LPC bridge (ACPI 6.5 sections 5.8.1, 6.2.13 and 6.2.14;
//! Intel 316972 sections 13.1.24 to 13.1.27).
//!
//! With the APICs in use they are not there (`_STA` is 0), so that nobody looks at them or disables what firmware has routed.

use acpi_tables::aml::{
    And, Arg, CreateDWordField, Device, EISAName, Else, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, LessThan, Local, Method, Name, OpRegion, OpRegionSpace, Or, PackageBuilder, Path,
    ResourceTemplate, Return, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::Raw;
use super::pci::{DEVICES, PINS};

#[cfg(test)]
#[path = "pci_links_test.rs"]
mod test;

/// PIRQ A to H.
const PIRQS: u32 = 8;
/// PIRQA_ROUT, which those to D follow; after a doubleword those of E to H do.
const ROUTES: u8 = 0x60;
const ROUTES_SIZE: u8 = 12;
/// A PIRQ is not routed from here on (bit 7).
const NOT_ROUTED: u8 = 0x80;
const ROUTE: u8 = 0x0f;
/// Interrupts that nothing else has.
const POSSIBLE: [u32; 3] = [5, 10, 11];
/// `_STA`: present and works, enabled.
const PRESENT: u8 = 1 << 0 | 1 << 3;
const ENABLED: u8 = 1 << 1;
/// What `_PIC` was told: 1 for APICs.
const MODE: &str = "\\PICF";

/// PIRQ `n`'s letter.
fn letter(pirq: u32) -> char {
    char::from(b'A' + (pirq % PIRQS) as u8)
}

fn link_name(pirq: u32) -> Path {
    Path::new(&format!("LNK{}", letter(pirq)))
}

/// An extended interrupt descriptor (ACPI 6.5 section 6.4.3.6): a consumer's level, active low, shared; one of these.
fn interrupts(numbers: &[u32]) -> Raw {
    const FLAGS: u8 = 1 << 0 | 1 << 2 | 1 << 3;
    let mut bytes = vec![0x89];
    bytes.extend((2 + 4 * numbers.len() as u16).to_le_bytes());
    bytes.extend([FLAGS, numbers.len() as u8]);
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    Raw(bytes)
}

/// Where its first number is.
const NUMBER: u8 = 5;

/// The link device of a PIRQ.
fn link(pirq: u32, sink: &mut dyn AmlSink) {
    let register = Path::new(&format!("PRQ{}", letter(pirq)));
    let (number, buffer, mode) = (Path::new("IRQN"), Local(0), Path::new(MODE));
    let id = Name::new("_HID".into(), &EISAName::new("PNP0C0F"));
    let uid = Name::new("_UID".into(), &pirq);
    let possible = interrupts(&POSSIBLE);
    let possible = Name::new("_PRS".into(), &ResourceTemplate::new(vec![&possible]));

    let absent = Return::new(&ZERO);
    let with_apics = If::new(&mode, vec![&absent]);
    let is_routed = LessThan::new(&register, &NOT_ROUTED);
    let present = Return::new(&PRESENT);
    let enabled = PRESENT | ENABLED;
    let enabled = Return::new(&enabled);
    let if_routed = If::new(&is_routed, vec![&enabled]);
    let status = Method::new("_STA".into(), 0, false, vec![&with_apics, &if_routed, &present]);

    let disabled = Or::new(&register, &register, &NOT_ROUTED);
    let disable = Method::new("_DIS".into(), 0, false, vec![&disabled]);

    let none = interrupts(&[0]);
    let none = ResourceTemplate::new(vec![&none]);
    let store = Store::new(&buffer, &none);
    let field = CreateDWordField::new(&number, &buffer, &NUMBER);
    let route = And::new(&number, &register, &ROUTE);
    let if_route = If::new(&is_routed, vec![&route]);
    let result = Return::new(&buffer);
    // The field is an object of one call.
    let current = Method::new("_CRS".into(), 0, true, vec![&store, &field, &if_route, &result]);

    let argument = Arg(0);
    let field = CreateDWordField::new(&number, &argument, &NUMBER);
    let route = Store::new(&register, &number);
    let set = Method::new("_SRS".into(), 1, true, vec![&field, &route]);
    Device::new(link_name(pirq), vec![&id, &uid, &possible, &status, &disable, &current, &set]).to_aml_bytes(sink);
}

/// The LPC bridge with its registers, and the link devices.
pub(super) fn links(lpc_bridge: u8, sink: &mut dyn AmlSink) {
    let address = Name::new("_ADR".into(), &(u32::from(lpc_bridge) << 16));
    let registers = OpRegion::new("PIRQ".into(), OpRegionSpace::PCIConfig, &ROUTES, &ROUTES_SIZE);
    Device::new("LPCB".into(), vec![&address, &registers]).to_aml_bytes(sink);
    let register = |pirq: u32| FieldEntry::Named([b'P', b'R', b'Q', letter(pirq) as u8], 8);
    let (low, high) = ((0..4).map(register), (4..PIRQS).map(register));
    let entries = low.chain([FieldEntry::Reserved(32)]).chain(high).collect();
    let (access, update) = (FieldAccessType::Byte, FieldUpdateRule::Preserve);
    Field::new("LPCB.PIRQ".into(), access, FieldLockRule::NoLock, update, entries).to_aml_bytes(sink);
    (0..PIRQS).for_each(|pirq| link(pirq, sink));
}

/// `_PRT`: what `PRTA` holds with the APICs in use; else each pin of each device has the link device of its line among `lines`.
pub(super) fn routing(lines: u32, sink: &mut dyn AmlSink) {
    let mut table = PackageBuilder::new();
    for device in 0..DEVICES {
        for pin in 0..PINS {
            let mut entry = PackageBuilder::new();
            entry.add_element(&(device << 16 | 0xffff));
            entry.add_element(&pin);
            entry.add_element(&link_name((device + pin) % lines));
            entry.add_element(&0u8);
            table.add_element(&entry);
        }
    }
    let (mode, with_apics, with_pic) = (Path::new(MODE), Path::new("PRTA"), Path::new("PRTP"));
    Name::new("PRTP".into(), &table).to_aml_bytes(sink);
    let (with_apics, with_pic) = (Return::new(&with_apics), Return::new(&with_pic));
    let (if_apics, otherwise) = (If::new(&mode, vec![&with_apics]), Else::new(vec![&with_pic]));
    Method::new("_PRT".into(), 0, false, vec![&if_apics, &otherwise]).to_aml_bytes(sink);
}

/// `\_PIC`, by which a kernel says what it uses. One that does not uses the PIC.
pub(super) fn mode(sink: &mut dyn AmlSink) {
    let (mode, told) = (Path::new(MODE), Arg(0));
    Name::new(MODE.into(), &ZERO).to_aml_bytes(sink);
    let note = Store::new(&mode, &told);
    Method::new("\\_PIC".into(), 1, false, vec![&note]).to_aml_bytes(sink);
}
