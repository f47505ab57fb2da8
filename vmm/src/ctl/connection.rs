//! One client: its lines, and what it has not read yet.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use event_manager::EventSet;

use super::protocol::MOST_LINE;

#[cfg(test)]
#[path = "connection_test.rs"]
mod test;

/// Requests under way at most; further ones wait in the host's own buffers.
const MOST_PENDING: usize = 16;
/// Output that a client has not read, from which on it is not listened to, in bytes.
const MOST_OUTPUT: usize = 64 << 10;
/// How much is read at once.
const CHUNK: usize = 4096;

/// What a connection gives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A line, its end not included.
    Line(Vec<u8>),
    /// The line is longer than one may be. Nothing follows.
    TooLong,
}

/// A client.
pub(super) struct Connection {
    /// The number by which the loop and replies know it.
    pub(super) number: u32,
    /// When it last said something, in the server's count.
    pub(super) spoke: u64,
    /// What the loop waits for.
    pub(super) watched: EventSet,
    stream: UnixStream,
    input: Vec<u8>,
    /// How much of `input` holds no end of a line.
    searched: usize,
    output: VecDeque<u8>,
    /// Requests that have no response yet.
    pending: usize,
    /// Nothing more comes, or is listened to.
    ended: bool,
    /// It takes no output any more. What it has said is still heard.
    deaf: bool,
    /// It has gone.
    broken: bool,
}

impl Connection {
    pub(super) fn new(number: u32, stream: UnixStream) -> Self {
        Self {
            number,
            spoke: 0,
            watched: EventSet::empty(),
            stream,
            input: Vec::new(),
            searched: 0,
            output: VecDeque::new(),
            pending: 0,
            ended: false,
            deaf: false,
            broken: false,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A request is under way.
    pub(super) fn begin(&mut self) {
        self.pending += 1;
    }

    /// A request has its response.
    pub(super) fn finish(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }

    /// Nothing of it is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.pending == 0
    }

    fn is_heard(&self) -> bool {
        self.pending < MOST_PENDING && self.output.len() < MOST_OUTPUT
    }

    /// Reads once.
    pub(super) fn read(&mut self) {
        if self.ended || !self.is_heard() {
            return;
        }
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.input.extend(chunk.iter().take(count)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
    }

    /// The next line, if the client is listened to now. Empty ones are skipped.
    pub(super) fn next(&mut self) -> Option<Input> {
        while self.is_heard() {
            let end = self.input.iter().skip(self.searched).position(|byte| *byte == b'\n');
            let length = end.map_or(self.input.len(), |end| self.searched + end);
            if length > MOST_LINE {
                (self.input, self.searched, self.ended) = (Vec::new(), 0, true);
                return Some(Input::TooLong);
            }
            if end.is_none() {
                self.searched = length;
                return None;
            }
            let mut line: Vec<u8> = self.input.drain(..=length).collect();
            self.searched = 0;
            line.pop();
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(Input::Line(line));
            }
        }
        None
    }

    /// Hands a line to the client, as far as it takes it now.
    pub(super) fn write(&mut self, line: &[u8]) {
        self.output.extend(line);
        self.flush();
    }

    /// Hands over what it takes now.
    pub(super) fn flush(&mut self) {
        while !self.output.is_empty() {
            let (bytes, _) = self.output.as_slices();
            match self.stream.write(bytes) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.deaf = true;
                    self.output.clear();
                }
            }
        }
    }

    /// What the loop is to wait for; nothing once it is over.
    pub(super) fn wanted(&self) -> Option<EventSet> {
        let over = self.ended && self.pending == 0 && self.output.is_empty();
        if self.broken || over {
            return None;
        }
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.ended && self.is_heard());
        wanted.set(EventSet::OUT, !self.output.is_empty());
        Some(wanted)
    }

    /// The other end has been closed: nobody reads any more.
    pub(super) fn hang_up(&mut self) {
        // What it has said before is still heard.
        if self.ended || !self.is_heard() {
            self.broken = true;
        }
    }
}
