//! Why a machine does not move.

use std::io;

use crate::state::SnapshotError;

/// Why a machine does not move.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// The socket.
    #[error("can't {what} {address}: {source}{}", match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound if *what == "connect to" => "\n  try: `skep receive` there first",
        io::ErrorKind::AddrInUse => "\n  try: another address, or end who listens there",
        _ => "",
    })]
    Host {
        /// What was being done.
        what: &'static str,
        /// Where.
        address: String,
        /// The host's error.
        source: io::Error,
    },
    /// A Unix socket's name.
    #[error(transparent)]
    Socket(crate::ListenError),
    /// The other side says no.
    #[error("the other side refuses: {0}")]
    Refused(String),
    /// The other side can't be heard any more.
    #[error("the connection is lost: {0}")]
    Lost(io::Error),
    /// What arrives makes no sense.
    #[error("what arrives is not skep's migration: {0}")]
    Protocol(String),
    /// The other side is newer.
    #[error(
        "the source speaks version {found} of the protocol, and this skep up to version {newest}\n  try: skep {skep}, or a later one"
    )]
    Version {
        /// Its version.
        found: u32,
        /// The newest version here.
        newest: u32,
        /// The source's skep.
        skep: String,
    },
    /// It needs what this skep does not know of.
    #[error("the source requires `{name}`, which this skep does not know\n  try: skep {skep}, or a later one")]
    Requires {
        /// What.
        name: String,
        /// The source's skep.
        skep: String,
    },
    /// The state.
    #[error(transparent)]
    State(#[from] SnapshotError),
    /// Somebody wanted it to end.
    #[error("it was cancelled")]
    Cancelled,
    /// The machine ends.
    #[error("the machine ends before it has moved")]
    Ended,
    /// The user has decided that it runs here.
    #[error("nobody has said whether the machine runs there, and it was taken back")]
    TakenBack,
    /// An image that was given away is another's.
    #[error("{0}: the machine stands still\n  try: end who uses the image, and `skep ctl SOCKET resume`")]
    Stranded(SnapshotError),
}

impl MigrateError {
    pub(super) fn host(what: &'static str, address: &impl ToString) -> impl FnOnce(io::Error) -> Self {
        let address = address.to_string();
        move |source| Self::Host { what, address, source }
    }
}
