//! Power management (PCI Bus Power Management 1.2): D0 and D3hot, no PME.

use super::id;
use crate::config_space::{Bits, Change, ConfigSpace};

/// Version 3 of the interface.
const CAPABILITIES: u32 = 3 << 16;
const CONTROL: u16 = 4;
const STATE: u32 = 0b11;
const D3_HOT: u32 = 0b11;
const NO_SOFT_RESET: u32 = 1 << 3;

/// Where the capability is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PowerManagement {
    control: u16,
}

impl PowerManagement {
    /// `keeps` says whether the function keeps its state from D3hot to D0.
    pub(crate) fn add(space: &mut ConfigSpace, keeps: bool) -> Self {
        let offset = space.add_capability(id::POWER_MANAGEMENT, 8);
        space.define(offset, Bits::fixed(CAPABILITIES));
        let control = offset + CONTROL;
        space.define(control, Bits::fixed(if keeps { NO_SOFT_RESET } else { 0 }).writable(STATE));
        Self { control }
    }

    pub(crate) fn contains(self, offset: u16) -> bool {
        offset == self.control
    }

    pub(crate) fn is_on(self, space: &ConfigSpace) -> bool {
        space.register(self.control) & STATE != D3_HOT
    }

    /// What a write to the control register has done; says whether the function comes back from D3hot. D1 and D2 are not supported: a write of them is
    /// discarded.
    pub(crate) fn written(self, space: &mut ConfigSpace, change: Change) -> bool {
        let (before, after) = (change.before & STATE, change.after & STATE);
        if after != 0 && after != D3_HOT {
            space.set(self.control, STATE, before);
            return false;
        }
        before == D3_HOT && after == 0
    }
}
