//! The thread of all of a console's queues.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skep_worker::{EventSet, Sources};

use super::port::{MESSAGE, News, Port, PortIo, event};
use crate::engine::{Engine, Queues};
use crate::{ActiveQueue, Chain, QueueError};

/// Bytes moved at once.
const CHUNK: usize = 4096;
/// Chains of a queue in one round.
const BATCH: usize = 16;
/// The control queues: to the driver, and from it (section 5.3.2).
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;

/// The queue by which port `port` receives; the one by which it transmits is next.
fn receive_queue(port: usize) -> u16 {
    if port == 0 { 0 } else { 2 + 2 * port as u16 }
}

/// What the console's handle and its thread share.
pub(super) struct Shared {
    pub(super) size: (u16, u16),
    /// The driver knows of more than the first port.
    pub(super) several: bool,
    pub(super) ports: Vec<Port>,
}

/// The handle has changed something.
pub(super) struct Changed;

/// The host's end of a port.
struct End {
    io: Box<dyn PortIo>,
    readable: bool,
    writable: bool,
    /// What the host has not yet taken all of.
    waiting: Option<Chain>,
}

pub(super) struct ConsoleEngine {
    shared: Arc<Mutex<Shared>>,
    ends: Vec<End>,
}

pub(super) fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl End {
    /// Gives the guest what the host has.
    fn receive(&mut self, queue: &mut ActiveQueue, port: &mut Port) -> bool {
        let mut bytes = [0; CHUNK];
        for done in 0..BATCH {
            if !self.readable || queue.is_closed() {
                return done > 0;
            }
            let Some(memory) = queue.memory() else { return done > 0 };
            let Some(chain) = queue.pop() else { return done > 0 };
            let room = usize::try_from(chain.writable().len()).unwrap_or(CHUNK).min(CHUNK);
            let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else {
                queue.complete(chain, 0);
                queue.fail(&QueueError::Request("room for a byte"));
                return true;
            };
            match self.io.read(bytes) {
                Ok(0) => {
                    self.readable = false;
                    port.set_host_open(false);
                    queue.give_back(chain);
                    return true;
                }
                Ok(len) => {
                    let written = chain.writable().write(&memory, 0, bytes.get(..len).unwrap_or_default());
                    queue.complete(chain, written.as_ref().map_or(0, |written| *written as u32));
                    if let Err(error) = written {
                        queue.fail(&error);
                    }
                }
                Err(_none) => {
                    self.readable = false;
                    queue.give_back(chain);
                    return done > 0;
                }
            }
        }
        true
    }

    /// Gives the host what the guest has.
    fn transmit(&mut self, queue: &mut ActiveQueue, port: &mut Port) -> bool {
        let mut bytes = [0; CHUNK];
        for done in 0..BATCH {
            let Some(memory) = queue.memory().filter(|_| self.writable) else { return done > 0 };
            let Some(chain) = self.waiting.take().or_else(|| queue.pop()) else { return done > 0 };
            let len = match chain.readable().read(&memory, port.state.sent.into(), &mut bytes) {
                Ok(len) => len,
                Err(error) => {
                    queue.complete(chain, 0);
                    queue.fail(&error);
                    return true;
                }
            };
            let bytes = bytes.get(..len).unwrap_or_default();
            let taken = if len == 0 { Ok(0) } else { self.io.write(bytes) };
            let taken = match taken {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    self.waiting = Some(chain);
                    return done > 0;
                }
                // A host that is gone takes all.
                Err(_) => len,
                Ok(taken) => taken,
            };
            // The sum is a position in a chain of up to 2^32 bytes, and the last chunk of one ends it.
            let sent = u64::from(port.state.sent) + taken as u64;
            if sent >= chain.readable().len() || len == 0 {
                port.state.sent = 0;
                queue.complete(chain, 0);
            } else {
                port.state.sent = sent as u32;
                self.waiting = Some(chain);
            }
        }
        true
    }
}

/// Tells the driver the news, as far as it has buffers for them.
fn tell(queue: &mut ActiveQueue, shared: &mut Shared) -> bool {
    let size = shared.size;
    let mut any = false;
    for (id, port) in (0..).zip(&mut shared.ports) {
        while let Some((news, message)) = port.message(id, size) {
            let Some(memory) = queue.memory() else { return any };
            let Some(chain) = queue.pop() else { return any };
            let written = chain.writable().write(&memory, 0, &message);
            port.state.news &= !news.bits();
            queue.complete(chain, written.as_ref().map_or(0, |written| *written as u32));
            if let Err(error) = written {
                queue.fail(&error);
            }
            any = true;
        }
    }
    any
}

