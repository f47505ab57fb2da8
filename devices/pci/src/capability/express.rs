//! The PCI Express capability (PCI Express Base 5.0 section 7.5.3), version 2.

use super::id;
use crate::config_space::{Bits, ConfigSpace};

const LENGTH: u16 = 0x3c;
/// Offsets in the capability.
pub(crate) const DEVICE_CONTROL: u16 = 0x08;
pub(crate) const LINK_CONTROL: u16 = 0x10;
pub(crate) const SLOT_CAPABILITIES: u16 = 0x14;
pub(crate) const SLOT_CONTROL: u16 = 0x18;
const LINK_CAPABILITIES: u16 = 0x0c;
const DEVICE_CAPABILITIES: u16 = 0x04;
const ROOT_CONTROL: u16 = 0x1c;
const DEVICE_CAPABILITIES_2: u16 = 0x24;
const DEVICE_CONTROL_2: u16 = 0x28;
const LINK_CAPABILITIES_2: u16 = 0x2c;
const LINK_CONTROL_2: u16 = 0x30;

/// Device capabilities: payloads of 256 bytes, extended tags, role-based error reporting, function-level reset.
const PAYLOAD_256: u32 = 1;
const EXTENDED_TAG: u32 = 1 << 5;
const ROLE_BASED_ERRORS: u32 = 1 << 15;
const FUNCTION_RESET: u32 = 1 << 28;
/// Device control: relaxed ordering and no snoop allowed, requests of 512 bytes. Phantom functions and auxiliary power are not there.
const DEVICE_CONTROL_POWER_ON: u32 = 1 << 4 | 1 << 11 | 0b010 << 12;
const DEVICE_CONTROL_WRITABLE: u32 = 0x79ff;
/// Device control: the function-level reset of an endpoint, which reads 0.
pub(crate) const INITIATE_RESET: u32 = 1 << 15;

/// 16 GT/s, by four lanes: what an NVMe drive has.
const SPEED: u32 = 4;
const WIDTH: u32 = 4 << 4;
/// Link capabilities: optionality compliance, and for a hot-plug port data link layer state.
const ASPM_OPTIONAL: u32 = 1 << 22;
const LINK_ACTIVE_REPORTED: u32 = 1 << 20;
/// Link control: read completion boundary, common clock, extended synchronisation. Active state power management is not offered.
const LINK_CONTROL_WRITABLE: u32 = 1 << 3 | 1 << 6 | 1 << 7;
/// Link control of a port.
pub(crate) const LINK_DISABLED: u32 = 1 << 4;
/// Link status, as the upper half of link control.
const SLOT_CLOCK: u32 = 1 << 28;
pub(crate) const LINK_ACTIVE: u32 = 1 << 29;
/// Speed and width of a link that is up.
pub(crate) const LINK_UP: u32 = (SPEED | WIDTH) << 16;
/// What a port's link status shows, and changes.
pub(crate) const LINK_STATUS: u32 = 0x03ff << 16 | LINK_ACTIVE;
/// A link that is down shows the lowest speed.
pub(crate) const LINK_DOWN: u32 = 1 << 16;
/// 2.5 to 16 GT/s.
const SPEEDS: u32 = 0b1111 << 1;
/// The equalization of a link at 8 GT/s and more is done, in link status 2.
const EQUALIZED: u32 = 0b1_1110 << 16;

/// What kind of function it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An endpoint at the end of a link.
    Endpoint,
    /// A root port with its number and a slot.
    RootPort { number: u8 },
    /// An endpoint of the root complex itself: without a link.
    Integrated,
}

/// Where the capability is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Express {
    offset: u16,
    kind: Kind,
}

impl Express {
    pub(crate) fn add(space: &mut ConfigSpace, kind: Kind) -> Self {
        let (code, slot) = match kind {
            Kind::Endpoint => (0x0, 0),
            Kind::RootPort { .. } => (0x4, 1 << 8),
            Kind::Integrated => (0x9, 0),
        };
        let offset = space.add_capability(id::EXPRESS, LENGTH);
        space.define(offset, Bits::fixed((2 | code << 4 | slot) << 16));
        let is_port = matches!(kind, Kind::RootPort { .. });
        let reset = if is_port { 0 } else { FUNCTION_RESET };
        let capabilities = PAYLOAD_256 | EXTENDED_TAG | ROLE_BASED_ERRORS | reset;
        space.define(offset + DEVICE_CAPABILITIES, Bits::fixed(capabilities));
        let control = Bits::fixed(DEVICE_CONTROL_POWER_ON).writable(DEVICE_CONTROL_WRITABLE);
        space.define(offset + DEVICE_CONTROL, control);
        // Completion timeouts can be turned off; there is none to begin with.
        space.define(offset + DEVICE_CAPABILITIES_2, Bits::fixed(1 << 4));
        space.define(offset + DEVICE_CONTROL_2, Bits::fixed(0).writable(0x1f));
        match kind {
            Kind::Integrated => {}
            Kind::Endpoint => {
                space.define(offset + LINK_CAPABILITIES, Bits::fixed(SPEED | WIDTH | ASPM_OPTIONAL));
                let control = Bits::fixed(LINK_UP | SLOT_CLOCK).writable(LINK_CONTROL_WRITABLE);
                space.define(offset + LINK_CONTROL, control);
                link_2(space, offset);
            }
            Kind::RootPort { number } => {
                let capabilities = SPEED | WIDTH | ASPM_OPTIONAL | LINK_ACTIVE_REPORTED | u32::from(number) << 24;
                space.define(offset + LINK_CAPABILITIES, Bits::fixed(capabilities));
                let control = Bits::fixed(LINK_DOWN | SLOT_CLOCK)
                    .writable(LINK_CONTROL_WRITABLE | LINK_DISABLED)
                    .changing(LINK_STATUS);
                space.define(offset + LINK_CONTROL, control);
                // System errors and PME interrupts: neither is ever raised.
                space.define(offset + ROOT_CONTROL, Bits::fixed(0).writable(0xf));
                link_2(space, offset);
            }
        }
        Self { offset, kind }
    }

    /// Where a register of the capability is.
    pub(crate) fn at(self, register: u16) -> u16 {
        self.offset + register
    }

    /// Whether a write of these ones to the register at `offset` asks for a function-level reset.
    pub(crate) fn asks_reset(self, offset: u16, ones: u32) -> bool {
        let is_port = matches!(self.kind, Kind::RootPort { .. });
        offset == self.at(DEVICE_CONTROL) && ones & INITIATE_RESET != 0 && !is_port
    }
}

fn link_2(space: &mut ConfigSpace, offset: u16) {
    space.define(offset + LINK_CAPABILITIES_2, Bits::fixed(SPEEDS));
    // Target speed, which a guest may lower without effect.
    space.define(offset + LINK_CONTROL_2, Bits::fixed(SPEED | EQUALIZED).writable(0xf));
}
