//! One connection to a backend: requests and their answers, each within its time.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};

use super::error::TalkError;
use super::message::{HEADER, Header, MOST, NEED_REPLY, REPLY, Request, VERSION, VERSION_MASK};

/// Descriptors that one message can carry.
pub(crate) const MOST_FDS: usize = 8;

/// A socket to a backend. Whoever waits here is the device's own thread, or makes the device.
pub(crate) struct Connection {
    socket: Arc<UnixStream>,
    patience: Duration,
    /// `VHOST_USER_PROTOCOL_F_REPLY_ACK` was negotiated: each request is answered.
    pub(crate) answered: bool,
}

impl Connection {
    /// Connects to whoever listens at `path`.
    pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // One that listens and never accepts would make it wait.
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        connect(&socket, &address)?;
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Arc::new(socket), patience, answered: false })
    }

    /// The socket: to wait for, and to be hung up by others.
    pub(crate) fn socket(&self) -> &Arc<UnixStream> {
        &self.socket
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    fn wait(&self, flags: PollFlags, until: &Until) -> Result<(), TalkError> {
        loop {
            let left = until.end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&*self.socket, flags)], Some(&timeout)) {
                Ok(0) => return Err(TalkError::Silent(until.patience)),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(TalkError::Io(error.into())),
            }
        }
    }

    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], until: &Until) -> Result<(), TalkError> {
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // They go with the first byte.
            if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(TalkError::Io(io::ErrorKind::InvalidInput.into()));
            }
            match sendmsg(&*self.socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, until)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(TalkError::Closed),
                Err(error) => return Err(TalkError::Io(error.into())),
            }
        }
        Ok(())
    }

    fn receive(&self, bytes: &mut [u8], until: &Until) -> Result<(), TalkError> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match (&*self.socket).read(rest) {
                Ok(0) => return Err(TalkError::Closed),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(PollFlags::IN, until)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(TalkError::Closed),
                Err(error) => return Err(TalkError::Io(error)),
            }
        }
        Ok(())
    }

    fn answer(&self, request: Request, until: &Until) -> Result<Vec<u8>, TalkError> {
        let mut header = [0; HEADER];
        self.receive(&mut header, until)?;
        let header = Header::read(&header);
        if header.flags & VERSION_MASK != VERSION || header.flags & REPLY == 0 {
            return Err(TalkError::Nonsense("it is no reply"));
        }
        if header.request != request as u32 {
            return Err(TalkError::Nonsense("it is to another request"));
        }
        let size = header.size as usize;
        if size > MOST {
            return Err(TalkError::Nonsense("it is longer than any can be"));
        }
        let mut body = vec![0; size];
        self.receive(&mut body, until)?;
        Ok(body)
    }

    /// Sends a request that has an answer of its own, and answers that; it may take `patience`.
    pub(crate) fn ask(&mut self, request: Request, body: &[u8], patience: Duration) -> Result<Vec<u8>, TalkError> {
        let until = Until { end: Instant::now() + patience, patience };
        self.send(&message(request, VERSION, body), &[], &until)?;
        self.answer(request, &until)
    }

    /// Asks for a number.
    pub(crate) fn ask_number(&mut self, request: Request) -> Result<u64, TalkError> {
        number(&self.ask(request, &[], self.patience)?)
    }

    /// Sends a request that has no answer but that it was done, where that was negotiated.
    pub(crate) fn tell(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let until = Until { end: Instant::now() + self.patience, patience: self.patience };
        let flags = if self.answered { VERSION | NEED_REPLY } else { VERSION };
        self.send(&message(request, flags, body), fds, &until)?;
        if !self.answered || number(&self.answer(request, &until)?)? == 0 { Ok(()) } else { Err(TalkError::Refused) }
    }

    /// Tells a number.
    pub(crate) fn tell_number(&mut self, request: Request, number: u64) -> Result<(), TalkError> {
        self.tell(request, &number.to_le_bytes(), &[])
    }

    /// Whether the backend is there, and silent, as it must be between two requests.
    pub(crate) fn check(&self) -> Result<(), TalkError> {
        match recv(&*self.socket, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(TalkError::Closed),
            Ok(_) => Err(TalkError::Nonsense("nothing was asked")),
            Err(error) => Err(TalkError::Io(error.into())),
        }
    }
}

/// How long a request may take.
struct Until {
    end: Instant,
    patience: Duration,
}

fn message(request: Request, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = Header { request: request as u32, flags, size: body.len() as u32 };
    [header.bytes(), body.to_vec()].concat()
}

fn number(body: &[u8]) -> Result<u64, TalkError> {
    body.try_into().map(u64::from_le_bytes).map_err(|_| TalkError::Nonsense("it is no number"))
}
