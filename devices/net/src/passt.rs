//! User-mode networking by `passt`.
#![allow(unsafe_code)] // The child is given its socket by number.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::link::{GuestSlice, HEADER, Link, LinkInfo, LinkQueue, MAX_FRAME, Offloads};
use crate::{NetError, guest};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "passt_test.rs"]
pub(crate) mod test;

/// Bytes of the length before each frame.
const PREFIX: usize = 4;
/// The longest frame without the virtio header.
const MOST: usize = MAX_FRAME - HEADER;
/// The number by which the child knows its socket.
const CHILD_FD: i32 = 3;

/// How `passt` is started.
#[derive(Debug, Clone)]
pub struct PasstConfig {
    /// The program.
    pub program: PathBuf,
    /// What it is told besides: forwarded ports (`-t`, `-u`), addresses.
    pub arguments: Vec<OsString>,
}

impl Default for PasstConfig {
    fn default() -> Self {
        Self { program: "passt".into(), arguments: Vec::new() }
    }
}

/// User-mode networking: the guest's connections are the host user's own.
pub struct Passt {
    stream: Mutex<Option<UnixStream>>,
    child: Option<Child>,
}

impl Passt {
    /// Starts `passt`, which ends with this.
    ///
    /// # Errors
    /// [`NetError::Passt`].
    pub fn start(config: &PasstConfig) -> Result<Self, NetError> {
        let refused = |what, mend| move |source| NetError::Passt { what, path: config.program.clone(), source, mend };
        let (ours, theirs) = UnixStream::pair().map_err(refused("make a socket for", ""))?;
        let mut command = Command::new(&config.program);
        command.args(["--foreground", "--quiet", "--fd", &CHILD_FD.to_string()]).args(&config.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let fd = theirs.as_raw_fd();
        // SAFETY: between fork and exec it makes one system call, which may be made there; `theirs` is open until the child has started.
        unsafe {
            command.pre_exec(move || {
                // A duplicate is not closed by exec. Onto itself there is none, so the flag is cleared.
                let given = if fd == CHILD_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, CHILD_FD) };
                if given < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().map_err(refused("start", " (install passt, or name it)"))?;
        Self::over(ours, Some(child)).map_err(refused("reach", ""))
    }

    /// Connects to the socket of a `passt` that runs already.
    ///
    /// # Errors
    /// [`NetError::Passt`].
    pub fn connect(socket: &Path) -> Result<Self, NetError> {
        let refused = |source| NetError::Passt {
            what: "connect to the socket",
            path: socket.to_owned(),
            source,
            mend: " (start it by: passt --socket PATH)",
        };
        UnixStream::connect(socket).and_then(|stream| Self::over(stream, None)).map_err(refused)
    }

    fn over(stream: UnixStream, child: Option<Child>) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Mutex::new(Some(stream)), child })
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It ends by itself when its socket is closed; nobody waits for that.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Link for Passt {
    fn info(&self) -> LinkInfo {
        LinkInfo { queues: 1, offloads: Offloads::empty(), mtu: None }
    }

    fn open_queue(&self, queue: u16) -> Result<Box<dyn LinkQueue>, NetError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let stream = stream.filter(|_| queue == 0).ok_or(NetError::Queue { queue, count: 1 })?;
        Ok(Box::new(Stream::new(stream)))
    }

    fn set_offloads(&self, _offloads: Offloads) -> Result<(), NetError> {
        Ok(())
    }

    fn set_active_queues(&self, _count: u16) -> Result<(), NetError> {
        Ok(())
    }
}

/// Frames on a stream.
struct Stream {
    stream: UnixStream,
    /// What has come; `begin` to `end` has not been given to the guest.
    input: Box<[u8]>,
    begin: usize,
    end: usize,
    /// The rest of a frame that the host has taken in part.
    output: Vec<u8>,
    /// The other side has gone or talks nonsense.
    dead: bool,
}

impl Stream {
    fn new(stream: UnixStream) -> Self {
        let input = vec![0; 2 * (PREFIX + MOST)].into_boxed_slice();
        Self { stream, input, begin: 0, end: 0, output: Vec::new(), dead: false }
    }

    fn die(&mut self, why: &str) -> io::Error {
        if !self.dead {
            tracing::warn!("the guest's user-mode network has ended: {why}");
            self.dead = true;
        }
        io::ErrorKind::WouldBlock.into()
    }

    /// A whole frame of what has come.
    fn frame(&mut self) -> io::Result<Option<(usize, usize)>> {
        let waiting = self.input.get(self.begin..self.end).unwrap_or_default();
        let Some((prefix, rest)) = waiting.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MOST {
            return Err(self.die("a frame is longer than any can be"));
        }
        let from = self.begin + PREFIX;
        Ok((rest.len() >= len).then_some((from, from + len)))
    }

    fn fill(&mut self) -> io::Result<()> {
        self.input.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        let room = self.input.get_mut(self.end..).unwrap_or_default();
        match self.stream.read(room) {
            Ok(0) => Err(self.die("the other side closed it")),
            Ok(read) => {
                self.end += read;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            Err(error) => Err(self.die(&error.to_string())),
        }
    }
}

impl LinkQueue for Stream {
    fn send(&mut self, frame: &[GuestSlice<'_>]) -> io::Result<()> {
        self.flush()?;
        let len = guest::len(frame).saturating_sub(HEADER);
        if self.dead || len == 0 || len > MOST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.output.extend((len as u32).to_be_bytes());
        guest::copy_out(frame, HEADER, &mut self.output);
        match self.flush() {
            // The rest goes when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) => {
                    self.output.clear();
                    self.die(&error.to_string());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, room: &[GuestSlice<'_>]) -> io::Result<usize> {
        loop {
            if self.dead {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if let Some((from, to)) = self.frame()? {
                self.begin = to;
                let frame = self.input.get(from..to).unwrap_or_default();
                return Ok(guest::copy_in(&[&[0; HEADER], frame], room));
            }
            self.fill()?;
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
