//! Opens or makes what a serial port leads to.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use skep_config::Serial;

use super::output::{Manner, Sink};

/// Why a console can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// A path can't be opened or made.
    #[error("console: {what} {}: {source}", path.display())]
    Path {
        /// What was to be there.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A path is taken.
    #[error("console: {} {why}\n  try: {mend}", path.display())]
    Taken {
        /// The path.
        path: PathBuf,
        /// By what.
        why: &'static str,
        /// What would mend it.
        mend: &'static str,
    },
    /// The host refuses something else.
    #[error("console: {what}: {source}")]
    Host {
        /// What.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
}

impl ConsoleError {
    pub(super) fn host(what: &'static str, source: io::Error) -> Self {
        ConsoleError::Host { what, source }
    }

    fn path(what: &'static str, path: &Path, source: io::Error) -> Self {
        ConsoleError::Path { what, path: path.to_owned(), source }
    }
}

/// A name on the host that goes when the console does.
#[derive(Debug)]
pub(super) struct Leftover(PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("console: {} can't be removed: {error}", self.0.display());
        }
    }
}

/// The ends of a console.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) sink: Option<Sink>,
    pub(super) input: Option<File>,
    /// The input is the user's terminal.
    pub(super) terminal: bool,
    pub(super) listener: Option<UnixListener>,
    /// A pty's other end, which we keep open so that the pty lives while no client has it.
    pub(super) peer: Option<File>,
    pub(super) leftovers: Vec<Leftover>,
    pub(super) announcement: Option<String>,
}

impl Place {
    pub(super) fn open(serial: &Serial) -> Result<Self, ConsoleError> {
        match serial {
            Serial::None => Ok(Place::default()),
            Serial::Stdio => Self::stdio(),
            Serial::File(path) => Self::file(path),
            Serial::Pty { link } => Self::pty(link.as_deref()),
            Serial::Socket(path) => Self::socket(path),
        }
    }

    fn stdio() -> Result<Self, ConsoleError> {
        let duplicate = |fd: io::Result<OwnedFd>| {
            fd.map(File::from).map_err(|e| ConsoleError::host("standard input and output", e))
        };
        let input = duplicate(io::stdin().as_fd().try_clone_to_owned())?;
        let output = duplicate(io::stdout().as_fd().try_clone_to_owned())?;
        let terminal = isatty(&input);
        let announcement = "the guest's console is this terminal: Ctrl-] q ends the machine, Ctrl-] h shows more";
        let announcement = terminal.then(|| announcement.to_owned());
        let input = own_description(&input, OpenOptions::new().read(true)).unwrap_or(input);
        Ok(Place { sink: Some(shared_sink(output)), input: Some(input), terminal, announcement, ..Place::default() })
    }

    fn file(path: &Path) -> Result<Self, ConsoleError> {
        // A FIFO that nobody reads, or a terminal line, must not hold up the start.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path);
        let file = file.map_err(|e| ConsoleError::path("file", path, e))?;
        let manner = if is_regular(&file) { Manner::Patient } else { Manner::Nonblocking };
        Ok(Place { sink: Some(Sink::new(file, manner)), ..Place::default() })
    }

    fn pty(link: Option<&Path>) -> Result<Self, ConsoleError> {
        let (output, peer, name) = new_pty().map_err(|e| ConsoleError::host("a new pty", e))?;
        let input = output.try_clone().map_err(|e| ConsoleError::host("a new pty", e))?;
        let mut leftovers = Vec::new();
        let mut announcement = format!("the guest's console is {}", name.display());
        if let Some(link) = link {
            match fs::symlink_metadata(link) {
                Ok(there) if there.is_symlink() => {
                    fs::remove_file(link).map_err(|e| ConsoleError::path("pty link", link, e))?;
                }
                Ok(_) => {
                    let (why, mend) =
                        ("exists, and is no symbolic link", "name another path for the link to the pty, or remove it");
                    return Err(ConsoleError::Taken { path: link.to_owned(), why, mend });
                }
                Err(_) => {}
            }
            symlink(&name, link).map_err(|e| ConsoleError::path("pty link", link, e))?;
            leftovers.push(Leftover(link.to_owned()));
            announcement = format!("{announcement}, by {} too", link.display());
        }
        let sink = Some(Sink::new(output, Manner::Nonblocking));
        Ok(Place {
            sink,
            input: Some(input),
            peer: Some(peer),
            leftovers,
            announcement: Some(announcement),
            ..Place::default()
        })
    }

    fn socket(path: &Path) -> Result<Self, ConsoleError> {
        clear_stale_socket(path)?;
        let listener = UnixListener::bind(path).map_err(|e| ConsoleError::path("socket", path, e))?;
        let leftovers = vec![Leftover(path.to_owned())];
        listener.set_nonblocking(true).map_err(|e| ConsoleError::path("socket", path, e))?;
        let announcement = Some(format!("the guest's console is the socket {}", path.display()));
        Ok(Place { listener: Some(listener), leftovers, announcement, ..Place::default() })
    }
}

/// Removes a socket that a killed process has left behind; one that is listened on stays.
fn clear_stale_socket(path: &Path) -> Result<(), ConsoleError> {
    let taken = |why, mend| Err(ConsoleError::Taken { path: path.to_owned(), why, mend });
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            taken("exists, and is no socket", "name another path for the socket, or remove it")
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|e| ConsoleError::path("socket", path, e))
            }
            _ => taken("is another process's socket", "name another path for the socket, or end that process"),
        },
        Err(_) => Ok(()),
    }
}

/// A new pty: its controlling end, its other end in raw mode, and its name.
fn new_pty() -> io::Result<(File, File, PathBuf)> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&controller)?;
    unlockpt(&controller)?;
    let name = ptsname(&controller, Vec::new())?;
    let name = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let peer = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&name)?;
    // Else its line discipline would echo the guest's output back to it as input.
    let mut modes = tcgetattr(&peer)?;
    modes.make_raw();
    tcsetattr(&peer, OptionalActions::Now, &modes)?;
    rustix::io::ioctl_fionbio(&controller, true)?;
    Ok((controller.into(), peer, name))
}

/// The sink for a descriptor that other processes share.
fn shared_sink(file: File) -> Sink {
    if is_regular(&file) {
        return Sink::new(file, Manner::Patient);
    }
    match own_description(&file, OpenOptions::new().write(true)) {
        Some(own) => Sink::new(own, Manner::Nonblocking),
        None => Sink::new(file, Manner::Careful),
    }
}

/// A shared terminal or pipe, opened once more to have one that doesn't block: O_NONBLOCK on the shared one would surprise others.
///
/// There is none for a socket, for a terminal of another user (after `su`), or without /proc. A regular file would begin anew.
fn own_description(shared: &File, options: &mut OpenOptions) -> Option<File> {
    let path = format!("/proc/self/fd/{}", shared.as_raw_fd());
    let own = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    if is_regular(shared) { None } else { own.open(path).ok() }
}

fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|data| data.is_file())
}
