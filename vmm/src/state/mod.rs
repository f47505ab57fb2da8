//! Snapshots: a machine's whole state in a folder.
//!
//! # The container
//!
//! A snapshot is a folder of three files, or four, which its owner alone can read:
//!
//! * `header.json` is read without decoding the rest ([`Header`]): versions, machine, architecture, sizes, checksums.
//! * `records.cbor` holds the machine's records ([`Records`]), each of a type of `skep-state`'s rules, by its name: `machine` (config, clocks),
//!   `disks` (where the images are), `firmware` (which code that was), `cpus` (what the guest was shown of them), `vcpu/N`, `interrupts` (the GIC), `board/NAME`, `device/NAME`. A record
//!   that this machine does not know is refused by its name, unless it is marked as optional.
//! * `memory` is RAM, sparse: the pieces of the header one after the other, so that it can be mapped.
//! * `changed`, of a difference alone, names the pages that `memory` has. The others are those of the snapshot in the header's `base`.
//!
//! It is written under another name (`.NAME.PID.part`); its files reach the medium before the header is written, and it gets its name last. So what has
//! the name is whole, and what has the other one, or no header, is nothing. Where the host can't rename to a name that nothing has (NFS), an empty folder claims it first.
//!
//! # Phases
//!
//! Saving: the vCPUs stop, then the queues, which tell when nothing is in flight; what the backend keeps in guest RAM is put there (ITS tables), with the
//! state of its controllers; components and vCPUs give theirs; images are flushed; memory comes last. Then the guest goes on, while the host makes the
//! files last. Restoring goes the other way round: memory, vCPUs, the backend's controllers, clocks, components, and the queues go on last.
//!
//! It does not hold the content of disks. A machine that migrates ([`crate::migrate`]) takes its records and its memory along without a folder.

pub(crate) mod changes;
mod error;
mod folder;
mod header;
pub mod inspect;
pub(crate) mod memory;
pub(crate) mod records;
pub mod testing;
mod wanted;

#[cfg(test)]
mod golden_test;

pub use error::SnapshotError;
pub(crate) use folder::Layer;
pub use folder::{CHANGED, Draft, HEADER, MEMORY, RECORDS, Snapshot};
pub use header::{Base, CONTAINER, Checksum, Header, MAGIC, MemoryFile, REQUIRES_BASE, RamRange, RecordsFile};
pub use memory::Progress;
pub(crate) use records::MOST_BEHIND;
pub use records::{
    BackingReference, DiskReference, DisksState, FirmwareState, MachineState, NamedNumber, NamedRecord, Records,
};
pub(crate) use wanted::{Event, Wanted, Why};
