//! A backend of a test: it echoes what it reads, and does wrong what it is told to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

use super::connection::MOST_FDS;
use super::message::{
    CONFIG_CHANGED, HEADER, Header, NEED_REPLY, PROTOCOL_FEATURES, REPLY, Request, VERSION, of_words, protocol, words,
};
use crate::feature;

/// What goes wrong at one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is closed instead of an answer.
    Close,
    /// No answer comes.
    Hang,
    /// This comes instead.
    Answer(Vec<u8>),
}

/// When buffers are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    AtOnce,
    /// When the queue stops.
    AtStop,
    /// A while after the backend has said that it has stopped.
    AfterStop,
    /// A card's queues: what is sent by the second of a pair comes by the first, if that has a buffer.
    Loop,
    Never,
}

/// What a backend can do, and does.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    pub(crate) features: u64,
    pub(crate) protocol: u64,
    pub(crate) queues: u64,
    pub(crate) config: Vec<u8>,
    pub(crate) pace: Pace,
    /// At which request, and what; it happens once.
    pub(crate) fault: Option<(Request, Fault)>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            features: feature::VERSION_1 | feature::INDIRECT | PROTOCOL_FEATURES,
            protocol: protocol::MQ
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::BACKEND_REQ
                | protocol::RESET_DEVICE,
            queues: 4,
            config: vec![0; super::kind::CONFIG_SIZE],
            pace: Pace::AtOnce,
            fault: None,
        }
    }
}

#[derive(Default)]
struct Inner {
    log: Vec<u32>,
    /// The virtio features that were set last.
    features: u64,
    /// The connection made last, and its channel.
    connection: Option<UnixStream>,
    channel: Option<UnixStream>,
}

/// A backend that accepts connections, until it is dropped.
pub(crate) struct TestBackend {
    folder: TempDir,
    inner: Arc<Mutex<Inner>>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl TestBackend {
    pub(crate) fn start(behaviour: Behaviour) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let inner = Arc::<Mutex<Inner>>::default();
        let behaviour = Arc::new(Mutex::new(behaviour));
        let (theirs, how) = (inner.clone(), behaviour.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                theirs.lock().unwrap().connection = Some(stream.try_clone().unwrap());
                let (inner, behaviour) = (theirs.clone(), how.clone());
                thread::spawn(move || Served::new(stream, inner, behaviour).run());
            }
        });
        Self { folder, inner, behaviour }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Lets it behave in another way from now on.
    pub(crate) fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<u32> {
        self.inner.lock().unwrap().log.clone()
    }

    /// The virtio features that the driver has taken.
    pub(crate) fn features(&self) -> u64 {
        self.inner.lock().unwrap().features
    }

    /// Closes the connection made last.
    pub(crate) fn close(&self) {
        let inner = self.inner.lock().unwrap();
        inner.connection.as_ref().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Says something of its own accord, on the connection or the channel.
    pub(crate) fn say(&self, on_channel: bool, bytes: &[u8]) {
        let inner = self.inner.lock().unwrap();
        let stream = if on_channel { &inner.channel } else { &inner.connection };
        stream.as_ref().unwrap().write_all(bytes).unwrap();
    }

    /// Has another configuration, and says so; what is answered to that, where an answer is asked for.
    pub(crate) fn change_config(&self, config: Vec<u8>) -> u64 {
        self.behave(|behaviour| behaviour.config = config);
        self.say(true, &Header { request: CONFIG_CHANGED, flags: VERSION | NEED_REPLY, size: 0 }.bytes());
        let mut channel = self.inner.lock().unwrap().channel.as_ref().unwrap().try_clone().unwrap();
        let mut reply = [0; HEADER + 8];
        channel.read_exact(&mut reply).unwrap();
        u64::from_le_bytes(reply[HEADER..].try_into().unwrap())
    }
}

#[derive(Default)]
struct Ring {
    size: u32,
    next: u16,
    /// Taken and not used.
    held: Vec<u16>,
    /// What the first of them is given.
    said: Vec<u8>,
    /// Descriptors, used and available ring.
    places: [u64; 3],
    call: Option<File>,
    kick: Option<File>,
    enabled: bool,
}

/// A connection.
struct Served {
    stream: UnixStream,
    inner: Arc<Mutex<Inner>>,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Guest address, size, file and offset there.
    memory: Vec<(u64, u64, File, u64)>,
    rings: BTreeMap<u32, Ring>,
}

