use std::sync::mpsc::{TryRecvError, channel};

use proptest::prelude::*;
use skep_block::testing::{Fault, FaultDisk, MemoryDisk};
use skep_block::{DiskInfo, IoError, LimitedDisk, Operation};
use skep_worker::{Limit, Limiter, Limits};

use super::*;
use crate::feature::{TRANSPORT, VERSION_1};
use crate::testing::{BUFFERS, Guest, Log, Piece, RAM, RAM_SIZE, Rig, Told, Used, Wires};
use crate::{QueueError, QueueState, Transport};

const SIZE: u64 = 1 << 20;

fn config(disk: Arc<dyn Disk>, queues: u16) -> BlkConfig {
    BlkConfig { name: "blk".into(), disk, queues, serial: "skep-serial".into(), poll: Duration::ZERO }
}

fn rig(disk: Arc<dyn Disk>) -> Rig<Blk> {
    Rig::new(Blk::new(&config(disk, 1)).unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

impl Rig<Blk> {
    fn read(&mut self, sector: u64, len: u32) -> Used {
        self.call(0, &[Piece::Read(&header(0, sector)), Piece::Write(len), Piece::Write(1)])
    }

    /// The status of a request without room for data.
    fn status(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        let used = self.call(0, &[Piece::Read(&header(kind, sector)), Piece::Read(data), Piece::Write(1)]);
        assert_eq!(used.len, 1);
        used.data[0]
    }
}

#[test]
fn what_is_written_is_read() {
    let disk = MemoryDisk::new(SIZE, 512);
    let mut rig = rig(disk.clone());
    assert_eq!(rig.status(1, 5, &[0xa5; 1024]), 0);
    assert_eq!(disk.content()[5 * 512..7 * 512], [0xa5; 1024]);
    let used = rig.read(4, 2048);
    assert_eq!(used.len, 2049);
    assert_eq!(used.data[..512], [0; 512]);
    assert_eq!(used.data[512..1536], [0xa5; 1024]);
    assert_eq!(used.data[2048], 0);
    // Header, data and status as a driver may cut them.
    let bytes = [header(1, 9), vec![7; 512]].concat();
    let used = rig
        .call(0, &[Piece::Read(&bytes[..3]), Piece::Read(&bytes[3..20]), Piece::Read(&bytes[20..]), Piece::Write(1)]);
    assert_eq!(used.data, [0]);
    let used = rig.call(0, &[Piece::Read(&header(0, 9)), Piece::Write(100), Piece::Write(413)]);
    assert_eq!((used.len, &used.data[..512], used.data[512]), (513, &[7; 512][..], 0));
}

/// A queue that holds requests back is asked again when its time has come, though nothing new has.
#[test]
fn a_disk_with_a_limit_goes_on_by_itself() {
    let limit = Limit { per_second: 1000, burst: 1 };
    let limiter = Limiter::new(Limits { requests: Some(limit), bytes: None });
    let mut rig = rig(LimitedDisk::new(MemoryDisk::new(SIZE, 512), limiter));
    for sector in 0..20 {
        assert_eq!(rig.read(sector, 512).len, 513);
    }
}

#[test]
fn what_can_not_be_done_is_said_so() {
    let mut rig = rig(MemoryDisk::new(SIZE, 512));
    let sectors = SIZE / 512;
    for (kind, sector, len) in
        [(1, sectors, 512), (1, sectors - 1, 1024), (1, u64::MAX, 512), (1, 1 << 55, 512), (1, 0, 500)]
    {
        assert_eq!(rig.status(kind, sector, &vec![1; len]), 1, "{kind} {sector} {len}");
    }
    assert_eq!(rig.read(sectors, 512).len, 1);
    assert_eq!(rig.read(0, 511).len, 1);
    for kind in [2, 3, 10, 14, 0xffff_ffff] {
        assert_eq!(rig.status(kind, 0, &[0; 16]), 2);
    }
    assert_eq!(rig.status(1, 0, &[]), 0, "a write of nothing");
}

#[test]
fn a_flush_reaches_the_medium_and_write_through_needs_none() {
    let disk = MemoryDisk::new(SIZE, 512);
    let mut rig = rig(disk.clone());
    assert_eq!(rig.status(1, 0, &[1; 512]), 0);
    assert_ne!(disk.durable()[..512], [1; 512]);
    assert_eq!(rig.status(4, 0, &[]), 0);
    assert_eq!(disk.durable()[..512], [1; 512]);
    rig.device.write_config(WRITEBACK, &[0]);
    assert_eq!(rig.status(1, 0, &[2; 512]), 0);
    assert_eq!(disk.durable()[..512], [2; 512]);
    assert_eq!(rig.device.save(), BlkState { writeback: false });
    rig.device.reset();
    assert_eq!(rig.device.save(), BlkState { writeback: true });
    // A driver that does not know how to flush.
    rig.device.activate(VERSION_1);
    assert_eq!(rig.status(1, 0, &[3; 512]), 0);
    assert_eq!(disk.durable()[..512], [3; 512]);
    assert_eq!((disk.counts().flushes, disk.counts().fua), (1, 2));
}

#[test]
fn discard_and_write_zeroes() {
    let disk = MemoryDisk::new(SIZE, 512);
    disk.fill(0, &[9; 8192]);
    let mut rig = rig(disk.clone());
    assert_eq!(rig.status(11, 0, &segment(1, 2, 0)), 0);
    assert_eq!(rig.status(13, 0, &segment(4, 1, 1)), 0);
    assert_eq!(rig.status(13, 0, &segment(6, 1, 0)), 0);
    let zero: Vec<_> = disk.content().chunks(512).take(10).map(|sector| sector == [0; 512]).collect();
    assert_eq!(zero, [false, true, true, false, true, false, true, false, false, false]);
    for (kind, data, status) in [
        (11, segment(0, 1, 1), 2),
        (13, segment(0, 1, 2), 2),
        (13, segment(0, MAX_RANGE + 1, 0), 1),
        (13, segment(u64::MAX, 1, 0), 1),
        (11, segment(SIZE / 512, 1, 0), 1),
        (11, segment(0, 1, 0)[..15].to_vec(), 2),
        (11, [segment(0, 1, 0), segment(1, 1, 0)].concat(), 2),
    ] {
        assert_eq!(rig.status(kind, 0, &data), status, "{kind} {data:?}");
    }
}

#[test]
fn the_id_and_the_configuration() {
    let disk = MemoryDisk::with_info(DiskInfo {
        size: SIZE,
        block_size: 512,
        preferred_size: 4096,
        read_only: true,
        write_cache: false,
        discard: false,
    });
    let mut rig = Rig::new(Blk::new(&config(disk.clone(), 3)).unwrap());
    let used = rig.call(0, &[Piece::Read(&header(8, 0)), Piece::Write(20), Piece::Write(1)]);
    assert_eq!((used.len, &used.data[..12], used.data[20]), (21, &b"skep-serial\0"[..], 0));
    let used = rig.call(2, &[Piece::Read(&header(8, 0)), Piece::Write(5)]);
    assert_eq!((used.len, &used.data[..4]), (5, &b"skep"[..]));
    assert_eq!(rig.status(1, 0, &[0; 512]), 1, "read-only");
    let known = feature::SEG_MAX | feature::BLOCK_SIZE | feature::TOPOLOGY | feature::FLUSH;
    assert_eq!(rig.device.features(), known | feature::READ_ONLY | feature::MULTI_QUEUE);
    let mut data = [0; 64];
    rig.device.read_config(0, &mut data);
    assert_eq!(data[..8], (SIZE / 512).to_le_bytes());
    assert_eq!((data[12], data[20..24].to_vec(), data[24], data[34]), (254, 512u32.to_le_bytes().to_vec(), 3, 3));
    assert_eq!(data[60..], [0; 4]);
    rig.device.write_config(WRITEBACK, &[1]);
    assert!(!rig.device.save().writeback);
    disk.resize(2 * SIZE);
    rig.wait_told(Told::Config);
    rig.device.read_config(0, &mut data);
    assert_eq!(data[..8], (SIZE / 256).to_le_bytes());
}

#[test]
fn faults_of_the_disk_are_the_requests_own() {
    let disk = FaultDisk::new(MemoryDisk::new(SIZE, 512));
    let mut rig = rig(disk.clone());
    disk.set_rule(|operation| match operation {
        Operation::Read { offset: 0 } => Some(Fault::Fail(IoError::Host(5))),
        Operation::Write { .. } => Some(Fault::Fail(IoError::NoSpace)),
        Operation::Flush => Some(Fault::Fail(IoError::Unsupported)),
        _ => None,
    });
    let used = rig.read(0, 512);
    assert_eq!(used.len, 1, "nothing is said to have been read");
    assert_eq!(rig.status(1, 0, &[0; 512]), 1);
    assert_eq!(rig.status(4, 0, &[]), 2);
    assert_eq!(rig.read(1, 512).len, 513);
}

#[test]
fn requests_end_in_any_order() {
    let disk = FaultDisk::new(MemoryDisk::new(SIZE, 512));
    let mut rig = rig(disk.clone());
    disk.set_rule(|operation| matches!(operation, Operation::Read { offset: 0 }).then_some(Fault::Hang));
    let read = |sector| [header(0, sector)].concat();
    let slow = rig.send(0, &[Piece::Read(&read(0)), Piece::Write(512), Piece::Write(1)]);
    let fast = rig.send(0, &[Piece::Read(&read(1)), Piece::Write(512), Piece::Write(1)]);
    assert_eq!(rig.wait_used(0).head, fast);
    disk.wait_hanging(1);
    disk.clear_rule();
    disk.release();
    assert_eq!(rig.wait_used(0).head, slow);
}

/// CVE-2026-45782: a reset freed what the disk still wrote to. Here the queue has stopped only when the disk is done, and whoever asked
/// does not wait.
#[test]
fn a_stop_with_requests_in_flight_ends_with_them() {
    let disk = FaultDisk::new(MemoryDisk::new(SIZE, 512));
    let mut rig = rig(disk.clone());
    disk.set_rule(|_| Some(Fault::HangForGood));
    for sector in 0..3 {
        rig.send(0, &[Piece::Read(&header(0, sector)), Piece::Write(512), Piece::Write(1)]);
    }
    disk.wait_hanging(3);
    let stop = rig.begin_stop(0);
    assert_eq!(stop.try_recv(), Err(TryRecvError::Empty));
    disk.clear_rule();
    disk.release();
    assert_eq!(stop.recv().unwrap(), QueueState { next: 3, broken: false });
    rig.send(0, &[Piece::Read(&header(0, 9)), Piece::Write(512), Piece::Write(1)]);
    assert_eq!(rig.rings[0].used_index(), 3);
    rig.start_all(&[QueueState { next: 3, broken: false }]);
    let heads: Vec<_> = (0..4).map(|_| rig.wait_used(0).len).collect();
    assert_eq!(heads, [513; 4]);
}

/// What it takes meanwhile is done, and it stops at last.
#[test]
fn a_stop_that_is_called_off_leaves_a_queue_that_works() {
    let disk = FaultDisk::new(MemoryDisk::new(SIZE, 512));
    let mut rig = rig(disk.clone());
    disk.set_rule(|operation| matches!(operation, Operation::Read { offset: 0 }).then_some(Fault::HangForGood));
    let slow = rig.send(0, &[Piece::Read(&header(0, 0)), Piece::Write(512), Piece::Write(1)]);
    disk.wait_hanging(1);
    let stop = rig.begin_stop(0);
    // The driver rings at a queue that takes nothing.
    let fast = rig.send(0, &[Piece::Read(&header(0, 1)), Piece::Write(512), Piece::Write(1)]);
    let (sender, runs_on) = channel();
    rig.device.call_off_stop(0, Box::new(move || sender.send(()).unwrap()));
    runs_on.recv().unwrap();
    assert_eq!(stop.try_recv(), Err(TryRecvError::Disconnected));
    assert_eq!(rig.wait_used(0).head, fast);
    assert_eq!(rig.read(2, 512).len, 513);
    let stop = rig.begin_stop(0);
    disk.clear_rule();
    disk.release();
    assert_eq!(stop.recv().unwrap(), QueueState { next: 3, broken: false });
    assert_eq!(rig.wait_used(0).head, slow);
    // There is nothing to call off.
    let (sender, runs_on) = channel::<()>();
    rig.device.call_off_stop(0, Box::new(move || sender.send(()).unwrap()));
    assert!(runs_on.recv().is_err());
}

#[test]
fn a_reset_by_the_driver_or_the_bus_with_a_hanging_disk_blocks_nobody() {
    let disk = FaultDisk::new(MemoryDisk::new(SIZE, 512));
    let device = Blk::new(&config(disk.clone(), 1)).unwrap();
    let guest = Arc::new(Guest::new());
    let wires = Wires::new(Log::default(), true);
    let transport = Transport::new(device, guest.dma(), wires, 2).unwrap();
    let status = || {
        let mut data = [0];
        transport.read(20, &mut data);
        data[0]
    };
    let start = |ring: &crate::testing::Ring| {
        transport.write(20, &[3]);
        for (half, features) in [(0u32, 0u32), (1, 1)] {
            transport.write(8, &half.to_le_bytes());
            transport.write(12, &features.to_le_bytes());
        }
        transport.write(20, &[11]);
        transport.write(24, &ring.config.size.to_le_bytes());
        transport.write(32, &ring.config.descriptors.to_le_bytes());
        transport.write(40, &ring.config.available.to_le_bytes());
        transport.write(48, &ring.config.used.to_le_bytes());
        transport.write(28, &1u16.to_le_bytes());
        transport.write(20, &[15]);
        assert_eq!(status(), 15);
    };
    let read = |ring: &mut crate::testing::Ring| {
        ring.add(&[Piece::Read(&header(0, 0)), Piece::Write(512), Piece::Write(1)]);
        transport.write(0x3000, &[0, 0]);
    };
    let new_ring = |at| crate::testing::Ring::new(guest.clone(), crate::testing::Ring::place(at, 16, false));
    let mut ring = new_ring(RAM);
    start(&ring);
    disk.set_rule(|_| Some(Fault::HangForGood));
    read(&mut ring);
    disk.wait_hanging(1);
    transport.write(20, &[0]);
    assert_eq!(status(), 15, "the reset is not complete");
    let (sender, paused) = std::sync::mpsc::channel();
    transport.begin_stop(move || sender.send(()).unwrap());
    disk.clear_rule();
    disk.release();
    paused.recv().unwrap();
    assert_eq!((status(), ring.used_index()), (0, 1));
    transport.resume();
    // A driver that begins anew finds a device that does, too.
    let mut ring = new_ring(RAM + 0x4000);
    start(&ring);
    read(&mut ring);
    let (sender, stopped) = std::sync::mpsc::channel();
    transport.begin_stop(move || sender.send(()).unwrap());
    stopped.recv().unwrap();
    assert!(ring.used_index() <= 1, "done, or still available");
}

#[test]
fn chains_without_header_or_status_ask_for_a_reset() {
    let cases: [&[Piece<'_>]; 4] = [
        &[Piece::Read(&[0; 15]), Piece::Write(1)],
        &[Piece::Read(&[0; 16])],
        &[Piece::Write(16)],
        &[Piece::Read(&[0; 16]), Piece::At { gpa: RAM + RAM_SIZE, len: 1, write: true }],
    ];
    for pieces in cases {
        let mut rig = rig(MemoryDisk::new(SIZE, 512));
        rig.send(0, pieces);
        rig.wait_told(Told::NeedsReset);
        assert!(rig.stop_all()[0].broken);
    }
}

#[test]
fn a_host_without_resources_breaks_the_queue_alone() {
    struct Poor(Arc<MemoryDisk>);
    impl Disk for Poor {
        fn info(&self) -> DiskInfo {
            self.0.info()
        }
        fn open_queue(&self, _depth: u16) -> Result<Box<dyn skep_block::DiskQueue>, skep_block::BlockError> {
            Err(skep_block::BlockError::Queue { what: "make a ring", source: io::Error::from_raw_os_error(12) })
        }
        fn on_resize(&self, listener: skep_block::ResizeListener) -> ResizeSubscription {
            self.0.on_resize(listener)
        }
    }
    let rig = rig(Arc::new(Poor(MemoryDisk::new(SIZE, 512))));
    rig.wait_told(Told::NeedsReset);
    assert!(rig.stop_all()[0].broken);
    let error = QueueError::Host("x".into()).to_string();
    assert_eq!(error, "the host can't work the queue: x");
}

#[derive(Debug, Clone)]
enum Step {
    Io { kind: u32, sector: u64, len: u32, value: u8 },
    Raw { header: Vec<u8>, gpa: u64, len: u32, write: bool },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind =
        prop_oneof![4 => Just(0u32), 4 => Just(1), 1 => Just(4), 1 => Just(11), 1 => Just(13), 1 => any::<u32>()];
    let sector = prop_oneof![4 => 0..SIZE / 512, 1 => any::<u64>()];
    let gpa = prop_oneof![BUFFERS..RAM + RAM_SIZE + 64, any::<u64>()];
    let step = prop_oneof![
        6 => (kind, sector, 0u32..8, any::<u8>())
            .prop_map(|(kind, sector, sectors, value)| Step::Io { kind, sector, len: sectors * 512, value }),
        1 => (proptest::collection::vec(any::<u8>(), 0..40), gpa, 0u32..9000, any::<bool>())
            .prop_map(|(header, gpa, len, write)| Step::Raw { header, gpa, len, write }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..24)
}

skep_fuzzing::targets! {
    /// Reads see what was written, across stops and restarts, and nonsense harms only its own queue.
    "virtio-blk", 64: fn fuzz_requests(steps in steps()) {
        let disk = MemoryDisk::new(SIZE, 512);
        let mut model = vec![0; SIZE as usize];
        let mut rig = rig(disk.clone());
        for step in steps {
            match step {
                Step::Io { kind: 0, sector, len, .. } => {
                    let used = rig.read(sector, len);
                    let from = sector.saturating_mul(512).min(2 * SIZE) as usize;
                    if let Some(expected) = model.get(from..from + len as usize) {
                        prop_assert_eq!(used.len, len + 1);
                        prop_assert_eq!(&used.data[..len as usize], expected);
                    } else {
                        prop_assert_eq!(used.len, 1);
                    }
                }
                Step::Io { kind, sector, len, value } => {
                    let segment = segment(sector, len / 512, 0);
                    let data = if kind == 1 { vec![value; len as usize] } else { segment };
                    let status = rig.status(kind, sector, &data);
                    if let (0, 1 | 11 | 13) = (status, kind) {
                        let from = sector as usize * 512;
                        model[from..from + len as usize].fill(if kind == 1 { value } else { 0 });
                    }
                }
                Step::Raw { header, gpa, len, write } => {
                    rig.send(0, &[Piece::Read(&header), Piece::At { gpa, len, write }]);
                    rig.stop_all();
                    // The driver may have broken the queue, and may have written something: it begins anew.
                    model.copy_from_slice(&disk.content());
                    rig = self::rig(disk.clone());
                }
                Step::Restart => {
                    let states = rig.stop_all();
                    rig.start_all(&states);
                }
            }
        }
        prop_assert_eq!(disk.content(), model);
    }
}

#[test]
fn features_are_within_what_a_transport_offers() {
    let device = Blk::new(&config(MemoryDisk::new(SIZE, 512), 2)).unwrap();
    assert_eq!(device.features() & TRANSPORT, 0);
}

#[test]
fn a_batch_costs_one_doorbell_and_one_interrupt() {
    let disk = MemoryDisk::new(SIZE, 512);
    let mut rig = Rig::new(Blk::new(&config(disk.clone(), 1)).unwrap());
    let ring = &mut rig.rings[0];
    let requests = 20;
    // The driver asks to be interrupted after the last one of the batch.
    let event = ring.config.available + 4 + u64::from(ring.config.size) * 2;
    rig.guest.write(event, &(requests - 1u16).to_le_bytes());
    for sector in 0..requests {
        ring.add(&[Piece::Read(&header(0, sector.into())), Piece::Write(512), Piece::Write(1)]);
    }
    ring.kick();
    rig.wait_told(Told::Used(0));
    assert_eq!(rig.rings[0].used_index(), requests);
    rig.stop_all();
    assert!(rig.told.try_recv().is_err(), "there was one interrupt");
    assert!(disk.counts().kicks <= 2, "the host was called for batches");
}
