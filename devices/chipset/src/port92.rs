//! System control port A.

use std::sync::{Mutex, PoisonError};

use minicbor::{Decode, Encode};
use skep_bus::{Action, Device};
use skep_state::{Persist, State, StateError, ensure};

use crate::access::{read_ports, write_ports};
use crate::ports::PortRange;
use crate::request::{MachineRequest, Requests};

/// Where a PC has it.
pub const PORTS: PortRange = PortRange { base: 0x92, size: 1, region: 0 };

/// Setting it resets.
const INIT_NOW: u8 = 1 << 0;
const A20: u8 = 1 << 1;
const KEPT: u8 = INIT_NOW | A20;

/// System control port A, port 0x92 (ICH9 datasheet, section 13.7.3): fast reset and A20. Like the keyboard controller's, its A20 bit keeps
/// what was written and has no effect: A20 is always open.
#[derive(Debug)]
pub struct Port92 {
    requests: Requests,
    value: Mutex<u8>,
}

/// Its saved state.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Port92State {
    /// The register.
    #[n(0)]
    pub value: u8,
}

impl State for Port92State {
    const ID: &'static str = "port92";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        ensure(self.value & !KEPT == 0, Self::ID, "value", self.value, "only bits 1:0 are kept")
    }
}

impl Port92 {
    /// The port in its power-on state.
    #[must_use]
    pub fn new(requests: Requests) -> Self {
        Self { requests, value: Mutex::new(A20) }
    }

    fn get(&self) -> u8 {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, value: u8) -> u8 {
        std::mem::replace(&mut *self.value.lock().unwrap_or_else(PoisonError::into_inner), value & KEPT)
    }
}

impl Device for Port92 {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        read_ports(offset, data, |_| self.get());
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        write_ports(offset, data, |_, value| {
            let before = self.replace(value);
            if value & !before & INIT_NOW != 0 {
                self.requests.send(MachineRequest::Reset);
            }
        });
        Action::None
    }
}

impl Persist for Port92 {
    type State = Port92State;

    fn save(&self) -> Port92State {
        Port92State { value: self.get() }
    }

    fn restore(&self, state: &Port92State) -> Result<(), StateError> {
        self.replace(state.value);
        Ok(())
    }

    fn reset(&self) {
        self.replace(A20);
    }
}

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "port92_test.rs"]
pub(crate) mod test;
