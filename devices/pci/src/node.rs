//! What the root complex asks of a function.

use skep_bus::Action;

use crate::bar::Decoded;

/// What a function learns of the buses above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Upstream {
    /// The bus that it is on.
    pub bus: u8,
    /// Whether what it writes to memory gets there: the bridges above master their buses.
    pub bus_master: bool,
}

impl Upstream {
    /// Bus 0.
    pub const ROOT: Self = Self { bus: 0, bus_master: true };
}

/// A function as the root complex sees it. `offset` is that of a doubleword in configuration space, a multiple of 4 below 4096.
pub trait ConfigFunction: Send + Sync {
    /// A doubleword.
    fn config_read(&self, offset: u16) -> u32;

    /// A write of the bits `lanes` of a doubleword: whole bytes.
    fn config_write(&self, offset: u16, lanes: u32, value: u32) -> Action;

    /// What its BARs decode.
    fn decoded(&self) -> Vec<Decoded> {
        Vec::new()
    }

    /// The buses above it have changed.
    fn connect(&self, _upstream: Upstream) {}

    /// Its bus is reset.
    fn bus_reset(&self);
}
