//! The reset control register of ICH9.

use std::sync::{Mutex, PoisonError};

use minicbor::{Decode, Encode};
use skep_bus::{Action, Device};
use skep_state::{Persist, State, StateError, ensure};

use crate::ports::PortRange;
use crate::request::{MachineRequest, Requests};

/// Bits that are kept: system reset, reset CPU, full reset.
const KEPT: u8 = 0x0e;
/// Setting it resets.
const RESET_CPU: u8 = 1 << 2;

/// The ports that it is mapped at while no PCI host bridge is there.
///
/// The register is byte 1 of them, and answers accesses of one byte only: a wider one that covers it is for PCI configuration mechanism 1, which
/// shares its ports. A host bridge takes all eight ports from 0xcf8 on itself, and hands accesses of one byte at 0xcf9 to [`ResetControl`].
pub const PORTS: PortRange = PortRange { base: 0xcf8, size: 4, region: 0 };
const REGISTER: u64 = 1;

/// The reset control register, port 0xcf9 (ICH9 datasheet, section 13.7.5): a rising RST_CPU resets the machine, whichever kind of reset the
/// other bits ask for.
#[derive(Debug)]
pub struct ResetControl {
    requests: Requests,
    value: Mutex<u8>,
}

/// Its saved state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ResetControlState {
    /// The register.
    #[n(0)]
    pub value: u8,
}

impl State for ResetControlState {
    const ID: &'static str = "ich9-reset-control";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        ensure(self.value & !KEPT == 0, Self::ID, "value", self.value, "only bits 3:1 are kept")
    }
}

impl ResetControl {
    /// The register in its power-on state.
    #[must_use]
    pub fn new(requests: Requests) -> Self {
        Self { requests, value: Mutex::new(0) }
    }

    fn set(&self, value: u8) -> u8 {
        std::mem::replace(&mut *self.value.lock().unwrap_or_else(PoisonError::into_inner), value & KEPT)
    }
}

impl Device for ResetControl {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        if let (REGISTER, [byte]) = (offset, data) {
            *byte = *self.value.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        if let (REGISTER, [value]) = (offset, data) {
            let before = self.set(*value);
            if value & !before & RESET_CPU != 0 {
                self.requests.send(MachineRequest::Reset);
            }
        }
        Action::None
    }
}

impl Persist for ResetControl {
    type State = ResetControlState;

    fn save(&self) -> ResetControlState {
        ResetControlState { value: *self.value.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    fn restore(&self, state: &ResetControlState) -> Result<(), StateError> {
        self.set(state.value);
        Ok(())
    }

    fn reset(&self) {
        self.set(0);
    }
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "reset_control_test.rs"]
pub(crate) mod test;
