//! A guest's driver, for tests: it writes commands into rings in guest memory, rings doorbells, and waits for what the controller posts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use skep_block::testing::{FaultDisk, MemoryDisk};
use skep_clock::Clock;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, BusMaster, MemoryMap, RamOptions, Region, RegionKind, RequesterId};
use skep_state::Persist;

use crate::spec::{Command, Status, admin, io};
use crate::{Bus, Controller, ControllerConfig, ControllerState, NamespaceConfig};

pub(crate) const RAM: u64 = 16 << 20;
/// A BAR: memory that is no RAM.
pub(crate) const BAR: u64 = 0x1000_0000;
pub(crate) const DATA: u64 = 0x40_0000;
const QUEUES: u64 = 0x10_0000;
const QUEUE: u64 = 0x1_0000;

/// Counts what reaches the bus.
#[derive(Default)]
pub(crate) struct TestBus {
    pub(crate) messages: AtomicBool,
    pub(crate) signals: AtomicU64,
    pub(crate) pin: AtomicBool,
    pub(crate) doorbell_changes: AtomicU64,
    pub(crate) vectors: Mutex<Vec<u16>>,
}

impl Bus for TestBus {
    fn signal(&self, vector: u16) {
        self.vectors.lock().unwrap().push(vector);
        self.signals.fetch_add(1, Ordering::SeqCst);
    }
    fn set_pin(&self, asserted: bool) {
        self.pin.store(asserted, Ordering::SeqCst);
    }
    fn messages_enabled(&self) -> bool {
        self.messages.load(Ordering::SeqCst)
    }
    fn doorbells_changed(&self) {
        self.doorbell_changes.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits for what another thread brings about. That it never comes is a failure and not a hang.
pub(crate) fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !come() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// A completion, as the guest reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) result: u32,
    pub(crate) sq_head: u16,
    pub(crate) sq: u16,
    pub(crate) command: u16,
    pub(crate) status: Status,
}

/// The guest's side of a queue pair.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) id: u16,
    pub(crate) entries: u32,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    phase: bool,
    next: u16,
}

impl Pair {
    pub(crate) fn new(id: u16, entries: u32) -> Self {
        Self { id, entries, tail: 0, head: 0, phase: true, next: 0 }
    }

    pub(crate) fn submission(&self) -> u64 {
        QUEUES + u64::from(self.id) * 2 * QUEUE
    }

    pub(crate) fn completion(&self) -> u64 {
        self.submission() + QUEUE
    }
}

/// A command's dwords by what they are.
pub(crate) fn command(opcode: u8, namespace: u32, prp1: u64, dwords: [u32; 6]) -> Command {
    let [d10, d11, d12, d13, d14, d15] = dwords;
    let prp2 = if prp1 == 0 { 0 } else { (prp1 & !0xfff).wrapping_add(0x1000) };
    Command::of([
        opcode.into(),
        namespace,
        0,
        0,
        0,
        0,
        prp1 as u32,
        (prp1 >> 32) as u32,
        prp2 as u32,
        (prp2 >> 32) as u32,
        d10,
        d11,
        d12,
        d13,
        d14,
        d15,
    ])
}

/// A read, a write or the like of `blocks`.
pub(crate) fn transfer(opcode: u8, first: u64, blocks: u32, prp1: u64) -> Command {
    command(opcode, 1, prp1, [first as u32, (first >> 32) as u32, blocks - 1, 0, 0, 0])
}

/// A command with another id.
pub(crate) fn with_id(command: &Command, id: u16) -> Command {
    let mut bytes = command.to_bytes();
    bytes[2..4].copy_from_slice(&id.to_le_bytes());
    Command::from_bytes(&bytes)
}

/// A machine with a controller, and the guest's driver.
pub(crate) struct Guest {
    pub(crate) map: MemoryMap,
    pub(crate) master: BusMaster,
    pub(crate) bus: Arc<TestBus>,
    pub(crate) clock: Clock,
    pub(crate) disk: Arc<MemoryDisk>,
    pub(crate) faults: Arc<FaultDisk>,
    pub(crate) controller: Arc<Controller>,
    pub(crate) admin: Pair,
}

pub(crate) fn config() -> ControllerConfig {
    ControllerConfig { queues: 4, in_flight: 16, ..ControllerConfig::new("test") }
}

pub(crate) fn namespace(disk: Arc<dyn skep_block::Disk>) -> NamespaceConfig {
    NamespaceConfig { disk, block_size: 512, read_only: false, uuid: [7; 16] }
}

