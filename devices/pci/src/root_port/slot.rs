//! The slot's registers (PCI Express Base 5.0 section 7.5.3.9 and after) and its link.

use skep_state::{StateError, ensure};

use crate::capability::express::{
    Express, LINK_ACTIVE, LINK_CONTROL, LINK_DISABLED, LINK_DOWN, LINK_STATUS, LINK_UP, SLOT_CAPABILITIES, SLOT_CONTROL,
};
use crate::config_space::{Bits, ConfigSpace};
use crate::state::ROOT_PORT_ID;

/// Slot capabilities: attention button, power controller, both indicators, hot-plug; 75 W.
const CAPABILITIES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 75 << 7;

/// Slot control.
mod control {
    /// Enables of the events: button, presence, command completed.
    pub(super) const BUTTON: u32 = 1 << 0;
    pub(super) const PRESENCE: u32 = 1 << 3;
    pub(super) const COMMAND: u32 = 1 << 4;
    pub(super) const INTERRUPT: u32 = 1 << 5;
    pub(super) const ATTENTION_OFF: u32 = 0b11 << 6;
    pub(super) const POWER_INDICATOR: u32 = 0b11 << 8;
    pub(super) const POWER_INDICATOR_ON: u32 = 0b01 << 8;
    pub(super) const POWER_INDICATOR_OFF: u32 = 0b11 << 8;
    /// Set, the slot has no power.
    pub(super) const POWER_OFF: u32 = 1 << 10;
    pub(super) const LINK: u32 = 1 << 12;
    /// All of the above, and the enable of power faults, which never happen.
    pub(super) const WRITABLE: u32 = 0x17fb;
}

/// Slot status, as the upper half of slot control.
mod status {
    pub(super) const BUTTON: u32 = 1 << 16;
    pub(super) const PRESENCE: u32 = 1 << 19;
    pub(super) const COMMAND: u32 = 1 << 20;
    pub(super) const OCCUPIED: u32 = 1 << 22;
    pub(super) const LINK: u32 = 1 << 24;
    pub(super) const EVENTS: u32 = BUTTON | PRESENCE | COMMAND | LINK;
}

/// Events and their enables.
const EVENTS: [(u32, u32); 4] = [
    (status::BUTTON, control::BUTTON),
    (status::PRESENCE, control::PRESENCE),
    (status::COMMAND, control::COMMAND),
    (status::LINK, control::LINK),
];

/// Where a slot's registers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    control: u16,
    link: u16,
}

impl Slot {
    /// The slot of port `number`. Its physical number begins at 1: 0 is for devices on the board.
    pub(super) fn add(space: &mut ConfigSpace, express: Express, number: u8) -> Self {
        let slot_number = (u32::from(number) + 1) << 19;
        space.define(express.at(SLOT_CAPABILITIES), Bits::fixed(CAPABILITIES | slot_number));
        let control = express.at(SLOT_CONTROL);
        let bits = Bits::fixed(0).writable(control::WRITABLE).clears(status::EVENTS).changing(status::OCCUPIED);
        space.define(control, bits);
        Self { control, link: express.at(LINK_CONTROL) }
    }

    /// The power-on state: a slot with a device in it has power.
    pub(super) fn power_on(self, space: &mut ConfigSpace, occupied: bool) {
        let control = if occupied {
            control::ATTENTION_OFF | control::POWER_INDICATOR_ON | status::OCCUPIED
        } else {
            control::ATTENTION_OFF | control::POWER_INDICATOR_OFF | control::POWER_OFF
        };
        space.set(self.control, u32::MAX, control);
        let link = if occupied { LINK_UP | LINK_ACTIVE } else { LINK_DOWN };
        space.set(self.link, LINK_STATUS | LINK_DISABLED, link);
    }

    pub(super) fn link_is_up(self, space: &ConfigSpace) -> bool {
        space.register(self.link) & LINK_ACTIVE != 0
    }

    /// Neither power nor its indicator are on.
    pub(super) fn is_off(self, space: &ConfigSpace) -> bool {
        let off = control::POWER_OFF | control::POWER_INDICATOR;
        space.register(self.control) & off == off
    }

    /// A device comes or goes.
    pub(super) fn presence(self, space: &mut ConfigSpace, occupied: bool) {
        let present = if occupied { status::OCCUPIED } else { 0 };
        space.set(self.control, status::OCCUPIED | status::PRESENCE, present | status::PRESENCE);
        self.update_link(space, occupied);
    }

    pub(super) fn press_button(self, space: &mut ConfigSpace) {
        space.set(self.control, status::BUTTON, status::BUTTON);
    }

    /// The guest has written slot control or link control. Says whether the device has lost its link.
    pub(super) fn written(self, space: &mut ConfigSpace, occupied: bool, offset: u16, lanes: u32) -> bool {
        // A write to the status register alone is no command.
        if offset == self.control && lanes & 0xffff != 0 {
            space.set(self.control, status::COMMAND, status::COMMAND);
        }
        let was_up = self.link_is_up(space);
        self.update_link(space, occupied);
        was_up && !self.link_is_up(space)
    }

    /// The link follows device, power and link control.
    fn update_link(self, space: &mut ConfigSpace, occupied: bool) {
        let has_power = space.register(self.control) & control::POWER_OFF == 0;
        let up = occupied && has_power && space.register(self.link) & LINK_DISABLED == 0;
        if up != self.link_is_up(space) {
            space.set(self.link, LINK_STATUS, if up { LINK_UP | LINK_ACTIVE } else { LINK_DOWN });
            space.set(self.control, status::LINK, status::LINK);
        }
    }

    /// Whether there is something to interrupt for.
    pub(super) fn event(self, space: &ConfigSpace) -> bool {
        let register = space.register(self.control);
        let any = EVENTS.iter().any(|(status, enable)| register & status != 0 && register & enable != 0);
        any && register & control::INTERRUPT != 0
    }

    /// Whether saved registers agree with what is in the slot.
    pub(super) fn check(self, space: &ConfigSpace, occupied: bool) -> Result<(), StateError> {
        let register = space.register(self.control);
        let said = register & status::OCCUPIED != 0;
        let rule = "the slot of this machine's configuration is otherwise";
        ensure(said == occupied, ROOT_PORT_ID, "occupied", said, rule)?;
        let link = space.register(self.link);
        let up = occupied && register & control::POWER_OFF == 0 && link & LINK_DISABLED == 0;
        let expected = if up { LINK_UP | LINK_ACTIVE } else { LINK_DOWN };
        let rule = "the link is up if there are a device and power, and it is not disabled";
        ensure(link & LINK_STATUS == expected, ROOT_PORT_ID, "link", link & LINK_STATUS, rule)
    }
}
