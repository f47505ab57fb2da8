//! Unix sockets that skep listens on. Their names go when they do, and one that a killed process has left behind is replaced.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events};
use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use vmm_sys_util::timerfd::TimerFd;

use crate::leftover::Leftover;
use crate::run::{unwatch, watch};

#[cfg(test)]
#[path = "listen_test.rs"]
mod test;

/// What the loop's event is about: a client waits.
pub(crate) const LISTEN: u32 = u32::MAX;
/// What the loop's event is about: the time in which nobody is accepted has ended.
pub(crate) const RETRY: u32 = u32::MAX - 1;

/// How long no client is accepted after the host has refused one.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// struct sockaddr_un has 108 bytes, of which one ends the path (unix(7)).
const PATH_MAX: usize = 107;
/// Clients that wait to be accepted.
const BACKLOG: i32 = 128;

/// Why a socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It can't be made.
    #[error("socket {}: {source}", path.display())]
    Host {
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The path won't do.
    #[error("{} {why}\n  try: {mend}", path.display())]
    Unfit {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
        /// What would mend it.
        mend: &'static str,
    },
}

/// A socket on which skep listens, for the control loop.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    /// Ends the time in which nobody is accepted.
    retry: TimerFd,
    /// The host has refused the last client, and that was told.
    refused: bool,
    /// Whose it is, in messages.
    owner: &'static str,
    _name: Leftover,
}

impl Listener {
    /// Makes the socket at `path`, for `owner` in messages; it has `mode` from its first moment, or what the process gives new files.
    ///
    /// # Errors
    /// [`ListenError`].
    pub(crate) fn bind(path: &Path, owner: &'static str, mode: Option<Mode>) -> Result<Self, ListenError> {
        let (socket, name) = bind_at(path, mode)?;
        let retry =
            TimerFd::new().map_err(|error| ListenError::Host { path: path.to_owned(), source: error.into() })?;
        Ok(Self { socket, retry, refused: false, owner, _name: name })
    }

    /// Begins: [`LISTEN`] and [`RETRY`] are told to the subscriber from now on.
    pub(crate) fn begin(&self, ops: &mut EventOps<'_>) {
        self.listen(ops);
        watch(ops, Events::with_data(&self.retry, RETRY, EventSet::IN), self.owner);
    }

    /// Accepts no client until [`Listener::listen`].
    pub(crate) fn deafen(&self, ops: &mut EventOps<'_>) {
        unwatch(ops, &self.socket, self.owner);
    }

    /// Waits for clients.
    pub(crate) fn listen(&self, ops: &mut EventOps<'_>) {
        watch(ops, Events::with_data(&self.socket, LISTEN, EventSet::IN), self.owner);
    }

    /// Accepts the next client and makes of it, nonblocking, what `make` does. Where the host has no descriptor left the client waits, and
    /// the loop does not turn meanwhile.
    pub(crate) fn accept<T>(
        &mut self,
        ops: &mut EventOps<'_>,
        make: impl FnOnce(UnixStream) -> io::Result<T>,
    ) -> Option<T> {
        let client = self.socket.accept().and_then(|(client, _)| {
            client.set_nonblocking(true)?;
            make(client)
        });
        match client {
            Ok(client) => {
                self.refused = false;
                return Some(client);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => self.pause(&error, ops),
            },
        }
        None
    }

    fn pause(&mut self, error: &io::Error, ops: &mut EventOps<'_>) {
        if !std::mem::replace(&mut self.refused, true) {
            let advice = if error.raw_os_error() == Some(libc::EMFILE) { " (try: ulimit -n 4096)" } else { "" };
            tracing::warn!("{}: a client can't be accepted yet: {error}{advice}", self.owner);
        }
        match self.retry.reset(RETRY_AFTER, None) {
            Ok(()) => self.deafen(ops),
            Err(error) => tracing::error!("{}: the timer can't be set: {error}", self.owner),
        }
    }

    /// Listens again after a pause: for [`RETRY`].
    pub(crate) fn go_on(&mut self, ops: &mut EventOps<'_>) {
        // It is no longer ready then.
        if let Err(error) = self.retry.clear() {
            tracing::error!("{}: the timer can't be stopped: {error}", self.owner);
        }
        self.listen(ops);
    }
}

/// Makes a socket at `path` that listens and does not block; it has `mode` from its first moment, or what the process gives new files.
///
/// # Errors
/// [`ListenError`].
pub(crate) fn bind_at(path: &Path, mode: Option<Mode>) -> Result<(UnixListener, Leftover), ListenError> {
    if path.as_os_str().len() > PATH_MAX {
        let (why, mend) = ("is too long for a socket", "a path of at most 107 bytes; a relative one may be shorter");
        return Err(ListenError::Unfit { path: path.to_owned(), why, mend });
    }
    clear_stale(path)?;
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        if let Some(mode) = mode {
            // The name takes it over from the socket, less the process's mask.
            fchmod(&socket, mode)?;
        }
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        let name = Leftover::file(path)?;
        listen(&socket, BACKLOG)?;
        Ok((socket.into(), name))
    };
    make().map_err(|source: io::Error| ListenError::Host { path: path.to_owned(), source })
}

/// Removes a socket that a killed process has left behind; one that is listened on stays.
fn clear_stale(path: &Path) -> Result<(), ListenError> {
    let taken = |why, mend| Err(ListenError::Unfit { path: path.to_owned(), why, mend });
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            taken("exists, and is no socket", "name another path for the socket, or remove it")
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|source| ListenError::Host { path: path.to_owned(), source })
            }
            _ => taken("is another process's socket", "name another path for the socket, or end that process"),
        },
        Err(_) => Ok(()),
    }
}
