//! What can be wrong with a backend.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a request has failed. A connection is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The socket.
    #[error("the connection fails: {0}")]
    Io(#[from] io::Error),
    /// The backend has ended, or wants no more of us.
    #[error("it has closed the connection")]
    Closed,
    /// Nothing has come for so long.
    #[error("it has not answered within {0:?}")]
    Silent(Duration),
    /// What it says breaks the protocol.
    #[error("its answer is none: {0}")]
    Nonsense(&'static str),
    /// It says that it has failed.
    #[error("it refuses")]
    Refused,
}

/// Why there is no device before a backend.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Nobody is there.
    #[error("can't connect to the vhost-user backend at `{}`: {source}{mend}", path.display())]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
        /// What would mend it.
        mend: &'static str,
    },
    /// A request has failed.
    #[error("the vhost-user backend at `{}`, asked for {request}: {source}", path.display())]
    Request {
        /// Its socket.
        path: PathBuf,
        /// The request's name in the protocol.
        request: &'static str,
        /// Why.
        source: TalkError,
    },
    /// It can't do what every such device needs.
    #[error("the vhost-user backend at `{}` lacks {what}\n  try: another program, or a newer one", path.display())]
    Lacks {
        /// Its socket.
        path: PathBuf,
        /// What, by the protocol's name.
        what: &'static str,
    },
    /// It has fewer queues.
    #[error(
        "the vhost-user backend at `{}` has {has} queues, and {wanted} are needed\n  try: fewer `queues`, or a backend started with more",
        path.display()
    )]
    Queues {
        /// Its socket.
        path: PathBuf,
        /// What it has.
        has: u64,
        /// What is needed.
        wanted: u16,
    },
    /// The host refuses a thread or a descriptor.
    #[error("can't start the thread of a vhost-user device: {0}")]
    Thread(io::Error),
}
