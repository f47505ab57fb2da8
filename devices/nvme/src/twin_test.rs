//! A guest whose controller is saved at any time, commands in flight, and goes on in another one sees what a guest sees whose controller is not;
//! and the disks have done the same for both, each command once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use proptest::prelude::*;
use skep_block::testing::{Counts, Fault, MemoryDisk};
use skep_state::Component;

use crate::NamespaceConfig;
use crate::spec::{Command, Status, admin, io};
use crate::testing::{DATA, Done, Guest, Pair, command, config, map, namespace, wait_for};

/// Data of I/O commands, each its two pages.
const PAGES: u64 = DATA + 0x1_0000;
/// Commands of one queue that wait at most: each has blocks and pages of its own.
const MOST: u64 = 24;
const SHADOW: [u64; 2] = [0x8_0000, 0x9_0000];
/// Submission queues 1 to 3, and the completion queues that they share.
const COMPLETION: [u16; 3] = [1, 2, 2];

/// An I/O command: what it is, of the second namespace or not, its blocks, its bytes, forced or not.
type Io = (u8, bool, u32, u8, bool);

#[derive(Debug, Clone)]
enum Step {
    /// Commands are put into a queue; the disk may hold what comes from now on, until the guest takes what is done or the controller stops.
    Io {
        queue: usize,
        commands: Vec<Io>,
        hold: bool,
        ring: bool,
    },
    Take,
    Save,
    Feature(u8, u32),
    Request,
    AbortRequest,
    Log(u8),
    BadDoorbell(bool),
    Recreate(u32),
    Shadow(bool),
    Namespace,
    Resize(bool),
    Mask(u32, bool),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let io = (0u8..11, proptest::bool::weighted(0.3), 1u32..=8, any::<u8>(), proptest::bool::weighted(0.2));
    let burst = (0usize..3, proptest::collection::vec(io, 1..12), any::<bool>(), proptest::bool::weighted(0.8));
    let step = prop_oneof![
        10 => burst.prop_map(|(queue, commands, hold, ring)| Step::Io { queue, commands, hold, ring }),
        3 => Just(Step::Take),
        6 => Just(Step::Save),
        6 => any::<(u8, u32)>().prop_map(|(which, value)| Step::Feature(which, value)),
        3 => Just(Step::Request),
        1 => Just(Step::AbortRequest),
        2 => (0u8..3).prop_map(Step::Log),
        2 => any::<bool>().prop_map(Step::BadDoorbell),
        1 => (2u32..40).prop_map(Step::Recreate),
        1 => any::<bool>().prop_map(Step::Shadow),
        1 => Just(Step::Namespace),
        1 => any::<bool>().prop_map(Step::Resize),
        1 => (0u32..8, any::<bool>()).prop_map(|(bits, set)| Step::Mask(bits, set)),
        1 => (0u64..5_000).prop_map(Step::Advance),
    ];
    proptest::collection::vec(step, 1..40)
}

/// Without the zeroes at the end.
fn bare(bytes: &[u8]) -> Vec<u8> {
    let zeroes = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    bytes[..bytes.len() - zeroes].to_vec()
}

/// What is left at the end of a life, and all that was seen in it.
#[derive(Debug, PartialEq)]
struct Past {
    seen: Vec<String>,
    events: Vec<Done>,
    counts: [Counts; 2],
    content: [Vec<u8>; 2],
    registers: Vec<u32>,
    features: Vec<(Result<u32, Status>, Vec<u8>)>,
    health: Vec<u8>,
    errors: BTreeSet<Vec<u8>>,
    alive: Option<u64>,
}

struct Life {
    guest: Guest,
    saves: bool,
    messages: bool,
    second: Arc<MemoryDisk>,
    attached: bool,
    submission: [Pair; 3],
    completion: [Pair; 2],
    /// How many commands each queue has had since it was last empty, and what its doorbell was last told.
    count: [u64; 3],
    rung: [u32; 3],
    /// Commands whose end has not been seen: what each reads, and where.
    waiting: BTreeMap<(u16, u16), Option<(u64, usize)>>,
    shadow: Option<u64>,
    requests: Vec<u16>,
    /// The disk holds a request for sure.
    held: bool,
    /// Vectors by which messages came.
    vectors: BTreeSet<u16>,
    seen: Vec<String>,
    events: Vec<Done>,
}

