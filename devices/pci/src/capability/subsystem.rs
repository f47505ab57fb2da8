//! A bridge's subsystem ids (PCI-to-PCI Bridge Architecture 1.2 section 3.2.5.13).

use super::id;
use crate::config_space::{Bits, ConfigSpace};

/// Adds the capability.
pub(crate) fn add(space: &mut ConfigSpace, vendor: u16, device: u16) {
    let offset = space.add_capability(id::SUBSYSTEM, 8);
    space.define(offset + 4, Bits::fixed(u32::from(vendor) | u32::from(device) << 16));
}