impl Served {
    fn new(stream: UnixStream, inner: Arc<Mutex<Inner>>, behaviour: Arc<Mutex<Behaviour>>) -> Self {
        Self { stream, inner, behaviour, memory: Vec::new(), rings: BTreeMap::new() }
    }

    fn run(mut self) {
        while let Some(served) = self.round() {
            if !served {
                return;
            }
        }
    }

    /// Does what there is; `None` at the end of the connection.
    fn round(&mut self) -> Option<bool> {
        let kicked: Vec<u32> = {
            let kicks: Vec<(u32, &File)> =
                self.rings.iter().filter_map(|(index, ring)| Some((*index, ring.kick.as_ref()?))).collect();
            let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
            fds.extend(kicks.iter().map(|(_, kick)| PollFd::new(*kick, PollFlags::IN)));
            poll(&mut fds, None).unwrap();
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let kicked = kicks.iter().zip(&fds[1..]).filter(|(_, fd)| ready(fd)).map(|((index, _), _)| *index);
            let kicked = kicked.collect();
            if ready(&fds[0]) {
                drop(fds);
                return self.serve();
            }
            kicked
        };
        for index in kicked {
            let mut count = [0; 8];
            let _ = self.rings[&index].kick.as_ref().unwrap().read(&mut count);
            self.take(index);
        }
        Some(true)
    }

