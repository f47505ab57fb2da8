//! The small guests that are built into skep and its tools: freestanding Rust, for both architectures on every host.
//!
//! * `hello` says what it finds in the machine, on the first serial port: a line `key: value` for each fact. x86_64: an ELF file with a PVH entry.
//!   aarch64: a Linux `Image`.
//! * `io` drives a disk by queues that it polls, and says what that took. Of the same formats as `hello`; only tests and benchmarks use it.
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
//! | `echo`, `echo=poll` | also write every line that is read as `echo: ...`, until `bye`: by interrupt, or by polling; and what the clocks show, where one is `clocks` |
//! | `end=` | how to end: `poweroff` (the default), `reset`, `i8042` (a reset through it), `panic` (through pvpanic), `triple`, `halt` or `spin` |
//!
//! A line `problem: ...` says what is not as it must be. The last line but one counts them (`problems: 0`), the last one is `end: ...`; after
//! `first` there is neither.
//!
//! # io
//!
//! It needs no firmware: BARs that nobody has placed it places itself. It uses no interrupts, shows the device all new requests at once, and rings
//! a doorbell only where the device wants that. The words are taken in their order; those of the first group are remembered for the next `run`:
//!
//! | word | |
//! |---|---|
//! | `device=` | `nvme` (the default) or `virtio-blk`: the first on PCI's bus 0, its first namespace |
//! | `op=` | `randread` (the default), `randwrite`, `read`, `write`: anywhere, or in order from the first block on |
//! | `bs=`, `depth=` | bytes of an access (4096); accesses in flight (1), 64 at most; both together no more than 8 MiB |
//! | `count=`, `ms=` | how many accesses, and for how many milliseconds (60000) at most |
//! | `seed=` | what places and the pattern follow from (1) |
//! | `verify=1` | writes write a pattern that follows from seed and place, reads compare with it; `verify=0` ends that |
//! | `shadow=0`, `indirect=1` | when the device is used first: no shadow doorbells; indirect descriptors |
//! | `run` | run what was said so far |
//! | `idle=` | leave the devices alone for so many milliseconds |
//! | `end=` | `poweroff` (the default) or `halt` |
//!
//! A run ends in a line `io: key=value ...`: the words, `ops` and `ns` that they took, `bells` that were rung, `quiet` (1 if doorbells can be left
//! alone: shadow doorbells, an event index), `errors` and, of verified reads, `wrong` ones, and a `checksum` over the first 8 bytes of each access.
//! Problems and the end are told as by `hello`.
//!
//! What this crate does not do: it has the bytes, and neither loads nor runs them.

#![forbid(unsafe_code)]

/// The `hello` guest for x86_64: an ELF file with a PVH entry note, for the RAM from 1 MiB on.
pub const HELLO_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-x86_64"));
/// The `hello` guest for aarch64: a Linux `Image`, which runs wherever it is loaded from 1 GiB on.
pub const HELLO_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello-aarch64"));
/// The `io` guest for x86_64: an ELF file with a PVH entry note, for the RAM from 1 MiB on.
pub const IO_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/io-x86_64"));
/// The `io` guest for aarch64: a Linux `Image`, which runs wherever it is loaded from 1 GiB on.
pub const IO_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/io-aarch64"));
/// The `probe` guest for x86_64: a flat binary for [`skep_guest_protocol::X86_64_LOAD`].
pub const PROBE_X86_64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-x86_64"));
/// The `probe` guest for aarch64: a flat binary for [`skep_guest_protocol::AARCH64_LOAD`].
pub const PROBE_AARCH64: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe-aarch64"));

#[cfg(test)]
#[path = "lib_test.rs"]
mod test;