impl Life {
    fn new(saves: bool, messages: bool) -> Self {
        let guest = Guest::with(config(), map(), MemoryDisk::new(1 << 20, 512));
        let mut life = Self {
            guest,
            saves,
            messages,
            second: MemoryDisk::new(1 << 20, 512),
            attached: true,
            submission: [1, 2, 3].map(|id| Pair::new(id, 30)),
            completion: [Pair::new(1, 40), Pair::new(2, 8)],
            count: [0; 3],
            rung: [0; 3],
            waiting: BTreeMap::new(),
            shadow: None,
            requests: Vec::new(),
            held: false,
            vectors: BTreeSet::new(),
            seen: Vec::new(),
            events: Vec::new(),
        };
        life.guest.bus.messages.store(messages, Ordering::SeqCst);
        life.attach();
        life.guest.enable();
        for pair in life.completion.clone() {
            assert_eq!(life.guest.create_completion(pair.id, pair.entries), Status::SUCCESS);
        }
        for (pair, completion) in life.submission.clone().iter().zip(COMPLETION) {
            assert_eq!(life.guest.create_submission(pair.id, pair.entries, completion), Status::SUCCESS);
        }
        life
    }

    fn attach(&self) {
        if self.attached {
            let config = NamespaceConfig { block_size: 4096, ..namespace(self.second.clone()) };
            self.guest.controller.attach(2, &config).unwrap();
        }
    }

