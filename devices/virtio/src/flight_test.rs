//! A guest whose device is saved with requests in flight, and goes on in another one, sees what a guest sees whose device was not; and the host
//! has been asked for the same, each thing once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skep_block::testing::{Counts, Fault, FaultDisk, MemoryDisk};
use skep_net::testing::TestLink;
use skep_net::{HEADER, LinkInfo, Offloads};
use skep_state::Component;

use crate::blk::BlkConfig;
use crate::net::NetConfig;
use crate::testing::{Piece, Rig, Told, Used};
use crate::{Blk, Net, Rng, VirtioDevice};

/// Longer than any device takes: what has not come by then never does.
const LONG: Duration = Duration::from_secs(60);

/// The driver: which of its requests is in which chain.
struct Driver<D: VirtioDevice> {
    rig: Rig<D>,
    sent: u64,
    waiting: BTreeMap<(u16, u16), u64>,
    /// What each queue's doorbell was last rung for.
    rung: Vec<u16>,
    /// What has become of each request.
    ended: BTreeMap<u64, (u32, Vec<u8>)>,
}

impl<D: VirtioDevice + Component> Driver<D> {
    fn new(device: Arc<D>) -> Self {
        let rig = Rig::new(device);
        let rung = vec![0; rig.rings.len()];
        Self { rig, sent: 0, waiting: BTreeMap::new(), rung, ended: BTreeMap::new() }
    }

    fn put(&mut self, queue: u16, pieces: &[Piece<'_>]) {
        let head = self.rig.rings[usize::from(queue)].add(pieces);
        assert!(self.waiting.insert((queue, head), self.sent).is_none());
        self.sent += 1;
    }

    /// Rings if the device has asked for it.
    fn ring(&mut self, queue: u16) {
        let ring = &self.rig.rings[usize::from(queue)];
        let old = std::mem::replace(&mut self.rung[usize::from(queue)], ring.available_index());
        if old != ring.available_index() && ring.wants_kick(old) {
            ring.kick();
        }
    }

    fn end(&mut self, queue: u16, used: Used) {
        let request = self.waiting.remove(&(queue, used.head)).expect("a chain is used once");
        let mut data = used.data;
        // Data has one byte throughout; what is told beside it is seen all the same.
        data.dedup();
        self.ended.insert(request, (used.len, data));
    }

    /// Takes what is used, until no more than `left` requests of a queue wait; the device interrupts whoever waits.
    fn take(&mut self, queue: u16, left: usize) {
        self.ring(queue);
        while self.waiting(queue) > left {
            let ring = &mut self.rig.rings[usize::from(queue)];
            ring.want_interrupt();
            match ring.take_used() {
                Some(used) => self.end(queue, used),
                None => assert_ne!(self.rig.told.recv_timeout(LONG).expect("it interrupts"), Told::NeedsReset),
            }
        }
    }

    fn waiting(&self, queue: u16) -> usize {
        self.waiting.keys().filter(|(of, _)| *of == queue).count()
    }

    /// Saves the device; `release` lets go of what the host holds, and `heir` makes the one that goes on.
    fn save(&mut self, release: impl FnOnce(), heir: impl FnOnce() -> Arc<D>, empty: Arc<D>) {
        let stops: Vec<_> = (0..self.rig.rings.len()).map(|queue| self.rig.begin_stop(queue as u16)).collect();
        release();
        let states: Vec<_> = stops.iter().map(|stop| stop.recv_timeout(LONG).expect("it comes to rest")).collect();
        let record = self.rig.device.save_record();
        self.rig.device = empty;
        let device = heir();
        device.restore_record(&record).unwrap();
        assert_eq!(device.save_record(), record, "what is restored is what is saved");
        self.rig.succeed(device, &states);
    }
}

#[derive(Debug, Clone)]
enum DiskStep {
    /// Requests: what, bytes or sectors, and with what they are filled. The disk may hold what comes from now on.
    Io {
        queue: u16,
        requests: Vec<(u8, u8, u8)>,
        hold: bool,
        ring: bool,
    },
    Take,
    Save,
    WriteBack(bool),
}

fn disk_steps() -> impl Strategy<Value = Vec<DiskStep>> {
    let requests = proptest::collection::vec((0u8..10, 1u8..=8, any::<u8>()), 1..8);
    let io = (0u16..3, requests, any::<bool>(), proptest::bool::weighted(0.8));
    let step = prop_oneof![
        8 => io.prop_map(|(queue, requests, hold, ring)| DiskStep::Io { queue, requests, hold, ring }),
        2 => Just(DiskStep::Take),
        4 => Just(DiskStep::Save),
        1 => any::<bool>().prop_map(DiskStep::WriteBack),
    ];
    proptest::collection::vec(step, 1..30)
}

/// Requests of one queue that wait at most; each has sectors of its own.
const MOST: u64 = 20;

struct DiskLife {
    driver: Driver<Blk>,
    disk: Arc<MemoryDisk>,
    faults: Arc<FaultDisk>,
    count: [u64; 3],
    /// The disk holds a request for sure.
    held: bool,
}

fn blk(disk: Arc<dyn skep_block::Disk>) -> Arc<Blk> {
    let (name, serial) = ("blk".into(), "a serial".to_owned());
    Blk::new(&BlkConfig { name, disk, queues: 3, serial, poll: Duration::ZERO }).unwrap()
}

impl DiskLife {
    fn release(&mut self) {
        self.faults.clear_rule();
        self.faults.release();
        self.held = false;
    }

