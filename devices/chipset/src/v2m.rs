//! The GICv2m frame: turns a message-signalled interrupt into an edge of a shared peripheral interrupt.
//!
//! Follows Arm's Server Base System Architecture (DEN 0029), appendix "GICv2m architecture": MSI_TYPER, MSI_SETSPI_NS, MSI_IIDR. It holds no
//! state: an edge is in the GIC as soon as it is made.

use skep_bus::{Action, Device};
use skep_irq::{IrqError, IrqLine, MsiMessage, MsiTarget, RequesterId};

use crate::access::{read_words, write_words};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "v2m_test.rs"]
pub(crate) mod test;

/// The size of the frame in bytes.
pub const SIZE: u64 = 0x1000;

/// Register offsets.
mod register {
    pub(super) const TYPER: u64 = 0x008;
    pub(super) const SETSPI_NS: u64 = 0x040;
    pub(super) const IIDR: u64 = 0xfcc;
}

/// Product 0, revision 0, implementer Arm (JEP106 code 0x43b).
const IIDR: u32 = 0x43b;

/// What a frame is made of.
pub struct V2mConfig {
    /// Where it is mapped: a message's address is in it.
    pub base: u64,
    /// Its interrupts: edge lines with consecutive INTIDs.
    pub lines: Vec<IrqLine>,
}

/// A GICv2m frame.
pub struct V2m {
    base: u64,
    first: u32,
    lines: Vec<IrqLine>,
}

impl V2m {
    /// A frame that hands out `config.lines`.
    #[must_use]
    pub fn new(config: V2mConfig) -> Self {
        let first = config.lines.first().map_or(0, |line| line.description().number);
        Self { base: config.base, first, lines: config.lines }
    }

    /// The first INTID that it hands out, and how many there are.
    #[must_use]
    pub fn interrupts(&self) -> (u32, u32) {
        (self.first, self.lines.len() as u32)
    }

    fn set(&self, intid: u32) -> bool {
        let line = intid.checked_sub(self.first).and_then(|index| self.lines.get(index as usize));
        line.map(IrqLine::pulse).is_some()
    }
}

impl MsiTarget for V2m {
    fn signal(&self, message: MsiMessage, _requester: Option<RequesterId>) -> Result<(), IrqError> {
        let here = message.address == self.base + register::SETSPI_NS;
        // INTIDs have 10 bits; the upper half of the data is not looked at.
        if here && self.set(message.data & 0x3ff) {
            return Ok(());
        }
        Err(IrqError::NoMsiTarget { address: message.address, data: message.data })
    }
}

impl Device for V2m {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        read_words(offset, data, |register| match register {
            register::TYPER => self.first << 16 | self.lines.len() as u32,
            register::IIDR => IIDR,
            _ => 0,
        });
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        write_words(offset, data, |register, value| {
            if register == register::SETSPI_NS && !self.set(value & 0x3ff) {
                tracing::debug!("the guest sets interrupt {value}, which the GICv2m frame does not have");
            }
        });
        Action::None
    }
}
