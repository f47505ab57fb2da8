//! Capabilities (PCI Local Bus 3.0 section 6.7).

pub(crate) mod express;
pub(crate) mod msi;
pub(crate) mod msix;
pub(crate) mod power;
pub(crate) mod subsystem;
pub(crate) mod vendor;

/// Capability ids (PCI Code and ID Assignment Specification, section 2).
pub(crate) mod id {
    pub(crate) const POWER_MANAGEMENT: u8 = 0x01;
    pub(crate) const MSI: u8 = 0x05;
    pub(crate) const SUBSYSTEM: u8 = 0x0d;
    pub(crate) const EXPRESS: u8 = 0x10;
    pub(crate) const MSIX: u8 = 0x11;
}
