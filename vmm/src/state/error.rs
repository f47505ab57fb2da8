//! Why a snapshot can't be written or taken.

use std::io;
use std::path::PathBuf;

use skep_hypervisor::{HypervisorError, VcpuError};
use skep_memory::MemoryError;
use skep_state::StateError;

use super::Why;

/// Why a snapshot can't be written or taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A device's state is with another program.
    #[error(
        "`{id}` has a vhost-user backend, whose state can't be saved\n  \
         try: remove it first; or start the machine with a device of skep's own"
    )]
    Backend {
        /// The device.
        id: String,
    },
    /// The chain of differences.
    #[error(
        "it is the difference to `{}`: {reason}\n  try: to put that snapshot there, as it was: those of a chain lie side by side under the names that they were saved by",
        path.display()
    )]
    Base {
        /// The snapshot that it is the difference to.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A difference that could not be restored.
    #[error("a difference can't be saved: {reason}\n  try: a whole snapshot, by `save DIR --track`")]
    NoBase {
        /// What is wrong with what it would be the difference to.
        reason: String,
    },
    /// Nobody has followed what changes.
    #[error(
        "there is no snapshot of this machine that a difference could be to\n  try: first a whole one, by `save DIR --track`, or `skep restore DIR --track`"
    )]
    NotTracked,
    /// The backend has no dirty log.
    #[error("this host's KVM does not say what a guest has changed of its memory\n  try: whole snapshots")]
    NoDirtyLog,
    /// The dirty log.
    #[error("what the guest has changed of its memory is not known: {0}")]
    DirtyLog(MemoryError),
    /// The host refuses.
    #[error("can't {what} `{}`: {source}{}", path.display(), mend(what, source))]
    Host {
        /// What was being done.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A device is named that the machine does not have.
    #[error("the machine has no {kind} `{id}`\n  try: {}", one_of(names))]
    NoDevice {
        /// What is meant.
        kind: &'static str,
        /// Its name.
        id: String,
        /// Those that there are.
        names: Vec<String>,
    },
    /// Firmware's variables have no file.
    #[error("the machine has no file of firmware's variables\n  try: without --firmware-vars")]
    NoVariables,
    /// The guest runs on other firmware.
    #[error(
        "`{}` is not the firmware that the guest has\n  try: to put the file back that was there when the snapshot was saved",
        path.display()
    )]
    Firmware {
        /// What is there now.
        path: PathBuf,
    },
    /// Something is where the snapshot should be.
    #[error("`{}` is there already\n  try: another name, or remove it", path.display())]
    Exists {
        /// The snapshot's place.
        path: PathBuf,
    },
    /// There is no snapshot.
    #[error("`{}` is no snapshot: {reason}", path.display())]
    NotOne {
        /// What was opened.
        path: PathBuf,
        /// Why it is none.
        reason: String,
    },
    /// A later skep wrote it.
    #[error(
        "it is in version {found} of the container, and this skep reads up to version {newest}\n  try: the skep that wrote it ({}), or a later one",
        skep.escape_debug()
    )]
    Container {
        /// Its version.
        found: u32,
        /// The newest version that this program reads.
        newest: u32,
        /// Who wrote it.
        skep: String,
    },
    /// It needs what this skep does not know of.
    #[error(
        "it requires `{}`, which this skep does not know\n  try: the skep that wrote it ({}), or a later one",
        name.escape_debug(),
        skep.escape_debug()
    )]
    Requires {
        /// What.
        name: String,
        /// Who wrote it.
        skep: String,
    },
    /// A file is not what the header says.
    #[error("its file `{file}` is damaged: {reason}\n  try: another copy of the snapshot")]
    Damaged {
        /// Which.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The records as a whole.
    #[error("its records can't be read: {reason}")]
    Records {
        /// What is wrong.
        reason: String,
    },
    /// A record is not there.
    #[error("it has no record `{name}`, which this machine needs")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A record is of nothing in this machine.
    #[error(
        "it has a record `{name}` (of type `{id}`), which is of nothing in this machine\n  try: the skep that wrote it, or a later one"
    )]
    Unknown {
        /// Its name.
        name: String,
        /// Its type.
        id: String,
    },
    /// A record is refused.
    #[error("its record `{name}` is refused: {source}")]
    Record {
        /// Its name.
        name: String,
        /// Why.
        source: StateError,
    },
    /// The guest has seen another CPU.
    #[error("this host's CPU is not one for the guest: {reason}")]
    Cpu {
        /// What differs.
        reason: String,
    },
    /// An image.
    #[error(transparent)]
    Image(#[from] skep_block::BlockError),
    /// A disk is not what it was.
    #[error("disk `{id}`: {reason}\n  try: {mend}")]
    Disk {
        /// Its name.
        id: String,
        /// What differs.
        reason: String,
        /// What would mend it.
        mend: String,
    },
    /// It can't be done now.
    #[error("{0}\n  try: again in a moment")]
    Busy(String),
    /// Somebody wanted it to end.
    #[error("it was cancelled")]
    Cancelled,
    /// The machine ends.
    #[error("the machine ends before it is saved")]
    Ended,
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The backend.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

impl From<Why> for SnapshotError {
    fn from(why: Why) -> Self {
        match why {
            Why::Cancelled => Self::Cancelled,
            Why::Ended => Self::Ended,
        }
    }
}

fn mend(what: &str, error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied if what == "read" => {
            "\n  try: as the user who saved it, or let this one read its files"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "\n  try: a folder with more room: a snapshot takes as much as the guest uses of its memory"
        }
        io::ErrorKind::FileTooLarge => "\n  try: a higher limit of a file's size (ulimit -f)",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "\n  try: a folder that the user who runs the machine may write"
        }
        _ => "",
    }
}

fn one_of(names: &[String]) -> String {
    if names.is_empty() { "without that: there is none".to_owned() } else { format!("one of {}", names.join(", ")) }
}
