//! Why a network can't be had.

use std::io;
use std::path::PathBuf;

/// Why a network can't be had or set up.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The host refuses an operation on a tap interface.
    #[error("can't {what} tap interface `{name}`: {source}{mend}")]
    Tap {
        /// What was being done.
        what: &'static str,
        /// Which interface.
        name: String,
        /// The host's error.
        source: io::Error,
        /// What would mend it, or nothing.
        mend: &'static str,
    },
    /// A name that no interface can have.
    #[error("`{0}` can't be an interface's name: it has 1 to 15 bytes and no slash")]
    Name(String),
    /// The program for user-mode networking can't be started or reached.
    #[error("can't {what} `{}`: {source}{mend}", path.display())]
    Passt {
        /// What was being done.
        what: &'static str,
        /// The program or its socket.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
        /// What would mend it, or nothing.
        mend: &'static str,
    },
    /// A queue pair that isn't there, or that is open already.
    #[error("queue pair {queue} can't be opened: the network has {count}, each of which is opened once")]
    Queue {
        /// Which pair.
        queue: u16,
        /// How many there are.
        count: u16,
    },
}
