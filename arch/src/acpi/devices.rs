//! The platform's devices, as they are described in the DSDT.

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package, Path,
    ResourceTemplate,
};
use acpi_tables::{Aml, AmlSink};
use skep_irq::{LineDescription, Polarity, Trigger};

use super::SerialKind;
use crate::layout::AddressRange;

/// Where a device's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// I/O ports.
    Ports(AddressRange),
    /// Memory below 4 GiB.
    Memory(AddressRange),
}

impl Aml for Registers {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        match self {
            Self::Ports(ports) => IO::new(ports.base as u16, ports.base as u16, 1, ports.size as u8).to_aml_bytes(sink),
            // Resource descriptors count whole doublewords at the least.
            Self::Memory(memory) => {
                Memory32Fixed::new(true, memory.base as u32, memory.size as u32).to_aml_bytes(sink);
            }
        }
    }
}

fn interrupt(line: LineDescription) -> Interrupt {
    Interrupt::new(true, line.trigger == Trigger::Edge, line.polarity == Polarity::Low, false, line.number)
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

/// Writes a device with an identity and resources.
fn device(sink: &mut dyn AmlSink, path: &str, id: &dyn Aml, uid: Option<u32>, resources: Vec<&dyn Aml>) {
    let id = name("_HID", id);
    let uid = uid.map(|uid| name("_UID", &uid));
    let resources = (!resources.is_empty()).then(|| name("_CRS", &ResourceTemplate::new(resources)));
    let mut children: Vec<&dyn Aml> = vec![&id];
    children.extend(uid.iter().map(|uid| uid as &dyn Aml));
    children.extend(resources.iter().map(|resources| resources as &dyn Aml));
    Device::new(path.into(), children).to_aml_bytes(sink);
}

/// A serial port, `COMn`.
#[derive(Clone, Copy, Debug)]
pub struct Serial {
    /// What it is.
    pub kind: SerialKind,
    /// Its number: the first is 1.
    pub number: u8,
    /// Its registers.
    pub registers: AddressRange,
    /// Its interrupt.
    pub line: LineDescription,
}

impl Aml for Serial {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path = format!("COM{}", char::from(b'0' + self.number % 10));
        let uid = Some(u32::from(self.number));
        let line = interrupt(self.line);
        match self.kind {
            SerialKind::Ns16550 => {
                device(sink, &path, &EISAName::new("PNP0501"), uid, vec![&Registers::Ports(self.registers), &line]);
            }
            SerialKind::Pl011 => {
                device(sink, &path, &"ARMH0011", uid, vec![&Registers::Memory(self.registers), &line]);
            }
        }
    }
}

/// The CMOS real-time clock.
#[derive(Clone, Copy, Debug)]
pub struct CmosRtc {
    /// Index and data port.
    pub ports: AddressRange,
    /// Its interrupt.
    pub line: LineDescription,
}

impl Aml for CmosRtc {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (ports, line) = (Registers::Ports(self.ports), interrupt(self.line));
        device(sink, "RTC_", &EISAName::new("PNP0B00"), None, vec![&ports, &line]);
    }
}

/// A keyboard and a mouse on an i8042. Where nothing is plugged in, there is nothing to describe: the controller then
/// only resets.
#[derive(Clone, Copy, Debug)]
pub struct I8042 {
    /// Data port; the command port is four further.
    pub data_port: u16,
    /// The keyboard's interrupt.
    pub keyboard: LineDescription,
    /// The mouse's interrupt, if there is one.
    pub mouse: Option<LineDescription>,
}

impl Aml for I8042 {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let port = |port: u16| Registers::Ports(AddressRange::new(u64::from(port), 1));
        let (data, command, line) = (port(self.data_port), port(self.data_port + 4), interrupt(self.keyboard));
        device(sink, "KBD_", &EISAName::new("PNP0303"), None, vec![&data, &command, &line]);
        if let Some(mouse) = self.mouse {
            device(sink, "MOU_", &EISAName::new("PNP0F13"), None, vec![&interrupt(mouse)]);
        }
    }
}

/// pvpanic, by which a guest says that it has crashed.
#[derive(Clone, Copy, Debug)]
pub struct Pvpanic(pub Registers);

impl Aml for Pvpanic {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        device(sink, "PEVT", &"QEMU0001", None, vec![&self.0]);
    }
}

/// fw_cfg.
#[derive(Clone, Copy, Debug)]
pub struct FwCfg(pub Registers);

impl Aml for FwCfg {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        device(sink, "FWCF", &"QEMU0002", None, vec![&self.0]);
    }
}

/// Firmware flash.
#[derive(Clone, Copy, Debug)]
pub struct Flash {
    /// Its number, from 0.
    pub number: u8,
    /// Where it is.
    pub memory: AddressRange,
}

impl Aml for Flash {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path = format!("FLA{}", char::from(b'0' + self.number % 10));
        device(sink, &path, &"LNRO0015", Some(u32::from(self.number)), vec![&Registers::Memory(self.memory)]);
    }
}

/// The processors, whose unique ids are their indices.
#[derive(Clone, Copy, Debug)]
pub struct Processors {
    /// How many.
    pub count: u32,
}

