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

/// A power button that is signalled by an interrupt of a generic event device, for machines without a PM block.
#[derive(Clone, Copy, Debug)]
pub struct EventPowerButton {
    /// The interrupt that says it was pressed.
    pub line: LineDescription,
}

impl Aml for EventPowerButton {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        /// Notification that a power button was pressed.
        const PRESSED: u8 = 0x80;
        device(sink, "PWRB", &EISAName::new("PNP0C0C"), None, vec![]);
        let (id, uid) = (name("_HID", &"ACPI0013"), name("_UID", &0u8));
        let resources = name("_CRS", &ResourceTemplate::new(vec![&interrupt(self.line)]));
        let button = Path::new("\\_SB_.PWRB");
        let notify = Notify::new(&button, &PRESSED);
        let pressed = Equal::new(&Arg(0), &self.line.number);
        let when = If::new(&pressed, vec![&notify]);
        let event = Method::new("_EVT".into(), 1, true, vec![&when]);
        Device::new("GED_".into(), vec![&id, &uid, &resources, &event]).to_aml_bytes(sink);
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
