//! What skep knows of the two guest architectures, as plain code that compiles and is tested on every host.
//!
//! * [`x86_64`]: the Q35-compatible PC.
//! * [`aarch64`]: the `virt` machine.
//! * [`layout`]: what both memory layouts share.
//!
//! Nothing here depends on the host's architecture or on a hypervisor backend.

pub mod aarch64;
pub mod layout;
pub mod x86_64;