impl Processors {
    /// Name of processor `index` in its container: a letter and three digits to base 36.
    pub fn name(index: u32) -> String {
        let digit = |value: u32| char::from_digit(value % 36, 36).unwrap_or('0').to_ascii_uppercase();
        let letter = char::from(b'C' + (index / 36u32.pow(3) % 24) as u8);
        [letter, digit(index / 36 / 36), digit(index / 36), digit(index)].iter().collect()
    }
}

impl Aml for Processors {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // A scope of their own, so that no name clashes with a device's.
        let mut container = Vec::new();
        name("_HID", &"ACPI0010").to_aml_bytes(&mut container);
        name("_CID", &EISAName::new("PNP0A05")).to_aml_bytes(&mut container);
        for index in 0..self.count {
            device(&mut container, &Self::name(index), &"ACPI0007", Some(index), vec![]);
        }
        Device::new("CPUS".into(), vec![&super::Raw(container)]).to_aml_bytes(sink);
    }
}

/// Something that an interrupt of a generic event device tells of.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The interrupt.
    pub line: LineDescription,
    /// The device below `\\_SB` that is told.
    pub device: &'static str,
}

/// Generic event device, for machines without a PM block, with a power button that is signalled by the first of its interrupts.
#[derive(Clone, Debug)]
pub struct GenericEvents {
    /// The interrupts; the power button's first.
    pub events: Vec<Event>,
}

impl GenericEvents {
    /// The name of the power button.
    pub const POWER_BUTTON: &'static str = "\\_SB_.PWRB";
}

/// What the device of an event is told: a power button was pressed, a generation id has changed.
const CHANGED: u8 = 0x80;

impl Aml for GenericEvents {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        device(sink, "PWRB", &EISAName::new("PNP0C0C"), None, vec![]);
        let (id, uid) = (name("_HID", &"ACPI0013"), name("_UID", &0u8));
        let lines: Vec<_> = self.events.iter().map(|event| interrupt(event.line)).collect();
        let resources = name("_CRS", &ResourceTemplate::new(lines.iter().map(|line| line as &dyn Aml).collect()));
        let mut body = Vec::new();
        for event in &self.events {
            let target = Path::new(event.device);
            let notify = Notify::new(&target, &CHANGED);
            let is_it = Equal::new(&Arg(0), &event.line.number);
            If::new(&is_it, vec![&notify]).to_aml_bytes(&mut body);
        }
        let body = super::Raw(body);
        let event = Method::new("_EVT".into(), 1, true, vec![&body]);
        Device::new("GED_".into(), vec![&id, &uid, &resources, &event]).to_aml_bytes(sink);
    }
}

/// The VM generation id (Microsoft's "Virtual Machine Generation ID"), which a guest finds changed when it goes on from a copy of its past.
#[derive(Clone, Copy, Debug)]
pub struct Generation;

impl Generation {
    /// The device's name.
    pub const NAME: &'static str = "\\_SB_.VGEN";
    /// Stands for the id's address until it is searched for.
    const ADDRESS: u32 = 0x4449_4756;

    /// Finds the 32-bit pointer to the id's page in tables that have this device, and has it hold the id's offset there: what firmware adds the page's
    /// address to.
    #[must_use]
    pub fn find_pointer(tables: &mut [u8]) -> Option<usize> {
        let at = tables.windows(4).position(|window| window == Self::ADDRESS.to_le_bytes())?;
        let offset = super::loader::GENERATION_OFFSET as u32;
        tables.get_mut(at..at + 4)?.copy_from_slice(&offset.to_le_bytes());
        Some(at)
    }
}

impl Aml for Generation {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (id, compatible) = (name("_HID", &"SKEP0001"), name("_CID", &"VM_Gen_Counter"));
        let description = name("_DDN", &"VM_Gen_Counter");
        let address = name("ADDR", &Package::new(vec![&Self::ADDRESS, &0u8]));
        Device::new("VGEN".into(), vec![&id, &compatible, &description, &address]).to_aml_bytes(sink);
    }
}

/// A general-purpose event that tells [`Generation`] of a change, on machines with a PM block.
#[derive(Clone, Copy, Debug)]
pub struct GenerationEvent {
    /// The event's number, 0 to 15.
    pub number: u8,
}

impl Aml for GenerationEvent {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let target = Path::new(Generation::NAME);
        let notify = Notify::new(&target, &CHANGED);
        let path = format!("\\_GPE._E{:02X}", self.number);
        Method::new(path.as_str().into(), 0, false, vec![&notify]).to_aml_bytes(sink);
    }
}

/// A system sleep state, `\_Sn`: the values that PM1 control registers take.
#[derive(Clone, Copy, Debug)]
pub struct SleepState {
    /// Which: 5 is power-off.
    pub state: u8,
    /// SLP_TYP.
    pub sleep_type: u8,
}

impl Aml for SleepState {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let path = format!("\\_S{}_", char::from(b'0' + self.state % 10));
        name(&path, &Package::new(vec![&self.sleep_type, &self.sleep_type, &0u8, &0u8])).to_aml_bytes(sink);
    }
}
