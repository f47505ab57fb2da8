//! The thread of one queue pair, and, for the first one, of the control queue.

use std::io;
use std::sync::Arc;

use skep_memory::RamView;
use skep_memory::vm_memory::Permissions;
use skep_net::{GuestSlice, HEADER, LinkQueue, MAX_FRAME};
use skep_worker::{EventSet, Sources};

use super::card::{Card, feature};
use super::control::control;
use super::gate::Gate;
use crate::engine::{Engine, Queues};
use crate::{ActiveQueue, Chain, QueueError};

/// Frames of one round, each way.
const BATCH: usize = 64;
/// Where `num_buffers` is in the header (section 5.1.6).
const NUM_BUFFERS: u64 = 10;
/// The token of the network's descriptor.
const NETWORK: u64 = 0;
/// Those of the limits' timers.
const RECEIVE_GATE: u64 = 1;
const TRANSMIT_GATE: u64 = 2;
/// A packet's length where the network says none.
const MTU: u16 = 1500;
/// What an Ethernet header and a VLAN tag add to a packet.
const ETHERNET: usize = 18;

/// What a device tells the thread of a pair.
pub(super) enum Command {
    /// The driver is ready, with these features.
    Activate(u64),
}

pub(super) struct NetEngine {
    pair: u16,
    network: Box<dyn LinkQueue>,
    card: Arc<Card>,
    /// Received frames may be spread over several buffers.
    merge: bool,
    control: u16,
    /// The network may have a frame, and may have room.
    readable: bool,
    writable: bool,
    receive_gate: Gate,
    transmit_gate: Gate,
    /// Buffers that wait for frames, in their order: taken from the ring before it is known how many a frame needs.
    held: Vec<Chain>,
    /// A frame that the network had no room for.
    waiting: Option<Chain>,
}

/// A chain's part as pieces of guest memory.
fn slices<'m>(chains: &[Chain], memory: &'m RamView, access: Permissions) -> Result<Vec<GuestSlice<'m>>, QueueError> {
    let mut slices = Vec::new();
    for chain in chains {
        let part = if access == Permissions::Write { chain.writable() } else { chain.readable() };
        part.slices(memory, 0..part.len(), access, &mut slices)?;
    }
    Ok(slices)
}

/// Bytes of a frame without what virtio puts before it.
fn frame_len(len: u64) -> u64 {
    len.saturating_sub(HEADER as u64)
}

fn room(chains: &[Chain]) -> u64 {
    chains.iter().map(|chain| chain.writable().len()).sum()
}

impl NetEngine {
    pub(super) fn new(
        pair: u16,
        network: Box<dyn LinkQueue>,
        card: Arc<Card>,
        (receive_gate, transmit_gate): (Gate, Gate),
    ) -> Self {
        Self {
            pair,
            network,
            card,
            merge: false,
            control: u16::MAX,
            readable: true,
            writable: true,
            receive_gate,
            transmit_gate,
            held: Vec::new(),
            waiting: None,
        }
    }

    fn receive_queue(&self) -> u16 {
        2 * self.pair
    }

    fn transmit_queue(&self) -> u16 {
        2 * self.pair + 1
    }

    /// As far as is known there may be a frame, and it may come.
    fn can_receive(&self) -> bool {
        self.readable && self.receive_gate.is_open()
    }

    fn can_transmit(&self) -> bool {
        self.writable && self.transmit_gate.is_open()
    }

    /// The longest frame that may come.
    fn longest(&self) -> u64 {
        let mtu = self.card.info().mtu.unwrap_or(MTU).max(MTU);
        (if self.card.takes_large_frames() { MAX_FRAME } else { HEADER + usize::from(mtu) + ETHERNET }) as u64
    }

    fn receive(&mut self, queue: &mut ActiveQueue) -> bool {
        if !self.can_receive() || queue.is_closed() {
            return false;
        }
        let longest = if self.merge { self.longest() } else { 1 };
        let mut any = false;
        for _ in 0..BATCH {
            // Without merging one buffer is all that a frame has.
            while room(&self.held) < longest {
                let Some(chain) = queue.pop() else { break };
                if chain.writable().is_empty() {
                    queue.complete(chain, 0);
                    queue.fail(&QueueError::Request("room for a frame"));
                } else {
                    self.held.push(chain);
                }
            }
            let Some(memory) = queue.memory().filter(|_| !self.held.is_empty()) else { return any };
            if !self.receive_gate.admits() {
                return any;
            }
            let received = slices(&self.held, &memory, Permissions::Write).map(|room| self.network.receive(&room));
            match received {
                Ok(Ok(len)) => {
                    self.receive_gate.passed(frame_len(len as u64));
                    any |= self.deliver(queue, &memory, len as u64);
                }
                Ok(Err(_none)) => {
                    self.readable = false;
                    return any;
                }
                Err(error) => {
                    queue.fail(&error);
                    return any;
                }
            }
        }
        any
    }