    fn take(&mut self) {
        self.release();
        (0..3).for_each(|queue| self.driver.take(queue, 0));
        self.count = [0; 3];
    }

    fn io(&mut self, queue: u16, requests: &[(u8, u8, u8)], hold: bool, ring: bool) {
        let count = usize::from(queue);
        if self.count[count] + requests.len() as u64 > MOST {
            self.take();
        }
        if hold {
            self.faults.set_rule(|_| Some(Fault::HangForGood));
        }
        let alone = self.driver.waiting.is_empty();
        let mut reaches = false;
        for (kind, sectors, byte) in requests {
            let sector = (u64::from(queue) * MOST + self.count[count]) * 8;
            let len = u32::from(*sectors) * 512;
            let segment = |flags: u32| {
                [&sector.to_le_bytes()[..], &u32::from(*sectors).to_le_bytes(), &flags.to_le_bytes()].concat()
            };
            let (code, sector, data, room) = match kind {
                0..=2 => (1u32, sector, vec![*byte; len as usize], 0),
                3 | 4 => (0, sector, Vec::new(), len),
                5 => (4, 0, Vec::new(), 0),
                6 => (8, 0, Vec::new(), 20),
                7 => (11, 0, segment(0), 0),
                8 => (13, 0, segment(u32::from(byte & 1)), 0),
                // Beyond the end.
                _ => (1, 1 << 40, vec![*byte; 512], 0),
            };
            reaches |= !matches!(kind, 6 | 9);
            let header = [&u64::from(code).to_le_bytes()[..], &sector.to_le_bytes()].concat();
            let mut pieces = vec![Piece::Read(&header)];
            if !data.is_empty() {
                pieces.push(Piece::Read(&data));
            }
            if room > 0 {
                pieces.push(Piece::Write(room));
            }
            pieces.push(Piece::Write(1));
            self.driver.put(queue, &pieces);
            self.count[count] += 1;
        }
        if ring {
            self.driver.ring(queue);
            self.held |= hold && alone && reaches;
        }
    }

    fn save(&mut self) {
        if self.held {
            self.faults.wait_hanging(1);
        }
        let faults = std::mem::replace(&mut self.faults, FaultDisk::new(self.disk.clone()));
        let release = || {
            faults.clear_rule();
            faults.release();
        };
        let heir = self.faults.clone();
        self.driver.save(release, || blk(heir), blk(MemoryDisk::new(512, 512)));
        self.held = false;
    }

    fn live(steps: &[DiskStep], saves: bool) -> impl PartialEq + std::fmt::Debug + use<> {
        let disk = MemoryDisk::new(1 << 18, 512);
        let faults = FaultDisk::new(disk.clone());
        let driver = Driver::new(blk(faults.clone()));
        let mut life = Self { driver, disk, faults, count: [0; 3], held: false };
        for step in steps {
            match step {
                DiskStep::Io { queue, requests, hold, ring } => life.io(*queue, requests, *hold, *ring),
                DiskStep::Take => life.take(),
                DiskStep::Save if saves => life.save(),
                DiskStep::Save => life.release(),
                DiskStep::WriteBack(on) => {
                    life.take();
                    life.driver.rig.device.write_config(32, &[u8::from(*on)]);
                }
            }
        }
        life.take();
        let mut config = [0; 64];
        life.driver.rig.device.read_config(0, &mut config);
        let mut content = life.disk.content();
        content.dedup();
        (life.driver.ended, Counts { kicks: 0, ..life.disk.counts() }, config, content)
    }
}

#[derive(Debug, Clone)]
enum NetStep {
    /// The guest gives buffers of that size.
    Room {
        pair: u16,
        count: usize,
        size: u32,
    },
    /// Frames come from the host.
    Come {
        pair: u16,
        frames: Vec<(usize, u8)>,
    },
    /// The guest sends frames, and the host may take none for now.
    Send {
        pair: u16,
        frames: Vec<(usize, u8)>,
        full: bool,
    },
    Take,
    Save,
}

fn net_steps() -> impl Strategy<Value = Vec<NetStep>> {
    // A frame has room in one buffer: what a card does with one that has none depends on who comes first.
    let frames = || proptest::collection::vec((14usize..1500, any::<u8>()), 1..5);
    let step = prop_oneof![
        4 => (0u16..2, 1usize..6, 1600u32..3000).prop_map(|(pair, count, size)| NetStep::Room { pair, count, size }),
        4 => (0u16..2, frames()).prop_map(|(pair, frames)| NetStep::Come { pair, frames }),
        4 => (0u16..2, frames(), any::<bool>()).prop_map(|(pair, frames, full)| NetStep::Send { pair, frames, full }),
        2 => Just(NetStep::Take),
        4 => Just(NetStep::Save),
    ];
    proptest::collection::vec(step, 1..40)
}

fn net(link: &Arc<TestLink>) -> Arc<Net> {
    let (name, mac) = ("net".into(), [2; 6]);
    let config = NetConfig { name, link: link.clone(), mac, poll: Duration::ZERO, receive: None, send: None };
    Net::new(&config).unwrap()
}

fn link() -> Arc<TestLink> {
    TestLink::new(LinkInfo { queues: 2, offloads: Offloads::all(), mtu: Some(1500) })
}

/// Data of one byte behind a header.
fn frame((len, byte): (usize, u8)) -> Vec<u8> {
    [vec![0; HEADER], vec![byte; len]].concat()
}

struct NetLife {
    driver: Driver<Net>,
    link: Arc<TestLink>,
    /// Frames that have come for the guest, and buffers that it has given, of each pair.
    came: [usize; 2],
    given: [usize; 2],
    sent: [Vec<Vec<u8>>; 2],
}

impl NetLife {
    /// The host takes what the guest has sent.
    fn take(&mut self) {
        for pair in 0..2 {
            self.link.set_full(pair, false);
            self.driver.take(2 * pair + 1, 0);
            self.sent[usize::from(pair)].extend(self.link.take(pair));
        }
    }

