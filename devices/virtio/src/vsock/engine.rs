//! The thread of a socket device's queues and connections.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use skep_memory::RamView;
use skep_worker::{EventSet, Sources};

use super::connection::Connection;
use super::packet::{HEADER, Packet, Ports, op};
use crate::engine::{Engine, Queues};
use crate::{ActiveQueue, QueueError};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (section 5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

/// The token of the listener; those of connections follow.
const LISTENER: u64 = 0;
/// Connections at once; whoever wants more is refused.
pub(super) const MOST_CONNECTIONS: usize = 1024;
/// Refusals that wait for the guest's buffers: then nothing is taken from the guest.
const MOST_REFUSALS: usize = 64;
/// The longest packet's data, in bytes, either way.
const MOST_DATA: usize = 64 * 1024;
/// Packets of one round, each way.
const BATCH: usize = 64;
/// From here on ports of the host are given to connections from the host.
const FIRST_PORT: u32 = 1 << 30;

/// All connections end.
pub(super) struct Forget;

pub(super) struct VsockEngine {
    cid: u64,
    path: PathBuf,
    listener: UnixListener,
    sources: Option<Sources>,
    /// By their tokens, which begin behind the listener's.
    connections: BTreeMap<u64, Connection>,
    next_token: u64,
    next_port: u32,
    /// After which connection the guest is told of the next one.
    turn: u64,
    acceptable: bool,
    refusals: VecDeque<Packet>,
    /// The guest is still to be told that its connections have ended.
    ended: Arc<AtomicBool>,
    data: Box<[u8]>,
}

impl VsockEngine {
    pub(super) fn new(cid: u64, path: PathBuf, listener: UnixListener, ended: Arc<AtomicBool>) -> Self {
        Self {
            cid,
            path,
            listener,
            sources: None,
            connections: BTreeMap::new(),
            next_token: LISTENER + 1,
            next_port: FIRST_PORT,
            turn: 0,
            acceptable: true,
            refusals: VecDeque::new(),
            ended,
            data: vec![0; MOST_DATA].into_boxed_slice(),
        }
    }

    fn add(&mut self, connection: Connection) {
        // Tokens of doorbells begin at 2^32; there are fewer connections than tokens.
        let mut token = self.next_token;
        while token > u64::from(u32::MAX) || self.connections.contains_key(&token) {
            token = if token > u64::from(u32::MAX) { LISTENER + 1 } else { token + 1 };
        }
        self.next_token = token + 1;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP;
        let watched =
            self.sources.as_ref().is_some_and(|sources| sources.add(&connection.stream, token, events).is_ok());
        if watched {
            self.connections.insert(token, connection);
        }
    }

    /// Takes the host's programs in.
    fn accept(&mut self) -> bool {
        let mut any = false;
        while self.acceptable && self.connections.len() < MOST_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    any = true;
                    if stream.set_nonblocking(true).is_ok() {
                        let port = self.next_port;
                        self.next_port = port.wrapping_add(1).max(FIRST_PORT);
                        self.add(Connection::from_host(stream, port));
                    }
                }
                Err(_none) => self.acceptable = false,
            }
        }
        any
    }

    /// Connects to the host's program behind a port, or says that there is none. A program that accepts nobody is none.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(UnixStream::from(socket))
    }

    /// The connection of these ports that the guest knows of.
    fn find(&self, ports: Ports) -> Option<u64> {
        let known = |(_, connection): &(&u64, &Connection)| connection.ports == ports && !connection.is_asking();
        self.connections.iter().find(known).map(|(token, _)| *token)
    }

    fn refuse(&mut self, ports: Ports) {
        self.refusals.push_back(Packet { ports, len: 0, op: op::RST, flags: 0, buf_alloc: 0, fwd_cnt: 0 });
    }

    /// Takes a packet of the guest's.
    fn take(&mut self, packet: &Packet, sound: bool, data: usize) {
        let found = if sound { self.find(packet.ports) } else { None };
        match (packet.op, found) {
            (op::RST, Some(token)) => drop(self.connections.remove(&token)),
            (op::RST, None) => {}
            (op::REQUEST, None) if sound && self.connections.len() < MOST_CONNECTIONS => {
                match self.connect(packet.ports.host) {
                    Ok(stream) => self.add(Connection::from_guest(stream, packet)),
                    Err(_nobody) => self.refuse(packet.ports),
                }
            }
            (_, Some(token)) => {
                let data = self.data.get(..data).unwrap_or_default();
                if let Some(connection) = self.connections.get_mut(&token)
                    && !connection.is_reset()
                    && !connection.take(packet, data)
                {
                    connection.reset();
                }
            }
            (_, None) => self.refuse(packet.ports),
        }
    }

    fn transmit(&mut self, queue: &mut ActiveQueue) -> bool {
        for done in 0..BATCH {
            if self.refusals.len() >= MOST_REFUSALS {
                return done > 0;
            }
            let Some(memory) = queue.memory() else { return done > 0 };
            let Some(chain) = queue.pop() else { return done > 0 };
            let part = chain.readable();
            let header = part.read_array::<HEADER>(&memory, 0);
            let result = header.and_then(|header| {
                let bytes = header.ok_or(QueueError::Request("header of 44 bytes"))?;
                let (packet, sound) = Packet::parse(&bytes, self.cid);
                // The length is the guest's word: what is more than the chain holds, or than any packet, is none of this connection's.
                let whole = usize::try_from(packet.len).ok().filter(|len| *len <= MOST_DATA);
                let whole = whole.filter(|len| *len as u64 + HEADER as u64 <= part.len());
                let place = whole.and_then(|len| self.data.get_mut(..len)).unwrap_or_default();
                let read = part.read(&memory, HEADER as u64, place)?;
                Ok((packet, sound && whole.is_some(), read))
            });
            queue.complete(chain, 0);
            match result {
                Ok((packet, sound, read)) => self.take(&packet, sound, read),
                Err(error) => queue.fail(&error),
            }
        }
        true
    }

    /// The token of the next connection that has something for the guest, from `turn` on.
    fn next_speaker(&self) -> Option<u64> {
        let speaks = |(_, connection): &(&u64, &Connection)| !connection.news.is_empty() || connection.has_data();
        let after = self.connections.range(self.turn + 1..).find(speaks);
        after.or_else(|| self.connections.range(..=self.turn).find(speaks)).map(|(token, _)| *token)
    }

    fn receive(&mut self, queue: &mut ActiveQueue) -> bool {
        for done in 0..BATCH {
            let speaker = self.next_speaker();
            if speaker.is_none() && self.refusals.is_empty() {
                return done > 0;
            }
            let Some(memory) = queue.memory() else { return done > 0 };
            let Some(chain) = queue.pop() else { return done > 0 };
            let room = usize::try_from(chain.writable().len()).unwrap_or(usize::MAX);
            let Some(room) = room.checked_sub(HEADER) else {
                queue.complete(chain, 0);
                queue.fail(&QueueError::Request("room for a header of 44 bytes"));
                return true;
            };
            match self.next_packet(speaker, room.min(MOST_DATA)) {
                Some((packet, len)) => {
                    let header = packet.to_guest(self.cid);
                    let data = self.data.get(..len).unwrap_or_default();
                    let written = write(&memory, &chain, &header, data);
                    queue.complete(chain, written.as_ref().copied().unwrap_or(0));
                    if let Err(error) = written {
                        queue.fail(&error);
                    }
                }
                // What seemed to be readable was not; the next speaker is asked.
                None => queue.give_back(chain),
            }
        }
        true
    }

    /// A packet, and how many bytes of `data` go with it.
    fn next_packet(&mut self, speaker: Option<u64>, room: usize) -> Option<(Packet, usize)> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some((refusal, 0));
        }
        let token = speaker?;
        self.turn = token;
        let connection = self.connections.get_mut(&token)?;
        if connection.is_reset() {
            let packet = connection.tell()?;
            self.connections.remove(&token);
            return Some((packet, 0));
        }
        if let Some(packet) = connection.tell() {
            return Some((packet, 0));
        }
        let len = connection.data(self.data.get_mut(..room)?)?;
        Some((connection.packet(op::RW, len as u32), len))
    }

    /// Tells the driver that its connections have ended.
    fn tell_end(&self, queue: &mut ActiveQueue) -> bool {
        if !self.ended.load(Ordering::Acquire) {
            return false;
        }
        let Some(memory) = queue.memory() else { return false };
        let Some(chain) = queue.pop() else { return false };
        self.ended.store(false, Ordering::Release);
        let written = chain.writable().write(&memory, 0, &TRANSPORT_RESET.to_le_bytes());
        queue.complete(chain, written.as_ref().map_or(0, |written| *written as u32));
        if let Err(error) = written {
            queue.fail(&error);
        }
        true
    }

    /// Hears what ports the host's programs want, and gives them what they take.
    fn serve(&mut self) -> bool {
        let mut any = false;
        self.connections.retain(|_, connection| {
            if connection.is_asking() && connection.readable {
                match connection.ask() {
                    Ok(asked) => any |= asked,
                    // The guest has heard nothing of it.
                    Err(_) => return false,
                }
            }
            true
        });
        for connection in self.connections.values_mut() {
            if !connection.is_reset() && !connection.flush() {
                connection.reset();
                any = true;
            }
        }
        any
    }

    fn wants(&self, index: u16) -> bool {
        match index {
            RECEIVE => !self.refusals.is_empty() || self.next_speaker().is_some(),
            TRANSMIT => self.refusals.len() < MOST_REFUSALS,
            _ => self.ended.load(Ordering::Acquire),
        }
    }
}

