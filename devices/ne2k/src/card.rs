//! The card: the controller behind its ports and its pin, and the thread between it and the network.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_net::{HEADER, Link, LinkQueue, NetError, Offloads, own_memory};
use skep_pci::{Attachment, Bar, Endpoint, EndpointConfig, Function, Identity, Interrupts, OptionRom, Pin, Socket};
use skep_state::{Persist, StateError};
use skep_worker::{EventSet, Job, Sources, Worker};

use crate::chip::LONGEST;
use crate::registers::{DATA, PORTS, RESET};
use crate::{Chip, Ne2kState, Room};

#[cfg(test)]
#[path = "card_test.rs"]
mod test;

/// Realtek's RTL8029(AS).
const IDENTITY: Identity = Identity {
    vendor: 0x10ec,
    device: 0x8029,
    subsystem_vendor: 0x10ec,
    subsystem: 0x8029,
    class: 0x02_00_00,
    revision: 0,
};
/// BAR of the ports.
const REGISTERS: u8 = 0;
/// The network's descriptor.
const NETWORK: u64 = 0;
/// Frames that come for one interrupt: Linux's driver takes nine of them at most, acknowledges it, and leaves what else there is to the next one.
const BATCH: usize = 8;

/// What a card is made of.
pub struct Ne2kConfig {
    /// What its thread is called on the host.
    pub name: String,
    /// The network.
    pub link: Arc<dyn Link>,
    /// The card's address.
    pub mac: [u8; 6],
    /// Its option ROM.
    pub rom: Option<OptionRom>,
}

/// Why a card can't be made.
#[derive(Debug, thiserror::Error)]
pub enum Ne2kError {
    /// The network refuses.
    #[error(transparent)]
    Link(#[from] NetError),
    /// The host refuses a thread.
    #[error("can't start the thread of a network card: {0}")]
    Thread(#[from] io::Error),
}

/// What the ports and the thread share.
struct Shared {
    chip: Mutex<Chip>,
    interrupts: Arc<Interrupts>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the pin be what the controller says, before anyone else changes it.
    fn update_pin(&self, chip: &Chip) {
        self.interrupts.set_pin(chip.interrupt());
    }
}

/// What the thread is told.
enum Command {
    /// There may be something to send, or room to receive.
    Look,
    /// Nothing more is to be done; say when that is so.
    Pause(Box<dyn FnOnce() + Send>),
    Resume,
}

/// A card.
pub struct Ne2k {
    shared: Arc<Shared>,
    worker: Worker<Command>,
}

impl Ne2k {
    /// A card as an endpoint in `socket`: its ports in BAR 0, and a pin.
    ///
    /// # Errors
    /// [`Ne2kError`].
    pub fn endpoint(socket: &Socket, config: &Ne2kConfig) -> Result<(Arc<Endpoint>, Arc<Self>), Ne2kError> {
        let mut bars = [None; 6];
        bars[usize::from(REGISTERS)] = Some(Bar::io(PORTS));
        let form = EndpointConfig {
            identity: IDENTITY,
            bars,
            msix: None,
            msi: 0,
            pin: Some(Pin::A),
            capabilities: Vec::new(),
            rom: config.rom.clone(),
        };
        let mut made = None;
        let endpoint = Endpoint::try_new(socket, &form, |attachment: Attachment| {
            let card = Arc::new(Self::new(config, attachment.interrupts)?);
            made = Some(card.clone());
            Ok::<Arc<dyn Function>, Ne2kError>(card)
        })?;
        Ok((endpoint, made.expect("an endpoint that was made has made its function")))
    }

    fn new(config: &Ne2kConfig, interrupts: Arc<Interrupts>) -> Result<Self, Ne2kError> {
        let chip = Mutex::new(Chip::new(config.mac));
        let shared = Arc::new(Shared { chip, interrupts });
        // The card cuts no segment and fills no checksum in.
        config.link.set_offloads(Offloads::empty())?;
        config.link.set_active_queues(1)?;
        let network = config.link.open_queue(0)?;
        let engine = Engine {
            network,
            shared: shared.clone(),
            readable: true,
            writable: true,
            paused: false,
            buffer: vec![0; HEADER + LONGEST],
        };
        let worker = Worker::spawn(&format!("{}:0", config.name), Duration::ZERO, engine)?;
        Ok(Self { shared, worker })
    }

    /// The driver's access, or a reset. The thread looks where `access` says so, or where the next frames may come now.
    fn access(&self, access: impl FnOnce(&mut Chip) -> bool) {
        let look = {
            let mut chip = self.shared.lock();
            let had_told = chip.has_told();
            let look = access(&mut chip);
            self.shared.update_pin(&chip);
            look || had_told && !chip.has_told()
        };
        if look {
            self.worker.send(Command::Look);
        }
    }

    /// Begins to stop, and calls `done`, on any thread, when nothing is sent or received any more. vCPUs have stopped before.
    pub fn pause(&self, done: impl FnOnce() + Send + 'static) {
        self.worker.send(Command::Pause(Box::new(done)));
    }

    /// Goes on.
    pub fn resume(&self) {
        self.worker.send(Command::Resume);
    }
}

impl Function for Ne2k {
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar != REGISTERS {
            return;
        }
        self.access(|chip| {
            chip.read(offset, data);
            // The reset port stops it: what waits for the ring is lost then.
            offset >= RESET && chip.is_holding()
        });
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar != REGISTERS {
            return;
        }
        self.access(|chip| {
            chip.write(offset, data);
            // Whatever register it is, it may be what the thread waits for.
            offset < DATA && (chip.is_transmitting() || chip.is_holding())
        });
    }

    fn reset(&self) {
        Persist::reset(self);
    }
}

impl Persist for Ne2k {
    type State = Ne2kState;

