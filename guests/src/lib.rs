//! The small guests that are built into skep: freestanding Rust, for both architectures on every host.
//!
//! * `hello` says what it finds in the machine. x86_64: an ELF file with a PVH entry. aarch64: a Linux `Image`.
//! * `probe` carries out a test's list of operations. A flat binary, loaded and entered as `skep-guest-protocol` says.
//!
//! What this crate does not do: it has the bytes, and neither loads nor runs them.

#![forbid(unsafe_code)]

/// The `probe` guest for x86_64: a flat binary for [`skep_guest_protocol::X86_64_LOAD`].
pub const PROBE_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-x86_64"));
/// The `probe` guest for aarch64: a flat binary for [`skep_guest_protocol::AARCH64_LOAD`].
pub const PROBE_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-aarch64"));

#[cfg(test)]
#[path = "lib_test.rs"]
mod test;