pub(crate) fn map() -> MemoryMap {
    let map = MemoryMap::new();
    for (name, kind, gpa, size) in [("ram", RegionKind::Ram, 0, RAM), ("bar", RegionKind::Device, BAR, 0x10000)] {
        let backing = Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
        map.add(Region::new(name, kind, gpa, size, backing, 0).unwrap()).unwrap();
    }
    map
}

impl Guest {
    /// A guest with namespace 1 of 1 MiB, and messages on.
    pub(crate) fn new() -> Self {
        Self::with(config(), map(), MemoryDisk::new(1 << 20, 512))
    }

    pub(crate) fn with(config: ControllerConfig, map: MemoryMap, disk: Arc<MemoryDisk>) -> Self {
        let (master, bus, clock) = (BusMaster::always(), Arc::new(TestBus::default()), Clock::manual(1_750_000_000));
        bus.messages.store(true, Ordering::SeqCst);
        let dma = map.dma(RequesterId(8), master.clone());
        let controller = Controller::new(config, dma, bus.clone(), clock.clone()).unwrap();
        let faults = FaultDisk::new(disk.clone());
        controller.attach(1, &namespace(faults.clone())).unwrap();
        Self { map, master, bus, clock, disk, faults, controller, admin: Pair::new(0, 32) }
    }

    /// The same, enabled, with an I/O queue pair.
    pub(crate) fn ready() -> (Self, Pair) {
        let mut guest = Self::new();
        guest.enable();
        let pair = guest.create(1, 64);
        (guest, pair)
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.controller.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.controller.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.controller.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn status(&self) -> u32 {
        self.read32(0x1c)
    }

    pub(crate) fn set_admin_queues(&self) {
        let entries = self.admin.entries - 1;
        self.write32(0x24, entries | entries << 16);
        self.write64(0x28, self.admin.submission());
        self.write64(0x30, self.admin.completion());
    }

    pub(crate) fn enable(&mut self) {
        self.admin = Pair::new(0, self.admin.entries);
        self.clear(self.admin.completion(), QUEUE as usize);
        self.set_admin_queues();
        self.write32(0x14, 0x0046_0001);
        wait_for("the controller to be ready", || self.status() & 1 == 1);
    }

    pub(crate) fn disable(&self) {
        self.write32(0x14, 0x0046_0000);
        wait_for("the controller to be disabled", || self.status() & 1 == 0);
    }

    pub(crate) fn poke(&self, at: u64, data: &[u8]) {
        self.map.ram().write_slice(data, GuestAddress(at)).unwrap();
    }

    pub(crate) fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.map.ram().read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }

    fn clear(&self, at: u64, len: usize) {
        self.poke(at, &vec![0; len]);
    }

    /// Writes a command into the ring, and says its id; no doorbell is rung.
    pub(crate) fn put(&self, pair: &mut Pair, command: &Command) -> u16 {
        let id = pair.next;
        pair.next = pair.next.wrapping_add(1);
        self.poke(pair.submission() + u64::from(pair.tail) * 64, &with_id(command, id).to_bytes());
        pair.tail = (pair.tail + 1) % pair.entries;
        id
    }

    pub(crate) fn ring(&self, pair: &Pair) {
        self.write32(0x1000 + u64::from(pair.id) * 8, pair.tail);
    }

    pub(crate) fn submit(&self, pair: &mut Pair, command: &Command) -> u16 {
        let id = self.put(pair, command);
        self.ring(pair);
        id
    }

    /// The next completion, if there is one; the doorbell is not rung.
    pub(crate) fn look(&self, pair: &mut Pair) -> Option<Done> {
        let bytes = self.peek(pair.completion() + u64::from(pair.head) * 16, 16);
        let value = u128::from_le_bytes(bytes.try_into().unwrap());
        if (value >> 112 & 1 == 1) != pair.phase {
            return None;
        }
        pair.head += 1;
        if pair.head == pair.entries {
            pair.head = 0;
            pair.phase = !pair.phase;
        }
        Some(Done {
            result: value as u32,
            sq_head: (value >> 64) as u16,
            sq: (value >> 80) as u16,
            command: (value >> 96) as u16,
            status: Status((value >> 113) as u16),
        })
    }

    pub(crate) fn ring_head(&self, pair: &Pair) {
        self.write32(0x1004 + u64::from(pair.id) * 8, pair.head);
    }

    pub(crate) fn wait(&self, pair: &mut Pair) -> Done {
        let mut done = None;
        wait_for("a completion", || {
            done = self.look(pair);
            done.is_some()
        });
        self.ring_head(pair);
        done.unwrap()
    }