fn write(memory: &RamView, chain: &crate::Chain, header: &[u8], data: &[u8]) -> Result<u32, QueueError> {
    let header = chain.writable().write(memory, 0, header)?;
    let data = chain.writable().write(memory, header as u64, data)?;
    Ok((header + data) as u32)
}

impl Engine for VsockEngine {
    type Command = Forget;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        self.sources = Some(sources.clone());
        sources.add(&self.listener, LISTENER, EventSet::IN)
    }

    fn command(&mut self, Forget: Forget, _queues: &mut Queues) {
        self.connections.clear();
        self.refusals.clear();
    }

    fn ready(&mut self, token: u64, events: EventSet) {
        if token == LISTENER {
            self.acceptable = true;
        } else if let Some(connection) = self.connections.get_mut(&token)
            && !connection.is_reset()
        {
            connection.readable |= events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
            connection.writable |= events.contains(EventSet::OUT);
            if events.contains(EventSet::HANG_UP) {
                connection.hang_up();
            }
        }
    }

    fn work(&mut self, queues: &mut Queues) -> bool {
        let mut worked = self.accept();
        worked |= self.serve();
        worked |= queues.get(TRANSMIT).is_some_and(|queue| self.transmit(queue));
        worked |= queues.get(RECEIVE).is_some_and(|queue| self.receive(queue));
        worked | queues.get(EVENT).is_some_and(|queue| self.tell_end(queue))
    }

    fn peek(&mut self, queues: &mut Queues) -> bool {
        queues.iter().any(|queue| self.wants(queue.index()) && queue.has_available())
    }

    fn arm(&mut self, queues: &mut Queues) -> bool {
        queues.iter().map(|queue| self.wants(queue.index()) && queue.arm()).filter(|arrived| *arrived).count() > 0
    }
}
