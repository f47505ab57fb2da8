//! Where devices have their ports.

/// A range of ports, as a device asks the port space for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub base: u16,
    /// How many.
    pub size: u16,
    /// The region number that the device knows the range by.
    pub region: u32,
}