    /// Does one command.
    pub(crate) fn run(&self, pair: &mut Pair, command: &Command) -> Done {
        let id = self.submit(pair, command);
        let done = self.wait(pair);
        assert_eq!((done.command, done.sq), (id, pair.id));
        done
    }

    pub(crate) fn io(&self, pair: &mut Pair, command: &Command) -> Status {
        self.run(pair, command).status
    }

    pub(crate) fn admin(&mut self, command: &Command) -> Done {
        let mut pair = self.admin.clone();
        let done = self.run(&mut pair, command);
        self.admin = pair;
        done
    }

    pub(crate) fn create_completion(&mut self, id: u16, entries: u32) -> Status {
        let pair = Pair::new(id, entries);
        self.clear(pair.completion(), QUEUE as usize);
        let d10 = u32::from(id) | (entries - 1) << 16;
        let d11 = 3 | u32::from(id) << 16;
        self.admin(&command(admin::CREATE_CQ, 0, pair.completion(), [d10, d11, 0, 0, 0, 0])).status
    }

    pub(crate) fn create_submission(&mut self, id: u16, entries: u32, completion: u16) -> Status {
        let pair = Pair::new(id, entries);
        let d10 = u32::from(id) | (entries - 1) << 16;
        let d11 = 1 | u32::from(completion) << 16;
        self.admin(&command(admin::CREATE_SQ, 0, pair.submission(), [d10, d11, 0, 0, 0, 0])).status
    }

    pub(crate) fn create(&mut self, id: u16, entries: u32) -> Pair {
        assert_eq!(self.create_completion(id, entries), Status::SUCCESS);
        assert_eq!(self.create_submission(id, entries, id), Status::SUCCESS);
        Pair::new(id, entries)
    }

    pub(crate) fn identify(&mut self, cns: u32, namespace: u32) -> Result<Vec<u8>, Status> {
        let done = self.admin(&command(admin::IDENTIFY, namespace, DATA, [cns, 0, 0, 0, 0, 0]));
        if done.status.is_success() { Ok(self.peek(DATA, 4096)) } else { Err(done.status) }
    }

    pub(crate) fn log(&mut self, id: u8, offset: u64, len: usize) -> Result<Vec<u8>, Status> {
        let dwords = len as u32 / 4 - 1;
        let d10 = u32::from(id) | dwords << 16;
        let command =
            command(admin::GET_LOG_PAGE, 0, DATA, [d10, dwords >> 16, offset as u32, (offset >> 32) as u32, 0, 0]);
        let done = self.admin(&command);
        if done.status.is_success() { Ok(self.peek(DATA, len)) } else { Err(done.status) }
    }

    pub(crate) fn get_feature(&mut self, id: u32, d11: u32) -> Result<u32, Status> {
        let done = self.admin(&command(admin::GET_FEATURES, 0, DATA, [id, d11, 0, 0, 0, 0]));
        if done.status.is_success() { Ok(done.result) } else { Err(done.status) }
    }

    pub(crate) fn set_feature(&mut self, id: u32, d11: u32) -> Result<u32, Status> {
        let done = self.admin(&command(admin::SET_FEATURES, 0, DATA, [id, d11, 0, 0, 0, 0]));
        if done.status.is_success() { Ok(done.result) } else { Err(done.status) }
    }

    /// Writes `blocks` of `byte` from `first` on.
    pub(crate) fn write_blocks(&self, pair: &mut Pair, first: u64, blocks: u32, byte: u8) -> Status {
        self.poke(DATA, &vec![byte; blocks as usize * 512]);
        self.io(pair, &transfer(io::WRITE, first, blocks, DATA))
    }

    /// Begins to stop, and says how to wait for its end.
    pub(crate) fn begin_pause(&self) -> std::sync::mpsc::Receiver<()> {
        let (sender, receiver) = channel();
        self.controller.pause(move || sender.send(()).unwrap());
        receiver
    }

    /// Stops it, and says its state.
    pub(crate) fn pause(&self) -> ControllerState {
        self.begin_pause().recv().unwrap();
        self.controller.save()
    }

    /// A controller of the same configuration on the same memory and disk, which goes on where this one has stopped.
    pub(crate) fn successor(&self, config: ControllerConfig) -> Self {
        let state = self.pause();
        let next = Self::with(config, self.map.clone(), self.disk.clone());
        next.controller.restore(&state).unwrap();
        assert_eq!(next.controller.save(), state, "what is restored is what is saved");
        next.controller.resume();
        Self { admin: self.admin.clone(), ..next }
    }
}
