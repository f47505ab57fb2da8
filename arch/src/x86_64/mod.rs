//! The x86_64 machine: a PC with the Q35 chipset's contract.

pub mod layout;
