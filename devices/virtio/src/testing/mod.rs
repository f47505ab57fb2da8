//! What the tests share: guest memory, the driver's side of a ring, and a transport that notes what it is told.

mod puppet;
mod ring;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, BusMaster, Dma, MemoryMap, RamOptions, RamView, Region, RegionKind, RequesterId};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub(crate) use puppet::{Log, Puppet, Wires};
pub(crate) use ring::{Piece, Ring, Used};

use crate::{Notifier, QueueStart, QueueState, VirtioDevice};

/// Where RAM begins: an address of 0 is none.
pub(crate) const RAM: u64 = 0x10_0000;
/// How much RAM there is, in two regions without a gap.
pub(crate) const RAM_SIZE: u64 = 0x80_0000;
/// Where the second region begins.
pub(crate) const EDGE: u64 = RAM + RAM_SIZE / 2;

/// Guest memory of two adjacent regions, and whether the device may reach it.
pub(crate) struct Guest {
    pub(crate) map: MemoryMap,
    pub(crate) master: BusMaster,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let map = MemoryMap::new();
        for gpa in [RAM, EDGE] {
            // Another process may map it.
            let options = RamOptions { shared: true, ..RamOptions::default() };
            let backing = Arc::new(Backing::new(RAM_SIZE / 2, &options).unwrap());
            map.add(Region::new("ram", RegionKind::Ram, gpa, RAM_SIZE / 2, backing, 0).unwrap()).unwrap();
        }
        Self { map, master: BusMaster::always() }
    }

    pub(crate) fn dma(&self) -> Dma {
        self.map.dma(RequesterId(8), self.master.clone())
    }

    pub(crate) fn ram(&self) -> Arc<RamView> {
        self.map.ram()
    }

    pub(crate) fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram().write_slice(bytes, GuestAddress(gpa)).unwrap();
    }
}

/// What a device tells its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Used(u16),
    Config,
    NeedsReset,
}

/// A transport that passes on what it is told, to be waited for.
pub(crate) struct Ear(Mutex<Sender<Told>>);

impl Ear {
    pub(crate) fn new() -> (Arc<Self>, Receiver<Told>) {
        let (sender, receiver) = channel();
        (Arc::new(Self(Mutex::new(sender))), receiver)
    }

    fn tell(&self, told: Told) {
        // A test that has ended listens no more.
        let _ = self.0.lock().unwrap().send(told);
    }
}

impl Notifier for Ear {
    fn used(&self, queue: u16) {
        self.tell(Told::Used(queue));
    }

    fn config_changed(&self) {
        self.tell(Told::Config);
    }

    fn needs_reset(&self) {
        self.tell(Told::NeedsReset);
    }
}

/// A device that runs without a transport: the driver's rings, one for each queue.
pub(crate) struct Rig<D: VirtioDevice> {
    pub(crate) device: Arc<D>,
    pub(crate) guest: Arc<Guest>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) told: Receiver<Told>,
    ear: Arc<Ear>,
    event_index: bool,
}

/// Entries of each ring of a [`Rig`], or fewer where the device offers fewer.
pub(crate) const RING_SIZE: u16 = 64;
/// Where the rings of a [`Rig`] are, and how much room each has.
const RINGS: u64 = RAM;
const RING_ROOM: u64 = 0x2000;
/// Where a [`Rig`]'s buffers may be: from here to the end of RAM.
pub(crate) const BUFFERS: u64 = RAM + 0x10_0000;

impl<D: VirtioDevice> Rig<D> {
    /// A device whose queues all run, with all its features.
    pub(crate) fn new(device: Arc<D>) -> Self {
        let mut rig = Self::idle(device, true);
        rig.start_all(&[]);
        rig
    }

    /// One whose queues are still to be started.
    pub(crate) fn idle(device: Arc<D>, event_index: bool) -> Self {
        let guest = Arc::new(Guest::new());
        let (ear, told) = Ear::new();
        let rings = (0u64..).zip(device.queue_sizes()).map(|(index, max)| {
            let config = Ring::place(RINGS + index * RING_ROOM, max.min(RING_SIZE), event_index);
            Ring::new(guest.clone(), config)
        });
        let rings = rings.collect();
        device.attach(ear.clone());
        Self { guest, rings, told, ear, device, event_index }
    }

    /// Another device on the same memory and rings, which goes on where the one before has stopped.
    pub(crate) fn succeed(&mut self, device: Arc<D>, states: &[QueueState]) {
        (self.ear, self.told) = Ear::new();
        device.attach(self.ear.clone());
        self.device = device;
        self.start_all(states);
    }

    /// Lets the driver be ready and starts all queues, where `states` says.
    pub(crate) fn start_all(&mut self, states: &[QueueState]) {
        let ring_features = crate::feature::VERSION_1 | crate::feature::INDIRECT;
        let event = if self.event_index { crate::feature::EVENT_INDEX } else { 0 };
        self.device.activate(self.device.features() | ring_features | event);
        for index in 0..self.rings.len() {
            self.start(index as u16, states.get(index).copied().unwrap_or_default());
        }
    }

    pub(crate) fn start(&mut self, index: u16, state: QueueState) {
        let ring = &self.rings[usize::from(index)];
        self.device.start_queue(QueueStart {
            index,
            config: ring.config,
            max_size: self.device.queue_sizes()[usize::from(index)],
            state,
            dma: self.guest.dma(),
            doorbell: ring.doorbell.clone(),
            notifier: self.ear.clone(),
        });
    }

    /// Begins to stop a queue; the state comes when it has stopped.
    pub(crate) fn begin_stop(&self, index: u16) -> Receiver<QueueState> {
        let (sender, receiver) = channel();
        self.device.begin_stop(
            index,
            Box::new(move |state| {
                let _ = sender.send(state);
            }),
        );
        receiver
    }

    /// Stops all queues.
    pub(crate) fn stop_all(&self) -> Vec<QueueState> {
        let stops: Vec<_> = (0..self.rings.len()).map(|index| self.begin_stop(index as u16)).collect();
        stops.iter().map(|stop| stop.recv().unwrap()).collect()
    }

    /// Makes a chain available, rings, and waits until it has been used.
    pub(crate) fn call(&mut self, queue: u16, pieces: &[Piece<'_>]) -> Used {
        self.send(queue, pieces);
        self.wait_used(queue)
    }

    /// Makes a chain available and rings.
    pub(crate) fn send(&mut self, queue: u16, pieces: &[Piece<'_>]) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        let head = ring.add(pieces);
        ring.kick();
        head
    }

    /// Waits for the next used chain of a queue.
    pub(crate) fn wait_used(&mut self, queue: u16) -> Used {
        loop {
            let ring = &mut self.rings[usize::from(queue)];
            // Asks for an interrupt at the next one, then looks, so that none is missed.
            ring.want_interrupt();
            if let Some(used) = ring.take_used() {
                return used;
            }
            assert_ne!(self.told.recv().unwrap(), Told::NeedsReset);
        }
    }

    /// Waits until the device is told of what `told` says, passing over the rest.
    pub(crate) fn wait_told(&self, told: Told) {
        while self.told.recv().unwrap() != told {}
    }
}

/// An eventfd of a test.
pub(crate) fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}
