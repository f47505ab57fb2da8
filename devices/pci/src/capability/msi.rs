//! Message-signalled interrupts (PCI Local Bus 3.0 section 6.8.1), with 64-bit addresses and masking of single vectors.

use skep_irq::MsiMessage;

use super::id;
use crate::config_space::{Bits, ConfigSpace};
use crate::interrupts::Messages;

const LENGTH: u16 = 0x18;
const ADDRESS: u16 = 0x04;
const DATA: u16 = 0x0c;
const MASK: u16 = 0x10;
const PENDING: u16 = 0x14;

/// Message control, as the upper half of the header's doubleword.
const ENABLE: u32 = 1 << 16;
const ALLOCATED_SHIFT: u32 = 20;
const CAN_64_BIT: u32 = 1 << 23;
const CAN_MASK: u32 = 1 << 24;

/// The most vectors of MSI.
pub(crate) const MAX_VECTORS: u16 = 32;

/// Where the capability is, and how many vectors it offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MsiCapability {
    offset: u16,
    vectors: u16,
}

impl MsiCapability {
    /// Offers `vectors`, rounded up to a power of two, 32 at most.
    pub(crate) fn add(space: &mut ConfigSpace, vectors: u16) -> Self {
        let vectors = vectors.clamp(1, MAX_VECTORS).next_power_of_two();
        let offset = space.add_capability(id::MSI, LENGTH);
        let offered = vectors.trailing_zeros() << 17;
        let control = Bits::fixed(offered | CAN_64_BIT | CAN_MASK).writable(ENABLE | 0b111 << ALLOCATED_SHIFT);
        space.define(offset, control);
        space.define(offset + ADDRESS, Bits::fixed(0).writable(!0b11));
        space.define(offset + ADDRESS + 4, Bits::fixed(0).writable(u32::MAX));
        space.define(offset + DATA, Bits::fixed(0).writable(0xffff));
        let all = u64::MAX >> (64 - vectors);
        space.define(offset + MASK, Bits::fixed(0).writable(all as u32));
        Self { offset, vectors }
    }

    pub(crate) fn contains(self, offset: u16) -> bool {
        (self.offset..self.offset + LENGTH).contains(&offset)
    }

    pub(crate) fn is_pending_register(self, offset: u16) -> bool {
        offset == self.offset + PENDING
    }

    /// What is on. A guest that allocates more than is offered gets what is offered.
    pub(crate) fn messages(self, space: &ConfigSpace) -> Messages {
        let control = space.register(self.offset);
        if control & ENABLE == 0 {
            return Messages::Off;
        }
        let count = (1u16 << (control >> ALLOCATED_SHIFT & 0b111)).min(self.vectors);
        let address = u64::from(space.register(self.offset + ADDRESS + 4)) << 32
            | u64::from(space.register(self.offset + ADDRESS));
        let message = MsiMessage { address, data: space.word(self.offset + DATA).into() };
        Messages::Msi { message, count, masked: space.register(self.offset + MASK) }
    }
}