    fn save(&self) -> Ne2kState {
        self.shared.lock().state().clone()
    }

    fn restore(&self, state: &Ne2kState) -> Result<(), StateError> {
        // The pin's level is part of the endpoint's state.
        self.shared.lock().set_state(state.clone());
        Ok(())
    }

    fn reset(&self) {
        self.access(|chip| {
            chip.power_on();
            false
        });
    }
}

/// What the thread does.
struct Engine {
    network: Box<dyn LinkQueue>,
    shared: Arc<Shared>,
    /// The network may have a frame, and may have room.
    readable: bool,
    writable: bool,
    paused: bool,
    /// A header and a frame.
    buffer: Vec<u8>,
}

impl Engine {
    fn transmit(&mut self) -> bool {
        let mut chip = self.shared.lock();
        let Some(frame) = chip.transmits().filter(|_| self.writable) else { return false };
        if chip.is_sendable(&frame) {
            let mut bytes = vec![0; HEADER];
            bytes.extend(frame);
            let sent = self.network.send(&[own_memory(&mut bytes)]);
            if sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
                self.writable = false;
                return false;
            }
        }
        chip.transmitted();
        self.shared.update_pin(&chip);
        true
    }

    /// Frames come together, and the next ones when the driver has acknowledged these ([`Chip::has_told`]).
    fn receive(&mut self) -> bool {
        let mut chip = self.shared.lock();
        if chip.has_told() || chip.retry() == Some(Room::None) {
            return false;
        }
        let mut done = 0;
        while self.readable && done < BATCH {
            let length = match self.network.receive(&[own_memory(&mut self.buffer)]) {
                Ok(length) => length,
                Err(_none) => {
                    self.readable = false;
                    break;
                }
            };
            done += 1;
            // What had to be cut is lost.
            let Some(frame) = self.buffer.get(HEADER..length) else { continue };
            if chip.offer(frame) == Room::None {
                break;
            }
        }
        self.shared.update_pin(&chip);
        done > 0
    }
}

impl Job for Engine {
    type Command = Command;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(&self.network.event(), NETWORK, EventSet::IN | EventSet::OUT)
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Look => {}
            Command::Pause(done) => {
                self.paused = true;
                done();
            }
            Command::Resume => self.paused = false,
        }
    }

    fn ready(&mut self, _token: u64, events: EventSet) {
        self.readable |= events.contains(EventSet::IN) || events.contains(EventSet::HANG_UP);
        self.writable |= events.contains(EventSet::OUT);
    }

    fn work(&mut self) -> bool {
        if self.paused {
            return false;
        }
        if self.writable && self.network.flush().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.writable = false;
        }
        let sent = self.transmit();
        let received = self.receive();
        sent || received
    }
    // Whatever comes, a frame or a command, comes by a descriptor: there is nothing to look at before it sleeps.
}