    fn serve(&mut self) -> Option<bool> {
        let mut bytes = [0; HEADER];
        let mut fds: Vec<OwnedFd> = Vec::new();
        {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let got = recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
            );
            if got.ok()?.bytes != HEADER {
                return None;
            }
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
        }
        let header = Header::read(&bytes);
        let mut body = vec![0; header.size as usize];
        self.stream.read_exact(&mut body).ok()?;
        self.inner.lock().unwrap().log.push(header.request);
        let fault = {
            let mut behaviour = self.behaviour.lock().unwrap();
            let now = behaviour.fault.as_ref().is_some_and(|(request, _)| *request as u32 == header.request);
            if now { behaviour.fault.take().map(|(_, fault)| fault) } else { None }
        };
        match fault {
            Some(Fault::Close) => {
                self.stream.shutdown(std::net::Shutdown::Both).unwrap();
                return None;
            }
            Some(Fault::Hang) => {
                // Until the other side closes it.
                let _ = self.stream.read_to_end(&mut Vec::new());
                return None;
            }
            Some(Fault::Answer(answer)) => {
                self.stream.write_all(&answer).ok()?;
                return Some(true);
            }
            None => {}
        }
        let answer = self.answer(header.request, &body, fds);
        let answer = answer.or_else(|| (header.flags & NEED_REPLY != 0).then(|| vec![0; 8]));
        if let Some(answer) = answer {
            let reply = Header { flags: VERSION | REPLY, size: answer.len() as u32, ..header };
            self.stream.write_all(&[reply.bytes(), answer].concat()).ok()?;
        }
        if header.request == Request::GetVringBase as u32 && self.pace() == Pace::AfterStop {
            self.finish(words(&body).next().unwrap());
        }
        Some(true)
    }

    fn pace(&self) -> Pace {
        self.behaviour.lock().unwrap().pace
    }

    /// The answer that a request has beside that it was done.
    fn answer(&mut self, request: u32, body: &[u8], fds: Vec<OwnedFd>) -> Option<Vec<u8>> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        let number = |number: u64| Some(number.to_le_bytes().to_vec());
        let word: Vec<u32> = words(body).collect();
        let file = fds.first().map(|fd| File::from(fd.try_clone().unwrap()));
        let is = |other: Request| request == other as u32;
        if is(Request::GetFeatures) {
            return number(behaviour.features);
        } else if is(Request::SetFeatures) {
            self.inner.lock().unwrap().features = u64::from_le_bytes(body.try_into().unwrap());
        } else if is(Request::GetProtocolFeatures) {
            return number(behaviour.protocol);
        } else if is(Request::GetQueueNum) {
            return number(behaviour.queues);
        } else if is(Request::GetConfig) {
            return Some([&body[..12], &behaviour.config].concat());
        } else if is(Request::SetConfig) {
            let at = word[0] as usize;
            self.behaviour.lock().unwrap().config[at..][..body.len() - 12].copy_from_slice(&body[12..]);
        } else if is(Request::SetBackendReqFd) {
            self.inner.lock().unwrap().channel = fds.into_iter().next().map(UnixStream::from);
        } else if is(Request::SetMemTable) {
            let numbers: Vec<u64> = body[8..].as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
            let part = |(region, fd): (&[u64], OwnedFd)| (region[2], region[1], File::from(fd), region[3]);
            self.memory = numbers.chunks(4).zip(fds).map(part).collect();
        } else if is(Request::GetVringBase) {
            if behaviour.pace == Pace::AtStop {
                self.finish(word[0]);
            }
            let ring = self.rings.get_mut(&word[0]).unwrap();
            ring.kick = None;
            return Some(of_words(&[word[0], ring.next.into()]));
        } else if let Some(index) = word.first().filter(|_| (8..=18).contains(&request)) {
            let ring = self.rings.entry(*index).or_default();
            match request {
                8 => ring.size = word[1],
                9 => {
                    let address = |at: usize| u64::from(word[at]) | u64::from(word[at + 1]) << 32;
                    ring.places = [address(2), address(4), address(6)];
                }
                10 => ring.next = word[1] as u16,
                12 => ring.kick = file,
                13 => ring.call = file,
                18 => ring.enabled = word[1] == 1,
                _ => {}
            }
            // What has been made available meanwhile; at first there is no kick yet.
            if request == 18 && ring.enabled && ring.kick.is_some() {
                self.take(*index);
            }
        }
        None
    }

    fn at(&self, gpa: u64) -> (&File, u64) {
        let part = self.memory.iter().find(|(base, size, ..)| (*base..base + size).contains(&gpa)).unwrap();
        (&part.2, part.3 + gpa - part.0)
    }

    fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let (file, offset) = self.at(gpa);
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        let (file, offset) = self.at(gpa);
        file.write_all_at(bytes, offset).unwrap();
    }

    /// Takes the next chain, if there is one.
    fn pop(&mut self, index: u32) -> bool {
        let Some(ring) = self.rings.get(&index).filter(|ring| ring.enabled) else { return false };
        let (available, size, next) = (ring.places[2], ring.size as u16, ring.next);
        let more = next != u16::from_le_bytes(self.read(available + 2));
        if more {
            let head = u16::from_le_bytes(self.read(available + 4 + u64::from(next % size) * 2));
            let ring = self.rings.get_mut(&index).unwrap();
            ring.next = next.wrapping_add(1);
            ring.held.push(head);
        }
        more
    }

    /// Takes what is available.
    fn take(&mut self, index: u32) {
        let pace = self.pace();
        if pace == Pace::Loop && index.is_multiple_of(2) {
            // It is taken for a frame.
            return;
        }
        while self.pop(index) {}
        match pace {
            Pace::AtOnce => drop(self.finish(index)),
            Pace::Loop => {
                for frame in self.finish(index) {
                    if self.pop(index - 1) {
                        self.rings.get_mut(&(index - 1)).unwrap().said = frame;
                        self.finish(index - 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// Uses what was taken: what a chain says is written into what it has room for. Answers what there was no room for.
    fn finish(&mut self, index: u32) -> Vec<Vec<u8>> {
        let ring = self.rings.get_mut(&index).unwrap();
        let (held, mut said) = (std::mem::take(&mut ring.held), std::mem::take(&mut ring.said));
        let mut rest = Vec::new();
        if held.is_empty() {
            return rest;
        }
        let ring = &self.rings[&index];
        let ([table, used, _], size) = (ring.places, ring.size as u16);
        let mut at = u16::from_le_bytes(self.read(used + 2));
        for head in held {
            let (mut len, mut next) = (0u32, Some(head));
            while let Some(number) = next {
                let descriptor: [u8; 16] = self.read(table + u64::from(number) * 16);
                let gpa = u64::from_le_bytes(descriptor[..8].try_into().unwrap());
                let room = u32::from_le_bytes(descriptor[8..12].try_into().unwrap());
                if descriptor[12] & 2 == 0 {
                    said.extend((0..u64::from(room)).map(|byte| self.read::<1>(gpa + byte)[0]));
                } else {
                    let part: Vec<u8> = said.drain(..said.len().min(room as usize)).collect();
                    self.write(gpa, &part);
                    len += part.len() as u32;
                }
                next = (descriptor[12] & 1 != 0).then(|| u16::from_le_bytes([descriptor[14], descriptor[15]]));
            }
            rest.push(std::mem::take(&mut said));
            self.write(used + 4 + u64::from(at % size) * 8, &of_words(&[head.into(), len]));
            at = at.wrapping_add(1);
            self.write(used + 2, &at.to_le_bytes());
        }
        if let Some(call) = &ring.call {
            let _ = rustix::io::write(call.as_fd(), &1u64.to_ne_bytes());
        }
        rest
    }
}
