//! Capabilities that a device brings with it.

use crate::config_space::{Bits, ConfigSpace};

/// A capability of a device's own: vendor-specific ones (id 9), for instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// The capability's id.
    pub id: u8,
    /// What follows the two bytes of its header.
    pub body: Vec<u8>,
    /// Which bits of the body the guest may write; none beyond its end.
    pub writable: Vec<u8>,
    /// It has a register through which a BAR is accessed.
    pub window: Option<BarWindow>,
}

/// Registers of a capability through which a guest reaches BARs that it can't map (virtio 1.2 section 4.1.4.9): a BAR's number, offset and
/// length, written by the guest, and the data. Offsets are from the capability's start; all but `bar` are of doublewords.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarWindow {
    /// The BAR's number: a byte.
    pub bar: u8,
    /// The offset in the BAR.
    pub offset: u8,
    /// How many bytes: 1, 2 or 4, of which the offset is a multiple; else nothing is accessed.
    pub length: u8,
    /// The data: reading it reads the BAR, writing it writes the BAR.
    pub data: u8,
}

/// An access that a window asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowAccess {
    pub(crate) bar: u8,
    pub(crate) offset: u64,
    pub(crate) length: usize,
}

/// A window, and where its capability is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlacedWindow {
    start: u16,
    window: BarWindow,
}

impl PlacedWindow {
    pub(crate) fn is_data(self, offset: u16) -> bool {
        offset == self.start + u16::from(self.window.data)
    }

    /// The access that it is set up for.
    pub(crate) fn access(self, space: &ConfigSpace) -> Option<WindowAccess> {
        let register = |offset: u8| space.register(self.start + u16::from(offset));
        let (offset, length) = (register(self.window.offset), register(self.window.length));
        let bar = space.byte(self.start + u16::from(self.window.bar));
        let sound = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        sound.then(|| WindowAccess { bar, offset: offset.into(), length: length as usize })
    }
}

impl Capability {
    /// Adds it.
    pub(crate) fn add(&self, space: &mut ConfigSpace) -> Option<PlacedWindow> {
        let start = space.add_capability(self.id, self.body.len() as u16 + 2);
        let mask = |at: usize| self.writable.get(at).copied().unwrap_or(0);
        for (at, byte) in self.body.iter().enumerate() {
            let bits = Bits::fixed(u32::from(*byte)).writable(mask(at).into());
            space.define(start + 2 + at as u16, bits);
        }
        self.window.map(|window| PlacedWindow { start, window })
    }
}
