//! What skep knows of the two guest architectures, as plain code that compiles and is tested on every host.
//!
//! * [`x86_64`]: the Q35-compatible PC.
//! * [`aarch64`]: the `virt` machine.
//! * [`layout`]: what both memory layouts share.
//! * [`kernel`]: kernel file formats of both.
//!
//! Nothing here depends on the host's architecture or on a hypervisor backend.

#![forbid(unsafe_code)]

pub mod aarch64;
pub mod acpi;
pub mod kernel;
pub mod layout;
pub mod topology;
pub mod x86_64;