    fn word(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.guest.peek(at, 4).try_into().unwrap())
    }

    /// Rings a doorbell, as Linux does where there are shadows (Base, annex B.5).
    fn ring(&self, index: u64, old: u32, new: u32) {
        let Some(shadow) = self.shadow else { return self.guest.write32(0x1000 + 4 * index, new) };
        self.guest.poke(shadow + 4 * index, &new.to_le_bytes());
        fence(Ordering::SeqCst);
        let event = self.word(shadow + 0x1000 + 4 * index) as u16;
        let (new, old) = (new as u16, old as u16);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            let doorbells = self.guest.controller.doorbells();
            let (_, event) = doorbells.iter().find(|(offset, _)| *offset == 0x1000 + 4 * index).unwrap();
            event.write(1).unwrap();
        }
    }

    fn ring_tail(&mut self, queue: usize) {
        let tail = self.submission[queue].tail;
        let old = std::mem::replace(&mut self.rung[queue], tail);
        if tail != old {
            self.ring((queue as u64 + 1) * 2, old, tail);
        }
    }

    fn release(&mut self) {
        self.guest.faults.clear_rule();
        self.guest.faults.release();
        self.held = false;
    }

    fn io(&mut self, queue: usize, commands: &[Io], hold: bool, ring: bool) {
        let most = MOST.min(u64::from(self.submission[queue].entries) - 1);
        let commands = &commands[..commands.len().min(most as usize)];
        if self.count[queue] + commands.len() as u64 > most {
            self.take();
        }
        if hold {
            self.guest.faults.set_rule(|_| Some(Fault::HangForGood));
        }
        let alone = self.waiting.is_empty();
        let mut reaches = false;
        for io in commands {
            let place = queue as u64 * MOST + self.count[queue];
            let (command, read, disk) = self.command(io, place);
            reaches |= disk;
            let id = self.guest.put(&mut self.submission[queue], &command);
            assert!(self.waiting.insert((queue as u16 + 1, id), read).is_none());
            self.count[queue] += 1;
        }
        if ring {
            self.ring_tail(queue);
            self.held |= hold && alone && reaches;
        }
    }

    /// A command on blocks and pages of its own, what it reads, and whether it is sure to reach the first disk.
    fn command(&self, io: &Io, place: u64) -> (Command, Option<(u64, usize)>, bool) {
        let (kind, second, blocks, byte, force) = *io;
        let (size, blocks) = if second { (4096, blocks.div_ceil(4)) } else { (512, blocks) };
        let (namespace, page) = (1 + u32::from(second), PAGES + place * 0x2000);
        let first = place as u32 * if second { 3 } else { 16 };
        let len = blocks as usize * size;
        let of = |opcode, d11, d12| command(opcode, namespace, page, [first, d11, d12, 0, 0, 0]);
        let moves = |opcode| of(opcode, 0, (blocks - 1) | u32::from(force) << 30);
        let mut read = None;
        let command = match kind {
            0 | 1 => {
                self.guest.poke(page, &vec![byte; len]);
                moves(io::WRITE)
            }
            2 | 3 => {
                self.guest.poke(page, &vec![0xee; len]);
                read = Some((page, len));
                moves(io::READ)
            }
            4 => {
                self.guest.poke(page, &vec![byte % 2; len]);
                moves(io::COMPARE)
            }
            5 => moves(io::VERIFY),
            6 => moves(io::WRITE_ZEROES),
            7 => {
                // Two ranges.
                for (index, block) in [first, first + blocks - 1].into_iter().enumerate() {
                    self.guest.poke(page + 16 * index as u64, &[&[0; 4][..], &[1, 0, 0, 0]].concat());
                    self.guest.poke(page + 16 * index as u64 + 8, &u64::from(block).to_le_bytes());
                }
                command(io::DATASET_MANAGEMENT, namespace, page, [1, 4, 0, 0, 0, 0])
            }
            8 => command(io::FLUSH, namespace, 0, [0; 6]),
            9 => of(io::READ, 1, 0),
            _ => of(0x55 + byte % 16, 0, 0),
        };
        (command, read, kind < 9 && !second)
    }

    /// Takes what is done, until all is; each end is told once.
    fn take(&mut self) {
        self.release();
        (0..3).for_each(|queue| self.ring_tail(queue));
        let mut expected: BTreeSet<u16> =
            self.waiting.keys().map(|(queue, _)| COMPLETION[usize::from(*queue) - 1]).collect();
        if !self.messages {
            let mask = self.guest.read32(0x0c);
            if expected.iter().any(|vector| mask & 1 << vector == 0) {
                wait_for("the pin to rise", || self.guest.bus.pin.load(Ordering::SeqCst));
            }
        }
        let mut ended = BTreeMap::new();
        wait_for("the end of all commands", || {
            for queue in 0..2 {
                let mut pair = self.completion[queue].clone();
                while let Some(done) = self.guest.look(&mut pair) {
                    let read = self.waiting.remove(&(done.sq, done.command)).expect("a command ends once");
                    // Each block has one byte throughout.
                    let bytes = read.map(|(at, len)| {
                        let mut bytes = self.guest.peek(at, len);
                        bytes.dedup();
                        bytes
                    });
                    ended.insert((done.sq, done.command), (done.status, bytes));
                    assert_eq!(COMPLETION[usize::from(done.sq) - 1], pair.id);
                }
                let old = std::mem::replace(&mut self.completion[queue], pair).head;
                let Pair { id, head, .. } = self.completion[queue];
                if head != old {
                    self.ring(u64::from(id) * 2 + 1, old, head);
                }
            }
            self.waiting.is_empty()
        });
        if self.messages {
            wait_for("messages", || {
                self.vectors.extend(self.guest.bus.vectors.lock().unwrap().drain(..));
                expected.retain(|vector| !self.vectors.contains(vector));
                expected.is_empty()
            });
            self.vectors.clear();
        } else {
            wait_for("the pin to fall", || {
                self.take_events();
                !self.guest.bus.pin.load(Ordering::SeqCst)
            });
        }
        self.count = [0; 3];
        if !ended.is_empty() {
            self.seen.push(format!("{ended:?}"));
        }
    }

    /// Does an admin command. Its round has ended when this returns.
    fn admin(&mut self, command: &Command) -> Done {
        let mut pair = self.guest.admin.clone();
        let id = self.guest.submit(&mut pair, command);
        let done = loop {
            let done = self.guest.wait(&mut pair);
            if done.command == id {
                break done;
            }
            self.event(done);
        };
        self.guest.admin = pair;
        self.guest.controller.pass_round();
        done
    }

    fn event(&mut self, done: Done) {
        let place = self.requests.iter().position(|request| *request == done.command);
        self.requests.remove(place.expect("a request ends once"));
        // How much was taken until then is nobody's matter.
        self.events.push(Done { sq_head: 0, ..done });
    }

    fn take_events(&mut self) {
        let mut pair = self.guest.admin.clone();
        while let Some(done) = self.guest.look(&mut pair) {
            self.event(done);
            self.guest.ring_head(&pair);
        }
        self.guest.admin = pair;
    }

    fn get(&mut self, id: u32) -> (Result<u32, Status>, Vec<u8>) {
        self.guest.poke(DATA, &[0; 256]);
        let done = self.admin(&command(admin::GET_FEATURES, 0, DATA, [id & 0xff, id >> 8, 0, 0, 0, 0]));
        let result = if done.status.is_success() { Ok(done.result) } else { Err(done.status) };
        (result, bare(&self.guest.peek(DATA, 256)))
    }

    fn log(&mut self, id: u32, len: usize) -> Vec<u8> {
        let done = self.admin(&command(admin::GET_LOG_PAGE, 0, DATA, [id | (len as u32 / 4 - 1) << 16, 0, 0, 0, 0, 0]));
        assert_eq!(done.status, Status::SUCCESS);
        self.guest.peek(DATA, len)
    }

    /// What has happened on other threads is known to the controller, and told as far as somebody waits.
    fn sync(&mut self) {
        self.guest.controller.pass_round();
        for _ in 0..2 {
            let _ = self.get(7);
        }
    }

    fn save(&mut self) {
        if !self.saves {
            return self.release();
        }
        if self.held {
            self.guest.faults.wait_hanging(1);
        }
        let paused = self.guest.begin_pause();
        self.release();
        paused.recv().unwrap();
        let record = self.guest.controller.save_record();
        let next = Guest::with(config(), self.guest.map.clone(), self.guest.disk.clone());
        next.bus.messages.store(self.messages, Ordering::SeqCst);
        next.clock.set(self.guest.clock.now() + (1_000_000 << 20));
        let before = std::mem::replace(&mut self.guest, next);
        self.vectors.extend(before.bus.vectors.lock().unwrap().drain(..));
        self.guest.admin = before.admin.clone();
        self.attach();
        self.guest.controller.restore_record(&record).unwrap();
        assert_eq!(self.guest.controller.save_record(), record, "what is restored is what is saved");
        self.guest.controller.resume();
    }

    fn step(&mut self, step: &Step) {
        if let Step::Io { queue, commands, hold, ring } = step {
            return self.io(*queue, commands, *hold, *ring);
        }
        if let Step::Save = step {
            return self.save();
        }
        // The rest is done with nothing in flight: what it means for a command that runs depends on who comes first.
        self.take();
        self.sync();
        match step {
            Step::Feature(which, value) => self.set(*which, *value),
            Step::Request if self.requests.len() < 4 => {
                let mut pair = self.guest.admin.clone();
                self.requests.push(self.guest.submit(&mut pair, &command(admin::ASYNC_EVENT, 0, 0, [0; 6])));
                self.guest.admin = pair;
                self.sync();
            }
            Step::Request => {
                let done = self.admin(&command(admin::ASYNC_EVENT, 0, 0, [0; 6]));
                assert_eq!(done.status, Status::EVENT_LIMIT);
            }
            Step::AbortRequest => {
                let id = u32::from(self.requests.last().copied().unwrap_or(9));
                let done = self.admin(&command(admin::ABORT, 0, 0, [id << 16, 0, 0, 0, 0, 0]));
                self.seen.push(format!("abort {}", done.result));
            }
            // Errors, and namespaces that have changed, as they were seen.
            Step::Log(which) => {
                let (id, len) = [(1, 4096), (2, 4), (4, 1024)][usize::from(*which)];
                let log = self.log(id, len);
                if id == 4 {
                    self.seen.push(format!("{:x?}", &log[..16]));
                }
            }
            Step::BadDoorbell(none) => {
                let (offset, value) = if *none { (0x1000 + 8 * 300, 0) } else { (0x1008, 5000) };
                self.guest.write32(offset, value);
            }
            Step::Recreate(entries) => {
                let delete = command(admin::DELETE_SQ, 0, 0, [3, 0, 0, 0, 0, 0]);
                assert_eq!(self.admin(&delete).status, Status::SUCCESS);
                if let Some(shadow) = self.shadow {
                    [shadow, shadow + 0x1000].iter().for_each(|page| self.guest.poke(page + 24, &[0; 4]));
                }
                let pair = Pair::new(3, *entries);
                let words = [3 | (entries - 1) << 16, 1 | 2 << 16, 0, 0, 0, 0];
                let create = command(admin::CREATE_SQ, 0, pair.submission(), words);
                assert_eq!(self.admin(&create).status, Status::SUCCESS);
                (self.submission[2], self.rung[2]) = (pair, 0);
            }
            Step::Shadow(other) => {
                let page = SHADOW[usize::from(*other)];
                assert_eq!(self.admin(&command(admin::DOORBELL_BUFFER, 0, page, [0; 6])).status, Status::SUCCESS);
                self.shadow = Some(page);
            }
            Step::Namespace => {
                self.attached = !self.attached;
                if self.attached {
                    self.attach();
                } else {
                    assert!(self.guest.controller.detach(2));
                }
            }
            Step::Resize(large) => self.second.resize(1 << (20 + u8::from(*large))),
            Step::Mask(bits, set) => self.guest.write32(if *set { 0x0c } else { 0x10 }, *bits),
            Step::Advance(millis) => self.guest.clock.advance(millis * 1_000_000),
            Step::Io { .. } | Step::Take | Step::Save => {}
        }
    }

    fn set(&mut self, which: u8, value: u32) {
        let (id, value) = match which % 12 {
            0 => (1, value),
            1 => (2, value % 3),
            2 => (4, (200 + value % 200) | (value >> 9 & 1) << 20),
            3 => (5, value & 0xffff),
            4 => (6, value & 1),
            5 => (8, value & 0xffff),
            6 => (9, (value % 5) | value & 1 << 16),
            7 => (0xa, value & 1),
            8 => (0xb, value),
            9 => {
                let entry = u64::from(3 << 3 | (value | 0xff_0000) << 8).to_le_bytes();
                self.guest.poke(DATA, &[&entry.repeat(3)[..], &[0; 232]].concat());
                (0xc, value & 1)
            }
            10 => {
                self.guest.poke(DATA, &u64::from(value).to_le_bytes());
                (0xe, 0)
            }
            // An hour and more.
            _ => (0xf, 3_600_000 + value % 1_000_000),
        };
        let done = self.admin(&command(admin::SET_FEATURES, 0, DATA, [id, value, 0, 0, 0, 0]));
        self.seen.push(format!("feature {id:#x}: {:?} {:#x}", done.status, done.result));
    }

    fn end(mut self) -> Past {
        self.take();
        self.sync();
        let features = [1, 2, 4, 4 | 1 << 28, 5, 6, 7, 8, 9, 9 | 1 << 8, 9 | 2 << 8, 0xa, 0xb, 0xc, 0xe, 0xf];
        let features = features.map(|id| self.get(id)).to_vec();
        let mut health = self.log(2, 512);
        // Minutes in which it was busy depend on the host.
        health[96..112].fill(0);
        let errors = self.log(1, 4096);
        // Which queue was first is chance, and so are the numbers, and what is left of more than there is room for.
        let count = if health[177..192] == [0; 15] && health[176] <= 64 { 64 } else { 0 };
        let errors = errors.as_chunks::<64>().0.iter().take(count).map(|entry| bare(&entry[8..])).collect();
        self.sync();
        let alive = self.guest.pause().alive;
        self.take_events();
        for mut pair in self.completion.clone() {
            assert_eq!(self.guest.look(&mut pair), None);
        }
        let disks = [&self.guest.disk, &self.second];
        Past {
            registers: [0x0c, 0x14, 0x1c, 0x24, 0x28, 0x30].map(|offset| self.guest.read32(offset)).to_vec(),
            counts: disks.map(|disk| Counts { kicks: 0, ..disk.counts() }),
            content: disks.map(|disk| disk.content()),
            seen: self.seen,
            events: self.events,
            features,
            health: bare(&health),
            errors,
            alive,
        }
    }
}

fn live(steps: &[Step], saves: bool, messages: bool) -> Past {
    let mut life = Life::new(saves, messages);
    steps.iter().for_each(|step| life.step(step));
    life.end()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn saved_with_commands_in_flight_behaves_the_same(steps in steps(), messages in any::<bool>()) {
        let (one, two) = (live(&steps, false, messages), live(&steps, true, messages));
        prop_assert_eq!(&one.seen, &two.seen);
        prop_assert_eq!(&one.events, &two.events);
        prop_assert_eq!(&one.counts, &two.counts);
        prop_assert_eq!(&one.features, &two.features);
        prop_assert_eq!(&one.errors, &two.errors);
        prop_assert!(one.content == two.content, "the disks differ");
        prop_assert_eq!(one, two);
    }
}
