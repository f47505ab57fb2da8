//! The small guests that are built into skep: freestanding Rust, for both architectures on every host.
//!
//! * `hello` says what it finds in the machine, on the first serial port: a line `key: value` for each fact. x86_64: an ELF file with a PVH entry.
//!   aarch64: a Linux `Image`.
//! * `probe` carries out a test's list of operations. A flat binary, loaded and entered as `skep-guest-protocol` says.
//!
//! # hello
//!
//! The first line is `skep hello: up`, as early as can be: on x86_64 the first character is the eighth instruction. Words on the command line choose
//! what comes after it; others are passed over:
//!
//! | word | |
//! |---|---|
//! | `first` | nothing but the first line |
//! | `cpus` | only start the CPUs and count them |
//! | `ticks`, `ticks=slow` | also take interrupts from every source, by every way; and from those that take a second |
//! | `echo`, `echo=poll` | also write every line that is read as `echo: ...`, until `bye`: by interrupt, or by polling |
//! | `end=` | how to end: `poweroff` (the default), `reset`, `i8042` (a reset through it), `panic` (through pvpanic), `triple`, `halt` or `spin` |
//!
//! A line `problem: ...` says what is not as it must be. The last line but one counts them (`problems: 0`), the last one is `end: ...`; after
//! `first` there is neither.
//!
//! What this crate does not do: it has the bytes, and neither loads nor runs them.

#![forbid(unsafe_code)]

/// The `hello` guest for x86_64: an ELF file with a PVH entry note, for the RAM from 1 MiB on.
pub const HELLO_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-x86_64"));
/// The `hello` guest for aarch64: a Linux `Image`, which runs wherever it is loaded from 1 GiB on.
pub const HELLO_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-aarch64"));
/// The `probe` guest for x86_64: a flat binary for [`skep_guest_protocol::X86_64_LOAD`].
pub const PROBE_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-x86_64"));
/// The `probe` guest for aarch64: a flat binary for [`skep_guest_protocol::AARCH64_LOAD`].
pub const PROBE_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-aarch64"));

#[cfg(test)]
#[path = "lib_test.rs"]
mod test;