/// Takes what the driver tells.
fn listen(queue: &mut ActiveQueue, shared: &mut Shared) -> bool {
    for done in 0..BATCH {
        let Some(memory) = queue.memory() else { return done > 0 };
        let Some(chain) = queue.pop() else { return done > 0 };
        let message = chain.readable().read_array::<MESSAGE>(&memory, 0);
        queue.complete(chain, 0);
        match message {
            Ok(Some([i0, i1, i2, i3, e0, e1, v0, v1])) => {
                let id = u32::from_le_bytes([i0, i1, i2, i3]);
                hear(shared, id, u16::from_le_bytes([e0, e1]), u16::from_le_bytes([v0, v1]));
            }
            // Less than a message is none.
            Ok(None) => {}
            Err(error) => queue.fail(&error),
        }
    }
    true
}

fn hear(shared: &mut Shared, id: u32, event: u16, value: u16) {
    if (event, value) == (event::DEVICE_READY, 1) {
        shared.ports.iter_mut().for_each(|port| port.tell(News::ADD));
    }
    let Some(port) = shared.ports.get_mut(id as usize) else { return };
    match event {
        event::PORT_READY if value == 1 => port.ready(),
        event::PORT_OPEN => port.state.guest_open = value != 0,
        _ => {}
    }
}

impl ConsoleEngine {
    pub(super) fn new(shared: Arc<Mutex<Shared>>, ends: Vec<Box<dyn PortIo>>) -> Self {
        let end = |io| End { io, readable: true, writable: true, waiting: None };
        Self { shared, ends: ends.into_iter().map(end).collect() }
    }

    /// Whether a queue's chains are of use now.
    fn wants(ends: &[End], shared: &Shared, index: u16) -> bool {
        match index {
            CONTROL_RECEIVE => shared.ports.iter().any(|port| !port.news().is_empty()),
            CONTROL_TRANSMIT => true,
            _ => {
                let port = usize::from(if index < 2 { 0 } else { index / 2 - 1 });
                let open = shared.ports.get(port).is_some_and(|port| port.state.guest_open || !shared.several);
                ends.get(port)
                    .is_some_and(|end| if index.is_multiple_of(2) { open && end.readable } else { end.writable })
            }
        }
    }
}

impl Engine for ConsoleEngine {
    type Command = Changed;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        for (token, end) in (0..).zip(&self.ends) {
            sources.add(&end.io.event(), token, EventSet::IN | EventSet::OUT)?;
        }
        Ok(())
    }

    fn command(&mut self, Changed: Changed, _queues: &mut Queues) {}

    fn ready(&mut self, token: u64, events: EventSet) {
        if let Some(end) = self.ends.get_mut(token as usize) {
            end.readable |= events.intersects(EventSet::IN | EventSet::HANG_UP);
            end.writable |= events.contains(EventSet::OUT);
        }
    }

    fn work(&mut self, queues: &mut Queues) -> bool {
        let mut shared = lock(&self.shared);
        let shared = &mut *shared;
        let mut worked = queues.get(CONTROL_TRANSMIT).is_some_and(|queue| listen(queue, shared));
        let several = shared.several;
        for (index, (end, port)) in self.ends.iter_mut().zip(&mut shared.ports).enumerate() {
            let receive = receive_queue(index);
            if port.state.guest_open || !several {
                worked |= queues.get(receive).is_some_and(|queue| end.receive(queue, port));
            }
            worked |= queues.get(receive + 1).is_some_and(|queue| end.transmit(queue, port));
        }
        worked | queues.get(CONTROL_RECEIVE).is_some_and(|queue| tell(queue, shared))
    }

    fn peek(&mut self, queues: &mut Queues) -> bool {
        let shared = lock(&self.shared);
        queues.iter().any(|queue| Self::wants(&self.ends, &shared, queue.index()) && queue.has_available())
    }

    fn arm(&mut self, queues: &mut Queues) -> bool {
        let shared = lock(&self.shared);
        let arm = |queue: &mut ActiveQueue| Self::wants(&self.ends, &shared, queue.index()) && queue.arm();
        queues.iter().map(arm).filter(|arrived| *arrived).count() > 0
    }

    fn closing(&mut self, queue: &mut ActiveQueue) {
        for (index, end) in self.ends.iter_mut().enumerate() {
            if queue.index() == receive_queue(index) + 1
                && let Some(chain) = end.waiting.take()
            {
                queue.give_back(chain);
            }
        }
    }
}
