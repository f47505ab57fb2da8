//! Where a function is: as the bus numbers it, and as a configuration names it.

use std::fmt;
use std::str::FromStr;

use skep_irq::RequesterId;

use crate::PciError;

/// Devices of a bus.
pub const DEVICES: u8 = 32;

/// A function's address in configuration space (PCI Local Bus 3.0 section 3.2.2.3). Bus numbers are the guest's to give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Address {
    /// Function 0 of a device.
    #[must_use]
    pub const fn new(bus: u8, device: u8) -> Self {
        Self { bus, device: device & 0x1f, function: 0 }
    }

    /// The address in bits 15:0 of a requester id, which is bits 27:12 of an ECAM offset and bits 23:8 of CONFIG_ADDRESS.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self { bus: (bits >> 8) as u8, device: (bits >> 3) as u8 & 0x1f, function: bits as u8 & 7 }
    }

    /// The function as a requester, in segment 0.
    #[must_use]
    pub fn requester(self) -> RequesterId {
        RequesterId(u32::from(self.bus) << 8 | u32::from(self.device) << 3 | u32::from(self.function))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A place that a device can be put into, for ever the same whatever numbers a guest gives to buses. Written `root:5` or `port:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PciPlace {
    /// The device number on bus 0: an endpoint integrated into the root complex.
    Root(u8),
    /// Behind the root port of that number (the first is 0): device 0 of its bus, which can be plugged and unplugged.
    Port(u8),
}

impl fmt::Display for PciPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(device) => write!(f, "root:{device}"),
            Self::Port(port) => write!(f, "port:{port}"),
        }
    }
}

impl FromStr for PciPlace {
    type Err = PciError;

    fn from_str(text: &str) -> Result<Self, PciError> {
        let unknown = || PciError::UnknownPlace(text.to_owned());
        let (kind, number) = text.split_once(':').ok_or_else(unknown)?;
        let number = number.parse().map_err(|_| unknown())?;
        match kind {
            "root" if number < DEVICES => Ok(Self::Root(number)),
            "port" => Ok(Self::Port(number)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(test)]
#[path = "address_test.rs"]
mod test;
