//! A connection: a stream of the host, and what the guest has been told of it.

use std::io::{self, Read, Write};
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{NO_RECEIVE, NO_SEND, Packet, Ports, op};

/// Bytes that a guest may send before the host has taken them.
pub(super) const BUFFER: u32 = 64 * 1024;
/// The longest line by which a host's program says which port it wants, in bytes.
const LONGEST_LINE: usize = 32;

bitflags::bitflags! {
    /// What the guest is still to be told. Each is told once, so that it needs no queue.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct News: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT = 4;
        const SHUTDOWN = 8;
        const RESET = 16;
    }
}

/// How far a connection has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// The host's program has not yet said which port it wants; what it has said.
    Asking(Vec<u8>),
    /// The guest has not yet answered.
    Requested,
    Open,
}

/// A connection.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) ports: Ports,
    pub(super) news: News,
    stage: Stage,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// What the guest has sent and the host not yet taken: up to [`BUFFER`] bytes.
    output: Vec<u8>,
    /// Bytes that have gone to the host, and how many of them the guest was told of.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// Bytes that have gone to the guest, and what it last said of its room.
    sent: Wrapping<u32>,
    room: u32,
    taken: Wrapping<u32>,
    /// What the guest has shut down, and what the host has.
    guest_shut: u32,
    host_shut: u32,
}

impl Connection {
    fn new(stream: UnixStream, ports: Ports, stage: Stage) -> Self {
        Self {
            stream,
            ports,
            news: News::empty(),
            stage,
            readable: true,
            writable: true,
            output: Vec::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            room: 0,
            taken: Wrapping(0),
            guest_shut: 0,
            host_shut: 0,
        }
    }

    /// One that a program of the host wants, from host port `host`.
    pub(super) fn from_host(stream: UnixStream, host: u32) -> Self {
        Self::new(stream, Ports { guest: 0, host }, Stage::Asking(Vec::new()))
    }

    /// One that the guest has asked for, and the host has accepted.
    pub(super) fn from_guest(stream: UnixStream, request: &Packet) -> Self {
        let mut connection = Self::new(stream, request.ports, Stage::Open);
        connection.credit(request);
        connection.news = News::RESPONSE;
        connection
    }

    fn credit(&mut self, packet: &Packet) {
        (self.room, self.taken) = (packet.buf_alloc, Wrapping(packet.fwd_cnt));
    }

    /// How many bytes the guest has room for.
    fn free(&self) -> u32 {
        self.room.saturating_sub((self.sent - self.taken).0)
    }

    /// Reads the line `CONNECT PORT` of a host's program, and says whether it is there.
    ///
    /// # Errors
    /// When it is another one, or the program has gone.
    pub(super) fn ask(&mut self) -> io::Result<bool> {
        let Stage::Asking(line) = &mut self.stage else { return Ok(false) };
        // Byte by byte, since what follows the line is for the guest.
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => break,
                Ok(_) if line.len() >= LONGEST_LINE => return Err(io::ErrorKind::InvalidData.into()),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        let text = std::str::from_utf8(line).unwrap_or_default();
        let port = text.trim_end().strip_prefix("CONNECT ").and_then(|port| port.parse().ok());
        self.ports.guest = port.ok_or(io::ErrorKind::InvalidData)?;
        self.stage = Stage::Requested;
        self.news |= News::REQUEST;
        Ok(true)
    }

    /// Whether the host's program still has to say which port it wants.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Asking(_))
    }

    /// Takes a packet of the guest's, and `data` with it. Says whether the connection goes on; if not, the guest is to be told.
    pub(super) fn take(&mut self, packet: &Packet, data: &[u8]) -> bool {
        self.credit(packet);
        match (packet.op, &self.stage) {
            (op::RESPONSE, Stage::Requested) => {
                self.stage = Stage::Open;
                // The program's own answer, which has room in a socket that is new.
                let answer = format!("OK {}\n", self.ports.host);
                matches!(self.stream.write(answer.as_bytes()), Ok(len) if len == answer.len())
            }
            // What is more than the guest has credit for is refused.
            (op::RW, Stage::Open) if self.output.len() + data.len() <= BUFFER as usize => {
                self.output.extend_from_slice(data);
                self.flush()
            }
            (op::CREDIT_REQUEST, Stage::Open) => {
                self.news |= News::CREDIT;
                true
            }
            (op::CREDIT_UPDATE, _) => true,
            (op::SHUTDOWN, Stage::Open) => {
                self.guest_shut |= packet.flags & (NO_RECEIVE | NO_SEND);
                self.flush()
            }
            _ => false,
        }
    }

    /// Gives the host what it takes. Says whether the connection goes on.
    pub(super) fn flush(&mut self) -> bool {
        while self.writable && !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(len) => {
                    self.output.drain(..len);
                    self.forwarded += len as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_gone) => return false,
            }
        }
        // The guest is told before it has nothing left.
        if (self.forwarded - self.told).0 >= BUFFER / 2 {
            self.news |= News::CREDIT;
        }
        if self.output.is_empty() && self.guest_shut & NO_SEND != 0 {
            // It fails where the host has gone already.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
            return self.guest_shut & NO_RECEIVE == 0;
        }
        true
    }

    /// Whether data for the guest may be there, and it has room.
    pub(super) fn has_data(&self) -> bool {
        let open = self.stage == Stage::Open && (self.guest_shut & NO_RECEIVE) | (self.host_shut & NO_SEND) == 0;
        open && self.readable && self.free() > 0
    }

    /// Reads data for the guest, as much as it and `into` have room for; `None` when there is none now.
    pub(super) fn data(&mut self, into: &mut [u8]) -> Option<usize> {
        let len = into.len().min(self.free() as usize);
        match self.stream.read(into.get_mut(..len)?) {
            Ok(len) if len > 0 => {
                self.sent += len as u32;
                return Some(len);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // It sends no more; whether it still receives shows when it is sent something.
            _ => {
                self.host_shut |= NO_SEND;
                self.news |= News::SHUTDOWN;
            }
        }
        self.readable = false;
        None
    }

    /// The host's program has gone altogether.
    pub(super) fn hang_up(&mut self) {
        self.readable = true;
        self.host_shut |= NO_RECEIVE;
        if self.host_shut & NO_SEND != 0 {
            self.news |= News::SHUTDOWN;
        }
    }

    /// A packet about this connection.
    pub(super) fn packet(&mut self, op: u16, len: u32) -> Packet {
        self.told = self.forwarded;
        self.news -= News::CREDIT;
        let flags = if op == op::SHUTDOWN { self.host_shut } else { 0 };
        Packet { ports: self.ports, len, op, flags, buf_alloc: BUFFER, fwd_cnt: self.forwarded.0 }
    }

    /// The next piece of news as a packet. Its data come before a shutdown.
    pub(super) fn tell(&mut self) -> Option<Packet> {
        let news = self.news.iter().next()?;
        let op = match news {
            News::REQUEST => op::REQUEST,
            News::RESPONSE => op::RESPONSE,
            News::CREDIT => op::CREDIT_UPDATE,
            News::SHUTDOWN => op::SHUTDOWN,
            _ => op::RST,
        };
        self.news -= news;
        Some(self.packet(op, 0))
    }

    /// Whether the guest is to be told that it has ended: the last that it is told.
    pub(super) fn is_reset(&self) -> bool {
        self.news == News::RESET
    }

    /// Ends it: the guest is told nothing else.
    pub(super) fn reset(&mut self) {
        self.news = News::RESET;
        self.readable = false;
        self.output.clear();
    }
}
