//! The host's end of a console's port: a Unix socket, at which one program at a time is connected with the guest.
//!
//! What the guest sends while nobody is there waits for the next one, and holds the guest up when there is too much of it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;

use crate::leftover::Leftover;
use crate::listen::{ListenError, bind_at};

#[cfg(test)]
#[path = "port_test.rs"]
mod test;

/// Bytes moved at once.
const CHUNK: usize = 4096;

/// Listens at `path`, and answers the stream that leads there. The socket goes when that is closed.
pub(super) fn open(path: &Path) -> Result<UnixStream, ListenError> {
    let host = |source| ListenError::Host { path: path.to_owned(), source };
    let (listener, name) = bind_at(path, Some(Mode::RUSR | Mode::WUSR))?;
    let (ours, devices) = UnixStream::pair().map_err(host)?;
    for end in [&ours, &devices] {
        end.set_nonblocking(true).map_err(host)?;
    }
    let relay =
        Relay { listener, _name: name, client: None, device: Some(ours), to_client: Vec::new(), to_device: Vec::new() };
    thread::Builder::new().name("port".to_owned()).spawn(move || relay.run()).map_err(host)?;
    Ok(devices)
}

struct Relay {
    listener: UnixListener,
    _name: Leftover,
    client: Option<UnixStream>,
    /// Until it has closed its end.
    device: Option<UnixStream>,
    /// What has been read and not yet been written.
    to_client: Vec<u8>,
    to_device: Vec<u8>,
}

/// Reads a chunk; `false` at the stream's end.
fn read(from: &mut UnixStream, into: &mut Vec<u8>) -> bool {
    let mut chunk = [0; CHUNK];
    match from.read(&mut chunk) {
        Ok(0) => false,
        Ok(len) => {
            into.extend_from_slice(chunk.get(..len).unwrap_or_default());
            true
        }
        Err(error) => is_passing(&error),
    }
}

/// Writes what it takes; `false` where nobody reads it any more.
fn write(to: &mut UnixStream, from: &mut Vec<u8>) -> bool {
    match to.write(from) {
        Ok(len) => {
            from.drain(..len);
            true
        }
        Err(error) => is_passing(&error),
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Relay {
    fn run(mut self) {
        // A device that has gone is heard out by who is there.
        while self.device.is_some() || self.client.is_some() && !self.to_client.is_empty() {
            if self.wait().is_err() {
                return;
            }
            self.work();
        }
    }

    /// Waits until something can be done. A stream that has hung up is not looked at while nothing can be done with it, since it is ready for
    /// ever.
    fn wait(&self) -> rustix::io::Result<()> {
        let mut list = Vec::with_capacity(2);
        let events = |read: bool, write: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, read);
            events.set(PollFlags::OUT, write);
            events
        };
        if let Some(device) = &self.device {
            let read = self.client.is_some() && self.to_client.is_empty();
            let events = events(read, !self.to_device.is_empty());
            if !events.is_empty() || self.client.is_none() {
                list.push(PollFd::from_borrowed_fd(device.as_fd(), events));
            }
        }
        match &self.client {
            Some(client) => {
                let events = events(self.to_device.is_empty() && self.device.is_some(), !self.to_client.is_empty());
                if !events.is_empty() {
                    list.push(PollFd::from_borrowed_fd(client.as_fd(), events));
                }
            }
            None => list.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN)),
        }
        match poll(&mut list, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn work(&mut self) {
        if self.client.is_none()
            && let Ok((client, _)) = self.listener.accept()
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
        }
        if let Some(device) = &mut self.device {
            if !self.to_device.is_empty() && !write(device, &mut self.to_device) {
                // It hears nothing more, and may have said something.
                self.to_device.clear();
            }
            let stays = match (&self.client, self.to_client.is_empty()) {
                (Some(_), true) => read(device, &mut self.to_client),
                (Some(_), false) => true,
                // What it says waits for somebody, but that it goes is seen.
                (None, _) => !has_hung_up(device),
            };
            if !stays {
                self.device = None;
            }
        }
        if let Some(client) = &mut self.client {
            let goes = self.to_client.is_empty() || write(client, &mut self.to_client);
            let stays = !self.to_device.is_empty() || read(client, &mut self.to_device);
            if !goes || !stays {
                self.client = None;
            }
        }
    }
}

fn has_hung_up(stream: &UnixStream) -> bool {
    let mut list = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut list, Some(&now)).is_ok() && list[0].revents().contains(PollFlags::HUP)
}