    /// Uses the buffers that a frame of `len` bytes fills.
    fn deliver(&mut self, queue: &mut ActiveQueue, memory: &RamView, len: u64) -> bool {
        // A frame that had to be cut is lost.
        if len < HEADER as u64 || len > room(&self.held) {
            return true;
        }
        let mut left = len;
        let mut count = 0;
        while left > 0 && count < self.held.len() {
            left = left.saturating_sub(self.held.get(count).map_or(0, |chain| chain.writable().len()));
            count += 1;
        }
        if let Some(first) = self.held.first()
            && let Err(error) = first.writable().write(memory, NUM_BUFFERS, &(count as u16).to_le_bytes())
        {
            queue.fail(&error);
        }
        let mut left = len;
        for chain in self.held.drain(..count) {
            let here = left.min(chain.writable().len());
            left -= here;
            queue.complete(chain, here as u32);
        }
        true
    }

    fn transmit(&mut self, queue: &mut ActiveQueue) -> bool {
        if !self.can_transmit() {
            return false;
        }
        for done in 0..BATCH {
            let Some(memory) = queue.memory() else { return done > 0 };
            if self.waiting.is_none() && !queue.has_available() {
                return done > 0;
            }
            if !self.transmit_gate.admits() {
                return done > 0;
            }
            let Some(chain) = self.waiting.take().or_else(|| queue.pop()) else { return done > 0 };
            let len = chain.readable().len();
            // A frame that is none, or that no network carries, is lost.
            if len > HEADER as u64 && len <= MAX_FRAME as u64 {
                let sent = slices(std::slice::from_ref(&chain), &memory, Permissions::Read)
                    .map(|frame| self.network.send(&frame));
                match sent {
                    Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.writable = false;
                        self.waiting = Some(chain);
                        return done > 0;
                    }
                    // Another error is the frame's own.
                    Ok(_) => {}
                    Err(error) => queue.fail(&error),
                }
            }
            self.transmit_gate.passed(frame_len(len));
            queue.complete(chain, 0);
        }
        true
    }
}

impl Engine for NetEngine {
    type Command = Command;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        self.receive_gate.register(sources, RECEIVE_GATE)?;
        self.transmit_gate.register(sources, TRANSMIT_GATE)?;
        sources.add(&self.network.event(), NETWORK, EventSet::IN | EventSet::OUT)
    }

    fn command(&mut self, Command::Activate(features): Command, _queues: &mut Queues) {
        self.merge = features & feature::MRG_RXBUF != 0;
        self.control = if features & feature::CTRL_VQ != 0 { self.card.control_queue() } else { u16::MAX };
    }

    fn ready(&mut self, token: u64, events: EventSet) {
        match token {
            RECEIVE_GATE => self.receive_gate.ready(),
            TRANSMIT_GATE => self.transmit_gate.ready(),
            _ => {
                self.readable |= events.contains(EventSet::IN) || events.contains(EventSet::HANG_UP);
                self.writable |= events.contains(EventSet::OUT);
            }
        }
    }

    fn work(&mut self, queues: &mut Queues) -> bool {
        if self.writable && self.network.flush().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.writable = false;
        }
        let received = queues.get(self.receive_queue()).is_some_and(|queue| self.receive(queue));
        let sent = queues.get(self.transmit_queue()).is_some_and(|queue| self.transmit(queue));
        let controlled = self.pair == 0 && queues.get(self.control).is_some_and(|queue| control(&self.card, queue));
        received || sent || controlled
    }

    fn peek(&mut self, queues: &mut Queues) -> bool {
        let (receive, readable, writable) = (self.receive_queue(), self.can_receive(), self.can_transmit());
        // Buffers to receive into are no work before there is a frame.
        queues.iter().any(|queue| match queue.index() {
            index if index == receive => readable && queue.has_available(),
            index if index == receive + 1 => writable && queue.has_available(),
            _ => queue.has_available(),
        })
    }

    fn arm(&mut self, queues: &mut Queues) -> bool {
        let (receive, readable, writable) = (self.receive_queue(), self.can_receive(), self.can_transmit());
        let arm = |queue: &mut ActiveQueue| match queue.index() {
            index if index == receive => readable && queue.arm(),
            index if index == receive + 1 => writable && queue.arm(),
            _ => queue.arm(),
        };
        queues.iter().map(arm).filter(|arrived| *arrived).count() > 0
    }

    fn closing(&mut self, queue: &mut ActiveQueue) {
        if queue.index() == self.receive_queue() {
            self.held.drain(..).rev().for_each(|chain| queue.give_back(chain));
        } else if queue.index() == self.transmit_queue()
            && let Some(chain) = self.waiting.take()
        {
            queue.give_back(chain);
        }
    }
}
