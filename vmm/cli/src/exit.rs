//! How skep ends: exit codes.

use std::process::ExitCode;

use skep_vmm::run::StopReason;
use skep_vmm::{Ending, Error};

/// The table that `skep --help` shows.
pub(crate) const TABLE: &str = "\
Exit codes:
  0      the guest powered itself off, or the command did what it was asked
  1      the machine could not be set up, or the host failed it; `skep ctl` was refused
  2      a flag, the config file or a key in it is wrong
  10     the guest asked for a reset, and `on.reset` is exit
  11     the guest's kernel panicked
  12     a processor of the guest triple-faulted
  13     the hypervisor could not run the guest on
  14     the user ended the machine by the console's escape key, or by `skep ctl`
  15     the machine has gone to another skep, by `skep ctl migrate`
  20     an image has errors that are not mended (`skep image check`)
  21     an image has lost clusters, and no errors (`skep image check`)
  128+N  signal N ended the machine (130: Ctrl-C, 143: SIGTERM; 134: skep itself failed)";

/// Why skep ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    Failed,
    Usage,
    Reset,
    Panic,
    TripleFault,
    Hypervisor,
    Quit,
    /// It has migrated.
    Moved,
    /// An image contradicts itself.
    ImageErrors,
    /// An image has clusters that nothing uses, and that are not free.
    ImageLeaks,
    Signal(i32),
    /// As `abort`, which a panic is in a release.
    Panicked,
}

impl Exit {
    /// The code that a parent process sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Reset => 10,
            Exit::Panic => 11,
            Exit::TripleFault => 12,
            Exit::Hypervisor => 13,
            Exit::Quit => 14,
            Exit::Moved => 15,
            Exit::ImageErrors => 20,
            Exit::ImageLeaks => 21,
            Exit::Panicked => 134,
            // Shells number it so. No signal is beyond 64.
            Exit::Signal(number) => u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128)),
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

impl From<&Ending> for Exit {
    fn from(ending: &Ending) -> Self {
        match ending {
            Ending::PowerOff => Exit::Done,
            Ending::Reset => Exit::Reset,
            Ending::Panic => Exit::Panic,
            Ending::TripleFault { .. } => Exit::TripleFault,
            Ending::Failed(_) => Exit::Hypervisor,
            Ending::Stopped(StopReason::Console | StopReason::Control) => Exit::Quit,
            Ending::Stopped(StopReason::Signal(number)) => Exit::Signal(*number),
            Ending::Moved => Exit::Moved,
        }
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The config is wrong.
    #[error(transparent)]
    Config(#[from] skep_config::Error),
    /// The machine could not be set up, or the host failed it.
    #[error(transparent)]
    Machine(#[from] Error),
    /// An image can't be made or looked at.
    #[error(transparent)]
    Image(#[from] skep_block::BlockError),
    /// What is asked of an image makes no sense.
    #[error("{0}")]
    ImageUsage(&'static str),
    /// The backend is not there.
    #[error(transparent)]
    Hypervisor(#[from] skep_hypervisor::HypervisorError),
    /// A file can't be written.
    #[error("{what} can't be written: {source}")]
    Write {
        /// What.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A snapshot can't be taken.
    #[error("snapshot `{}`", path.display())]
    Snapshot {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: Box<skep_vmm::state::SnapshotError>,
    },
    /// A machine that runs can't be asked, or says no.
    #[error(transparent)]
    Control(#[from] skep_vmm::ctl::ClientError),
    /// A guest keeps a device for longer than somebody waits.
    #[error(
        "the guest has not let `{id}` go within {seconds} s, and may still\n  try: `skep ctl {} device list` shows whether it has; --timeout SECONDS waits longer",
        socket.display()
    )]
    Kept {
        /// The device.
        id: String,
        /// How long was waited.
        seconds: u64,
        /// The machine.
        socket: std::path::PathBuf,
    },
    /// There is no machine for this host.
    #[error("skep has no machine for {} hosts\n  try: an x86_64 or aarch64 host", std::env::consts::ARCH)]
    Host,
}

impl From<skep_config::Conflict> for Failure {
    fn from(conflict: skep_config::Conflict) -> Self {
        Failure::Config(conflict.into())
    }
}

impl Failure {
    /// The error that a user reads.
    pub(crate) fn error(&self) -> &(dyn std::error::Error + 'static) {
        self
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Config(_) | Failure::ImageUsage(_) | Failure::Machine(Error::Config(_)) => Exit::Usage,
            Failure::Machine(Error::Panicked { .. }) => Exit::Panicked,
            _ => Exit::Failed,
        }
    }
}
