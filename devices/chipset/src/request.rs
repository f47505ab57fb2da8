//! What a device asks of the machine.

use std::fmt;
use std::sync::Arc;

/// What a guest told of itself through pvpanic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicEvent {
    /// Its kernel has panicked, and goes no further by itself.
    Panicked,
    /// Its kernel has panicked, and runs its crash kernel: leave it running.
    CrashLoaded,
    /// It is shutting down in an orderly way.
    Shutdown,
}

/// What a device asks of the machine, because the guest asked it of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineRequest {
    /// Power off (ACPI S5, or S4, which differs for the guest only).
    PowerOff,
    /// Reset the whole machine.
    Reset,
    /// The guest's firmware can't do without system management mode, which the machine does not have.
    SmmWanted,
    /// The guest reports an end of its own.
    Panic(PanicEvent),
}

/// The machine as a device sees it. A device calls it under its own lock, on the vCPU's thread: it notes the request (a queue and an eventfd)
/// and returns; it must not call back into a device.
#[derive(Clone)]
pub struct Requests(Arc<dyn Fn(MachineRequest) + Send + Sync>);

impl Requests {
    /// Requests that `take` takes.
    pub fn new(take: impl Fn(MachineRequest) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Sends one.
    pub fn send(&self, request: MachineRequest) {
        (self.0)(request);
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Requests")
    }
}
