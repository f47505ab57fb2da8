//! pvpanic: how a guest tells that it has panicked.

use skep_bus::{Action, Device};

use crate::ports::PortRange;
use crate::request::{MachineRequest, PanicEvent, Requests};

/// Where x86_64 machines have it.
pub const PORTS: PortRange = PortRange { base: 0x505, size: 1, region: 0 };
/// Bytes that its register takes in memory, where a machine has it there.
pub const MMIO_SIZE: u64 = 2;

/// The events, each a bit: what a read says is understood, and what a write reports.
const EVENTS: [(u8, PanicEvent); 3] =
    [(1 << 0, PanicEvent::Panicked), (1 << 1, PanicEvent::CrashLoaded), (1 << 2, PanicEvent::Shutdown)];

/// The device that Linux knows as ACPI device `QEMU0001` and as `qemu,pvpanic-mmio` (QEMU's docs/specs/pvpanic). One register, the same at a
/// port and in memory. It holds no state.
#[derive(Debug)]
pub struct PvPanic {
    requests: Requests,
}

impl PvPanic {
    /// A device that reports to `requests`.
    #[must_use]
    pub fn new(requests: Requests) -> Self {
        Self { requests }
    }
}

impl Device for PvPanic {
    fn read(&self, _region: u32, offset: u64, data: &mut [u8]) {
        let understood = EVENTS.iter().fold(0, |all, (bit, _)| all | bit);
        for (offset, byte) in (offset..).zip(data) {
            *byte = if offset == 0 { understood } else { 0 };
        }
    }

    fn write(&self, _region: u32, offset: u64, data: &[u8]) -> Action {
        if let (0, Some(value)) = (offset, data.first()) {
            for (_, event) in EVENTS.iter().filter(|(bit, _)| value & bit != 0) {
                self.requests.send(MachineRequest::Panic(*event));
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::testing::{Log, requests};

    #[test]
    fn events_are_told_apart_and_what_is_unknown_is_nothing() {
        let log = Log::default();
        let device = PvPanic::new(requests(&log));
        let mut data = [0xff; 2];
        device.read(0, 0, &mut data);
        assert_eq!(data, [7, 0]);
        for (data, events) in [
            (&[1u8] as &[u8], &["Panic(Panicked)"] as &[&str]),
            (&[2, 0], &["Panic(CrashLoaded)"]),
            (&[4], &["Panic(Shutdown)"]),
            (&[0xf8, 7], &[]),
        ] {
            let _ = device.write(0, 0, data);
            assert_eq!(log.take(), events);
        }
        let _ = device.write(0, 1, &[1]);
        assert!(log.take().is_empty());
    }
}
