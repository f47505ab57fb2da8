//! Opens or makes what a serial port leads to.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use skep_config::Serial;

use super::output::{Manner, Sink};
use crate::leftover::Leftover;
use crate::listen::{ListenError, Listener};

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
    /// A path won't do.
    #[error("console: {} {why}\n  try: {mend}", path.display())]
    Unfit {
        /// The path.
        path: PathBuf,
        /// Why not.
        why: &'static str,
        /// What would mend it.
        mend: &'static str,
    },
    /// Its socket can't be had.
    #[error("console: {0}")]
    Socket(#[source] ListenError),
    /// Output would overwrite what the machine is made from.
    #[error("console: {} is the {role} too, which the guest's output would overwrite\n  try: another file for the console", path.display())]
    Input {
        /// The path.
        path: PathBuf,
        /// What it is besides.
        role: &'static str,
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

/// The ends of a console.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) sink: Option<Sink>,
    /// The sink is a file whose former content goes.
    pub(super) empties: bool,
    pub(super) input: Option<File>,
    /// The input is the user's terminal.
    pub(super) terminal: bool,
    pub(super) listener: Option<Listener>,
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
        // It is emptied once the machine stands.
        let file = OpenOptions::new().write(true).create(true).truncate(false).custom_flags(flags).open(path);
        let file = file.map_err(|e| ConsoleError::path("file", path, e))?;
        let manner = if is_regular(&file) { Manner::Patient } else { Manner::Nonblocking };
        Ok(Place { sink: Some(Sink::new(file, manner)), empties: true, ..Place::default() })
    }

    fn pty(link: Option<&Path>) -> Result<Self, ConsoleError> {
        let (output, peer, name) = new_pty().map_err(|e| ConsoleError::host("a new pty", e))?;
        let input = output.try_clone().map_err(|e| ConsoleError::host("a new pty", e))?;
        let mut leftovers = Vec::new();
        let mut announcement = format!("the guest's console is {}", name.display());
        if let Some(link) = link {
            make_link(link, &name)?;
            leftovers.push(Leftover::link(link, &name).map_err(|e| ConsoleError::path("pty link", link, e))?);
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
        let listener = Listener::bind(path, "console", None).map_err(ConsoleError::Socket)?;
        let announcement = Some(format!("the guest's console is the socket {}", path.display()));
        Ok(Place { listener: Some(listener), announcement, ..Place::default() })
    }
}

/// Refuses a serial port whose file is one of `inputs`, by any name; each has its role.
///
/// # Errors
///
/// [`ConsoleError::Input`].
pub fn refuse_inputs<'a>(
    serial: &Serial,
    inputs: impl IntoIterator<Item = (&'static str, &'a Path)>,
) -> Result<(), ConsoleError> {
    let Serial::File(path) = serial else { return Ok(()) };
    let identity = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let Some(output) = identity(path) else { return Ok(()) };
    match inputs.into_iter().find(|(_, input)| identity(input) == Some(output)) {
        Some((role, _)) => Err(ConsoleError::Input { path: path.clone(), role }),
        None => Ok(()),
    }
}

/// Makes a link to a new pty. One that a killed process has left behind is replaced; anything else stays.
fn make_link(link: &Path, name: &Path) -> Result<(), ConsoleError> {
    let failed = |source| ConsoleError::path("pty link", link, source);
    let taken = |why, mend| Err(ConsoleError::Unfit { path: link.to_owned(), why, mend });
    match fs::symlink_metadata(link) {
        Ok(there) if there.is_symlink() => {
            let target = fs::read_link(link).map_err(failed)?;
            // The new pty may have the number of the one that went.
            if !target.starts_with("/dev/pts") || (target != name && target.exists()) {
                return taken(
                    "is a link already, and not one to a pty that has gone",
                    "name another path for the link to the pty, or remove it",
                );
            }
            fs::remove_file(link).map_err(failed)?;
        }
        Ok(_) => {
            return taken("exists, and is no symbolic link", "name another path for the link to the pty, or remove it");
        }
        Err(_) => {}
    }
    symlink(name, link).map_err(failed)
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
