//! The channel by which a backend speaks of its own accord.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use super::message::{CONFIG_CHANGED, HEADER, Header, MOST, NEED_REPLY, REPLY, VERSION};

/// Messages of one look.
const BATCH: usize = 16;

/// Our end.
pub(crate) struct Channel {
    socket: UnixStream,
    /// What has come of messages that are not whole.
    input: Vec<u8>,
}

/// What a backend has said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Its configuration has changed.
    pub(crate) config_changed: bool,
    /// There may be more.
    pub(crate) more: bool,
}

impl Channel {
    /// Our end, and the backend's.
    pub(crate) fn new() -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Self { socket: ours, input: Vec::new() }, theirs))
    }

    /// Takes what has come: a bounded share of it.
    ///
    /// # Errors
    /// Where the backend has closed it, or what it says is none.
    pub(crate) fn listen(&mut self) -> io::Result<Said> {
        let mut said = Said::default();
        for _ in 0..BATCH {
            let mut bytes = [0; 512];
            match (&self.socket).read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.input.extend(bytes.iter().take(read)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(said),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            while let Some(header) = self.input.first_chunk().map(Header::read) {
                let size = header.size as usize;
                if size > MOST {
                    return Err(ErrorKind::InvalidData.into());
                }
                if self.input.len() < HEADER + size {
                    break;
                }
                self.input.drain(..HEADER + size);
                said.config_changed |= header.request == CONFIG_CHANGED;
                self.answer(header)?;
            }
        }
        said.more = true;
        Ok(said)
    }

    fn answer(&self, header: Header) -> io::Result<()> {
        if header.flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let done = u64::from(header.request != CONFIG_CHANGED);
        let reply = Header { flags: VERSION | REPLY, size: 8, ..header };
        // One that asks and does not read has gone wrong.
        (&self.socket).write_all(&[reply.bytes(), done.to_le_bytes().to_vec()].concat())
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}
