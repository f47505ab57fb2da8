//! vCPU threads, the control loop, pause and resume.

mod control;
mod gate;
mod requests;
mod signals;
mod vcpus;

pub use control::{Control, ControlError, Subscriber};
pub(crate) use control::{unwatch, watch};
pub use gate::Gate;
pub use requests::{Request, Requests, StopReason, Ticket};
pub use vcpus::{BoxedIo, Slot, Vcpus};
