//! What a place offers to the function that is put there.

use std::sync::Arc;

use skep_irq::{IrqError, IrqLine, MsiMessage, MsiTarget, Requester, RequesterId};
use skep_memory::MemoryMap;

use crate::{Address, PciPlace};

/// A function's interrupt pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pin {
    /// INTA#.
    A = 1,
    /// INTB#.
    B = 2,
    /// INTC#.
    C = 3,
    /// INTD#.
    D = 4,
}

impl Pin {
    /// All four.
    pub const ALL: [Self; 4] = [Self::A, Self::B, Self::C, Self::D];

    /// From 0 on.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize - 1
    }
}

/// What a place offers: who the function is there, memory, and where its interrupts go.
pub struct Socket {
    pub(crate) place: PciPlace,
    pub(crate) memory: MemoryMap,
    pub(crate) messages: Arc<dyn MsiTarget>,
    lines: [IrqLine; 4],
}

impl Socket {
    /// A place outside any root complex, for tests of devices; a root complex makes those of its places. `lines` are those of the pins.
    #[must_use]
    pub fn new(place: PciPlace, memory: MemoryMap, messages: Arc<dyn MsiTarget>, lines: [IrqLine; 4]) -> Self {
        Self { place, memory, messages, lines }
    }

    /// The place.
    #[must_use]
    pub fn place(&self) -> PciPlace {
        self.place
    }

    /// The device number there.
    pub(crate) fn device(&self) -> u8 {
        match self.place {
            PciPlace::Root(device) => device,
            PciPlace::Port(_) => 0,
        }
    }

    pub(crate) fn requester(&self) -> Requester {
        Address::new(0, self.device()).requester().into()
    }

    pub(crate) fn line(&self, pin: Option<Pin>) -> IrqLine {
        pin.and_then(|pin| self.lines.get(pin.index())).map_or_else(IrqLine::detached, IrqLine::share)
    }
}

/// Takes no messages: for a machine whose interrupt controller has no way for them. Its tables do not offer it.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMessages;

impl MsiTarget for NoMessages {
    fn signal(&self, message: MsiMessage, _requester: Option<RequesterId>) -> Result<(), IrqError> {
        Err(IrqError::NoMsiTarget { address: message.address, data: message.data })
    }
}
