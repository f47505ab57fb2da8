//! Where the other side is, and the connection to it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::ioctl_fionbio;
use rustix::net::Shutdown;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use skep_memory::vm_memory::bitmap::BitmapSlice;
use skep_memory::vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::MigrateError;
use crate::Error;
use crate::leftover::Leftover;
use crate::listen::bind_at;

#[cfg(test)]
#[path = "link_test.rs"]
mod test;

/// How long one side waits for the other to take or to say something. A host that makes a machine, or has much to flush, is silent for a while.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long an address may take to answer.
const CONNECTING: Duration = Duration::from_secs(10);

/// The same of who has one question, or has not said yet who it is.
pub(super) const ASKING: Duration = Duration::from_secs(5);

/// Where a machine goes: `unix:PATH` or `tcp:HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A name or an address, and a port.
    Tcp(String),
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", place)) => {
                let port = place.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
                let port = port.and_then(|port| port.parse::<u16>().ok());
                port.map(|_| Self::Tcp(place.to_owned())).ok_or("it is tcp:HOST:PORT, as in tcp:192.0.2.7:4444")
            }
            _ => Err("it is unix:PATH or tcp:HOST:PORT"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

/// See [`Link::until`].
pub(super) struct Until<'a> {
    link: &'a Link,
    end: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        set_socket_timeout(&self.link.0, Timeout::Recv, Some(left))?;
        (&mut &*self.link).read(buffer)
    }
}

/// Connects to the first of a name's addresses that answers.
fn reach(place: &str) -> io::Result<TcpStream> {
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECTING) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A connection, whose reads and writes end with an error after [`PATIENCE`].
#[derive(Debug)]
pub(crate) struct Link(File);

impl Link {
    /// Connects to a skep that waits at `address`.
    pub(super) fn connect(address: &Address) -> Result<Self, MigrateError> {
        let stream = match address {
            Address::Unix(path) => UnixStream::connect(path).and_then(Self::new),
            Address::Tcp(place) => reach(place).and_then(Self::tcp),
        };
        stream.map_err(MigrateError::host("connect to", address))
    }

    pub(super) fn new(socket: impl Into<OwnedFd>) -> io::Result<Self> {
        let socket = socket.into();
        ioctl_fionbio(&socket, false)?;
        for direction in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, direction, Some(PATIENCE))?;
        }
        Ok(Self(socket.into()))
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // What is short decides something, and is to be heard at once.
        stream.set_nodelay(true)?;
        Self::new(stream)
    }

    /// Sets how long a read waits.
    pub(super) fn be_patient(&self, patience: Option<Duration>) -> Result<(), MigrateError> {
        set_socket_timeout(&self.0, Timeout::Recv, patience).map_err(|errno| MigrateError::Lost(errno.into()))
    }

    /// Reads from it that end with an error at `end`, whatever comes.
    pub(super) fn until(&self, end: Instant) -> Until<'_> {
        Until { link: self, end }
    }

    /// Another handle of the same connection.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Ends it, also for who reads or writes at the moment.
    pub(super) fn hang_up(&self) {
        // One that is broken has ended already.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl Read for &Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(into)
    }
}

impl Write for &Link {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        (&self.0).write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ReadVolatile for &Link {
    fn read_volatile<B: BitmapSlice>(&mut self, into: &mut VolatileSlice<'_, B>) -> Result<usize, VolatileMemoryError> {
        (&self.0).read_volatile(into)
    }
}

impl WriteVolatile for &Link {
    fn write_volatile<B: BitmapSlice>(&mut self, from: &VolatileSlice<'_, B>) -> Result<usize, VolatileMemoryError> {
        (&self.0).write_volatile(from)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, #[expect(dead_code, reason = "its name goes with it")] Leftover),
    Tcp(TcpListener),
}

/// Waits for a source.
#[derive(Debug)]
pub struct Listener(Socket);

impl Listener {
    /// Listens at `address`. A Unix socket is this user's alone.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn bind(address: &Address) -> Result<Self, Error> {
        Ok(Self(match address {
            Address::Unix(path) => {
                let (socket, name) = bind_at(path, Some(Mode::RUSR | Mode::WUSR)).map_err(MigrateError::Socket)?;
                Socket::Unix(socket, name)
            }
            Address::Tcp(place) => {
                let made = TcpListener::bind(place).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                });
                Socket::Tcp(made.map_err(MigrateError::host("listen at", address))?)
            }
        }))
    }

    /// The address at which it can be reached, where the host has chosen the port.
    pub fn port(&self) -> Option<u16> {
        match &self.0 {
            Socket::Unix(..) => None,
            Socket::Tcp(socket) => socket.local_addr().ok().map(|address| address.port()),
        }
    }

    /// Who has come, if anybody has.
    pub(super) fn accept(&self) -> io::Result<Option<Link>> {
        let link = match &self.0 {
            Socket::Unix(socket, _) => socket.accept().and_then(|(stream, _)| Link::new(stream)),
            Socket::Tcp(socket) => socket.accept().and_then(|(stream, _)| Link::tcp(stream)),
        };
        match link {
            Ok(link) => Ok(Some(link)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Waits until somebody comes, or `link` has something to say; or until `end`. Answers who.
    pub(super) fn wait(&self, link: Option<&Link>, end: Option<Instant>) -> io::Result<Heard> {
        let mut fds = vec![PollFd::new(self, PollFlags::IN)];
        fds.extend(link.map(|link| PollFd::new(link, PollFlags::IN)));
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout =
                left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(Heard::Nobody),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        // What was said before somebody came is heard first.
        match fds.get(1) {
            Some(fd) if !fd.revents().is_empty() => Ok(Heard::Link),
            _ => Ok(Heard::Newcomer),
        }
    }
}

/// What a listener has waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Link,
    Newcomer,
    Nobody,
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Socket::Unix(socket, _) => socket.as_fd(),
            Socket::Tcp(socket) => socket.as_fd(),
        }
    }
}