    fn step(&mut self, step: &NetStep) {
        match step {
            NetStep::Room { pair, count, size } => {
                let given = &mut self.given[usize::from(*pair)];
                for _ in 0..(*count).min(30 - *given) {
                    self.driver.put(2 * pair, &[Piece::Write(*size)]);
                    *given += 1;
                }
                self.driver.ring(2 * pair);
            }
            NetStep::Come { pair, frames } => {
                frames.iter().for_each(|one| self.link.send(*pair, &frame(*one)));
                self.came[usize::from(*pair)] += frames.len();
            }
            NetStep::Send { pair, frames, full } => {
                if self.driver.waiting(2 * pair + 1) > 20 {
                    self.take();
                }
                if *full {
                    self.link.set_full(*pair, true);
                }
                frames.iter().for_each(|one| self.driver.put(2 * pair + 1, &[Piece::Read(&frame(*one))]));
                self.driver.ring(2 * pair + 1);
            }
            NetStep::Take | NetStep::Save => self.take(),
        }
    }

    fn live(steps: &[NetStep], saves: bool) -> impl PartialEq + std::fmt::Debug + use<> {
        let link = link();
        let driver = Driver::new(net(&link));
        let mut life = Self { driver, link, came: [0; 2], given: [0; 2], sent: Default::default() };
        // Two pairs receive.
        let used = life.driver.rig.call(4, &[Piece::Read(&[4, 0]), Piece::Read(&[2, 0]), Piece::Write(1)]);
        assert_eq!(used.data, [0]);
        for step in steps {
            match step {
                NetStep::Save if saves => {
                    let link = life.link.clone();
                    life.driver.save(|| (), || net(&link), net(&self::link()));
                }
                NetStep::Save => {}
                step => life.step(step),
            }
        }
        life.take();
        for pair in 0..2 {
            // All that has come is given to the guest, in as many buffers as it needs.
            let (queue, came, given) = (2 * pair, life.came[usize::from(pair)], life.given[usize::from(pair)]);
            life.driver.take(queue, given.saturating_sub(came));
            for _ in given..came {
                life.driver.put(queue, &[Piece::Write(1600)]);
                life.driver.take(queue, 0);
            }
        }
        (life.driver.ended, life.sent, life.link.settings())
    }
}

/// Entropy: how much is asked for in each request, whether it rings for them, and whether it is saved then.
fn live_of_entropy(steps: &[(Vec<u32>, bool, bool)], saves: bool) -> Vec<(u64, u32)> {
    let rng = || Rng::new("rng").unwrap();
    let mut driver = Driver::new(rng());
    for (requests, ring, save) in steps {
        driver.take(0, 10);
        requests.iter().for_each(|len| driver.put(0, &[Piece::Write(*len)]));
        if *ring {
            driver.ring(0);
        }
        if *save && saves {
            driver.save(|| (), rng, rng());
        }
    }
    driver.take(0, 0);
    driver.ended.iter().map(|(request, (len, _))| (*request, *len)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fuzz_a_disk_saved_with_requests_in_flight_behaves_the_same(steps in disk_steps()) {
        prop_assert_eq!(DiskLife::live(&steps, false), DiskLife::live(&steps, true));
    }

    #[test]
    fn fuzz_a_card_saved_with_frames_on_their_way_behaves_the_same(steps in net_steps()) {
        prop_assert_eq!(NetLife::live(&steps, false), NetLife::live(&steps, true));
    }

    #[test]
    fn fuzz_an_entropy_device_saved_with_requests_waiting_behaves_the_same(
        steps in proptest::collection::vec(
            (proptest::collection::vec(1u32..256, 1..8), any::<bool>(), any::<bool>()), 1..20),
    ) {
        prop_assert_eq!(live_of_entropy(&steps, false), live_of_entropy(&steps, true));
    }
}
