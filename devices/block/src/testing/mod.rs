//! Disks for tests: in memory, and failing as told.

mod fault;
mod memory;

pub use fault::{Fault, FaultDisk};
pub use memory::{Counts, MemoryDisk};

#[cfg(test)]
#[path = "testing_test.rs"]
mod test;
