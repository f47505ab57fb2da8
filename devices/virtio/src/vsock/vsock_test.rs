use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use skep_state::Component;

use super::connection::BUFFER;
use super::engine::MOST_CONNECTIONS;
use super::packet::{HEADER, HOST_CID, NO_RECEIVE, NO_SEND, op};
use super::*;
use crate::testing::{BUFFERS, EDGE, Piece, RAM, RAM_SIZE, Rig, Told, Used};

const CID: u64 = 42;

struct World {
    rig: Rig<Vsock>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v");
    let rig = Rig::new(Vsock::new("vsock", CID, &path).unwrap());
    World { rig, path, _directory: directory }
}

/// A packet of the guest's.
#[derive(Debug, Clone)]
struct Sent {
    guest: u32,
    host: u32,
    op: u16,
    flags: u32,
    len: u32,
    room: u32,
    taken: u32,
    cids: (u64, u64),
    kind: u16,
}

impl Sent {
    fn new(guest: u32, host: u32, op: u16) -> Self {
        Self { guest, host, op, flags: 0, len: 0, room: 0x10_0000, taken: 0, cids: (CID, HOST_CID), kind: 1 }
    }

    fn header(&self) -> Vec<u8> {
        [
            &self.cids.0.to_le_bytes()[..],
            &self.cids.1.to_le_bytes(),
            &self.guest.to_le_bytes(),
            &self.host.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.to_le_bytes(),
            &self.taken.to_le_bytes(),
        ]
        .concat()
    }
}

/// What the guest has received: host port, guest port, op, flags, data.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    host: u32,
    guest: u32,
    op: u16,
    flags: u32,
    forwarded: u32,
    data: Vec<u8>,
}

fn parse(used: &Used) -> Got {
    let word = |at: usize| u32::from_le_bytes(used.data[at..at + 4].try_into().unwrap());
    assert_eq!(used.data[..16], [&HOST_CID.to_le_bytes()[..], &CID.to_le_bytes()].concat());
    assert_eq!((used.len as usize, word(28) as u16), (HEADER + word(24) as usize, 1));
    assert!(word(36) == BUFFER || word(28) >> 16 == u32::from(op::RST));
    let data = used.data[HEADER..].to_vec();
    Got { host: word(16), guest: word(20), op: (word(28) >> 16) as u16, flags: word(32), forwarded: word(40), data }
}

impl World {
    fn send(&mut self, packet: &Sent, data: &[u8]) {
        let packet = Sent { len: data.len() as u32, ..packet.clone() };
        self.rig.call(TRANSMIT, &[Piece::Read(&packet.header()), Piece::Read(data)]);
    }

    fn receive(&mut self) -> Got {
        parse(&self.rig.call(0, &[Piece::Write(44), Piece::Write(4096)]))
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    /// A connection of the guest's port 1000 to the host's port 7.
    fn connected(&mut self) -> UnixStream {
        let listener = self.listen(7);
        self.send(&Sent::new(1000, 7, op::REQUEST), &[]);
        let (stream, _) = listener.accept().unwrap();
        let got = self.receive();
        assert_eq!((got.host, got.guest, got.op), (7, 1000, op::RESPONSE));
        stream
    }
}

const TRANSMIT: u16 = 1;

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_guest_reaches_a_program_of_the_host() {
    let mut world = world();
    let mut stream = world.connected();
    world.send(&Sent::new(1000, 7, op::RW), b"question");
    assert_eq!(read(&mut stream, 8), b"question");
    stream.write_all(b"answer").unwrap();
    let got = world.receive();
    assert_eq!((got.op, &got.data[..]), (op::RW, &b"answer"[..]));
    // Each half ends by itself.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let got = world.receive();
    assert_eq!((got.op, got.flags, got.forwarded), (op::SHUTDOWN, NO_SEND, 8));
    world.send(&Sent::new(1000, 7, op::RW), b"more");
    assert_eq!(read(&mut stream, 4), b"more");
    world.send(&Sent { flags: NO_RECEIVE | NO_SEND, ..Sent::new(1000, 7, op::SHUTDOWN) }, &[]);
    assert_eq!(stream.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(world.receive().op, op::RST);
    world.send(&Sent::new(1000, 7, op::RW), b"late");
    assert_eq!(world.receive().op, op::RST, "it is known no more");
}

#[test]
fn a_program_of_the_host_reaches_a_guest() {
    let mut world = world();
    let mut stream = UnixStream::connect(&world.path).unwrap();
    stream.write_all(b"CONN").unwrap();
    stream.write_all(b"ECT 80\nearly").unwrap();
    let got = world.receive();
    assert_eq!((got.op, got.guest), (op::REQUEST, 80));
    world.send(&Sent::new(80, got.host, op::RESPONSE), &[]);
    let answer = format!("OK {}\n", got.host);
    assert_eq!(read(&mut stream, answer.len()), answer.as_bytes());
    let early = world.receive();
    assert_eq!((early.op, &early.data[..]), (op::RW, &b"early"[..]));
    // A program that goes altogether: that it sends no more may show first.
    drop(stream);
    let mut got = world.receive();
    if got.flags == NO_SEND {
        got = world.receive();
    }
    assert_eq!((got.op, got.flags), (op::SHUTDOWN, NO_SEND | NO_RECEIVE));
    world.send(&Sent::new(80, got.host, op::RST), &[]);

    // Nobody there in the guest.
    let mut stream = UnixStream::connect(&world.path).unwrap();
    stream.write_all(b"CONNECT 81\n").unwrap();
    let got = world.receive();
    world.send(&Sent::new(81, got.host, op::RST), &[]);
    assert_eq!(stream.read(&mut [0; 9]).unwrap(), 0);
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 99999999999\n", "CONNECT 1 2\n", &"x".repeat(33)] {
        let mut stream = UnixStream::connect(&world.path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        // It is closed, orderly or not.
        assert!(!matches!(stream.read(&mut [0; 9]), Ok(1..)), "{line}");
    }
}

#[test]
fn what_is_not_for_the_host_or_not_known_is_refused() {
    let mut world = world();
    let base = Sent::new(5, 6, op::REQUEST);
    for packet in [
        base.clone(),
        Sent { cids: (CID + 1, HOST_CID), ..base.clone() },
        Sent { cids: (CID, 5), ..base.clone() },
        Sent { kind: 2, ..base.clone() },
        Sent::new(5, 6, op::RW),
        Sent::new(5, 6, op::CREDIT_UPDATE),
        Sent::new(5, 6, 77),
    ] {
        world.send(&packet, &[]);
        let got = world.receive();
        assert_eq!((got.op, got.host, got.guest), (op::RST, 6, 5), "{packet:?}");
    }
    world.send(&Sent::new(5, 6, op::RST), &[]);
    let _stream = world.connected();
    world.send(&Sent::new(1000, 7, op::REQUEST), &[]);
    assert_eq!(world.receive().op, op::RST, "twice the same");
}

/// A guest that sends and takes no refusals: they are no more than a few, and then it is not listened to.
#[test]
fn refusals_are_bounded() {
    let mut world = world();
    for _ in 0..64 {
        world.send(&Sent::new(5, 6, op::RW), &[]);
    }
    world.rig.send(TRANSMIT, &[Piece::Read(&Sent::new(5, 6, op::RW).header())]);
    let states = world.rig.stop_all();
    assert_eq!(states[1].next, 64);
    world.rig.start_all(&states);
    (0..65).for_each(|_| assert_eq!(world.receive().op, op::RST));
    world.rig.wait_used(TRANSMIT);
}

#[test]
fn each_side_keeps_to_the_others_credit() {
    let mut world = world();
    let mut stream = world.connected();
    // The guest has room for ten bytes, then for ten more.
    world.send(&Sent { room: 10, ..Sent::new(1000, 7, op::CREDIT_UPDATE) }, &[]);
    stream.write_all(&[5; 30]).unwrap();
    assert_eq!(world.receive().data, [5; 10]);
    world.rig.send(0, &[Piece::Write(200)]);
    assert_eq!(world.rig.rings[0].used_index(), 2);
    world.send(&Sent { room: 10, taken: 10, ..Sent::new(1000, 7, op::CREDIT_UPDATE) }, &[]);
    assert_eq!(parse(&world.rig.wait_used(0)).data, [5; 10]);
    world.send(&Sent::new(1000, 7, op::CREDIT_UPDATE), &[]);
    assert_eq!(world.receive().data, [5; 10]);
    world.send(&Sent::new(1000, 7, op::CREDIT_REQUEST), &[]);
    let got = world.receive();
    assert_eq!((got.op, got.forwarded), (op::CREDIT_UPDATE, 0));
    // The host is told half way through its buffer, and what is more than that is refused.
    let half = vec![1; BUFFER as usize / 2];
    world.send(&Sent::new(1000, 7, op::RW), &half);
    let got = world.receive();
    assert_eq!((got.op, got.forwarded), (op::CREDIT_UPDATE, BUFFER / 2));
    assert_eq!(read(&mut stream, half.len()), half);
    let full = vec![2; BUFFER as usize];
    let mut sent = 0;
    loop {
        let before = world.rig.rings[0].used_index();
        world.send(&Sent::new(1000, 7, op::RW), &full);
        sent += 1;
        assert!(sent < 100, "the host's socket never fills up");
        let got = world.receive();
        if got.op == op::RST {
            break;
        }
        assert_eq!(got.op, op::CREDIT_UPDATE);
        assert_eq!(world.rig.rings[0].used_index(), before.wrapping_add(1));
    }
}

/// CVE-2019-18960: a packet's length and its buffers' bounds disagreed, and the host's memory was read and written.
#[test]
fn lengths_and_buffers_at_and_across_region_edges() {
    let mut world = world();
    let mut stream = world.connected();
    let text: Vec<u8> = (0..64).collect();
    let packet = Sent { len: 64, ..Sent::new(1000, 7, op::RW) };
    // The data end at a region's end, cross into the next one, begin it; the header does.
    for gpa in [EDGE - 64, EDGE - 32, EDGE, RAM + RAM_SIZE - 64] {
        world.rig.guest.write(gpa, &text);
        world.rig.call(TRANSMIT, &[Piece::Read(&packet.header()), Piece::At { gpa, len: 64, write: false }]);
        assert_eq!(read(&mut stream, 64), text);
        world.rig.guest.write(gpa, &[0; 64]);
        stream.write_all(&text).unwrap();
        let used = world.rig.call(0, &[Piece::Write(44), Piece::At { gpa, len: 64, write: true }]);
        assert_eq!(parse(&used).data, text);
    }
    let header = packet.header();
    world.rig.guest.write(EDGE - 20, &header);
    world.rig.call(TRANSMIT, &[Piece::At { gpa: EDGE - 20, len: 44, write: false }, Piece::Read(&text)]);
    assert_eq!(read(&mut stream, 64), text);
    // A length that the chain does not hold, and the largest.
    for len in [65, u32::MAX, BUFFER + 1] {
        let liar = Sent { len, ..Sent::new(1000, 7, op::RW) };
        world.rig.call(TRANSMIT, &[Piece::Read(&liar.header()), Piece::Read(&text)]);
        assert_eq!(world.receive().op, op::RST);
    }
    // Data behind the end of memory, to be read and to be written; a header without room.
    let outside = Piece::At { gpa: RAM + RAM_SIZE - 32, len: 64, write: false };
    let cases: [(u16, &[Piece<'_>]); 4] = [
        (1, &[Piece::Read(&header), outside]),
        (1, &[Piece::Read(&header[..43])]),
        (0, &[Piece::Write(43)]),
        (0, &[Piece::At { gpa: RAM + RAM_SIZE - 20, len: 60, write: true }]),
    ];
    for (queue, pieces) in cases {
        let mut world = self::world();
        world.send(&Sent::new(5, 6, op::RW), &[]);
        world.rig.send(queue, pieces);
        world.rig.wait_told(Told::NeedsReset);
    }
}

#[test]
fn connections_live_through_a_pause_and_end_with_a_restore() {
    let mut world = world();
    let mut stream = world.connected();
    let states = world.rig.stop_all();
    stream.write_all(b"meanwhile").unwrap();
    world.rig.start_all(&states);
    assert_eq!(world.receive().data, b"meanwhile");
    world.rig.send(2, &[Piece::Write(4)]);
    let states = world.rig.stop_all();
    assert_eq!(states[2].next, 0, "nothing has ended");
    let saved = world.rig.device.save();
    assert_eq!(saved, VsockState { cid: CID, ended: false });
    world.rig.device.restore(&saved).unwrap();
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
    assert!(world.rig.device.save().ended);
    world.rig.start_all(&states);
    assert_eq!(world.rig.wait_used(2).data, [0; 4]);
    assert!(!world.rig.device.save().ended);
    assert!(world.rig.device.restore(&VsockState { cid: CID + 1, ended: false }).is_err());
    assert!(VsockState { cid: 2, ended: false }.check().is_err());
    let mut config = [0; 8];
    world.rig.device.read_config(0, &mut config);
    assert_eq!(config, CID.to_le_bytes());
}

#[test]
fn connections_are_bounded_and_a_taken_socket_is_refused() {
    let mut world = world();
    assert!(Vsock::new("second", CID, &world.path).is_err());
    for cid in [0, 2, 0xffff_ffff, u64::MAX] {
        assert!(Vsock::new("wrong", cid, &world.path.with_extension("x")).is_err());
    }
    // As many as there can be, as far as the host lets this test have descriptors, wait for their line.
    let most = MOST_CONNECTIONS.min(200);
    let streams: Vec<_> = (0..most).map(|_| UnixStream::connect(&world.path).unwrap()).collect();
    let _stream = world.connected();
    drop(streams);
    let path = world.path.clone();
    drop(world);
    assert!(!path.exists());
}

#[derive(Debug, Clone)]
enum Step {
    Packet(Sent, Vec<u8>),
    Raw(u16, Vec<u8>, u64, u32, bool),
    Receive(u32),
    Host(Vec<u8>),
    Connect(u32),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let packet = (
        prop::sample::select(vec![1000u32, 80]),
        prop::sample::select(vec![7u32, 1 << 30]),
        0u16..9,
        any::<(u32, u32, u32)>(),
    )
        .prop_map(|(guest, host, op, (flags, room, taken))| Sent {
            flags: flags % 4,
            room: room % 5000,
            taken: taken % 100,
            ..Sent::new(guest, host, op)
        });
    let data = proptest::collection::vec(any::<u8>(), 0..300);
    let step = prop_oneof![
        6 => (packet, data.clone()).prop_map(|(packet, data)| Step::Packet(packet, data)),
        1 => (0u16..3, proptest::collection::vec(any::<u8>(), 1..100), BUFFERS..RAM + RAM_SIZE + 99, 0u32..70_000, any::<bool>())
            .prop_map(|(queue, bytes, gpa, len, write)| Step::Raw(queue, bytes, gpa, len, write)),
        4 => (44u32..500).prop_map(Step::Receive),
        2 => data.prop_map(Step::Host),
        1 => (0u32..100).prop_map(Step::Connect),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..60)
}

skep_fuzzing::targets! {
    "virtio-vsock", 48: fn fuzz_packets(steps in steps()) {
        let mut world = world();
        let mut streams = vec![world.connected()];
        let listener = world.listen(8);
        listener.set_nonblocking(true).unwrap();
        streams[0].set_nonblocking(true).unwrap();
        for step in steps {
            for ring in &mut world.rig.rings {
                while ring.take_used().is_some() {}
            }
            let room = |world: &World, queue: u16| world.rig.rings[usize::from(queue)].free() >= 2;
            match step {
                Step::Packet(packet, data) if room(&world, 1) => {
                    let packet = Sent { len: data.len() as u32, ..packet };
                    world.rig.send(1, &[Piece::Read(&packet.header()), Piece::Read(&data)]);
                }
                Step::Raw(queue, bytes, gpa, len, write) if room(&world, queue) => {
                    world.rig.send(queue, &[Piece::Read(&bytes), Piece::At { gpa, len, write }]);
                }
                Step::Receive(len) if room(&world, 0) => drop(world.rig.send(0, &[Piece::Write(len)])),
                Step::Host(bytes) => {
                    let last = streams.last_mut().unwrap();
                    let _ = last.write(&bytes);
                    let _ = last.read(&mut [0; 500]);
                }
                Step::Connect(port) => {
                    let mut stream = UnixStream::connect(&world.path).unwrap();
                    let _ = stream.write_all(format!("CONNECT {port}\n").as_bytes());
                    stream.set_nonblocking(true).unwrap();
                    streams.push(stream);
                }
                Step::Restart => {
                    let states = world.rig.stop_all();
                    world.rig.start_all(&states);
                }
                _ => {}
            }
        }
        for (queue, state) in world.rig.stop_all().into_iter().enumerate() {
            if !state.broken {
                prop_assert_eq!(world.rig.rings[queue].used_index(), state.next);
            }
        }
    }
}

/// A device whose host has a listener at port 7, and its connections by the guest's port.
struct Twin {
    world: World,
    listener: UnixListener,
    streams: std::collections::BTreeMap<u32, UnixStream>,
}

impl Twin {
    fn new(world: World) -> Self {
        let listener = world.listen(7);
        Self { world, listener, streams: std::collections::BTreeMap::new() }
    }

    /// A step, and all that it showed to the guest, to the host, and of what is saved.
    fn act(&mut self, (kind, port, bytes): &(u8, u32, Vec<u8>)) -> (Option<Got>, Vec<u8>, VsockState) {
        let (guest, is_open) = (1000 + port, self.streams.contains_key(&(1000 + port)));
        let (mut got, mut heard) = (None, Vec::new());
        match kind {
            0 if !is_open => {
                self.world.send(&Sent::new(guest, 7, op::REQUEST), &[]);
                self.streams.insert(guest, self.listener.accept().unwrap().0);
                got = Some(self.world.receive());
            }
            // Nobody listens.
            1 => {
                self.world.send(&Sent::new(guest, 8, op::REQUEST), &[]);
                got = Some(self.world.receive());
            }
            2 => {
                self.world.send(&Sent::new(guest, 7, op::RW), bytes);
                match self.streams.get_mut(&guest) {
                    Some(stream) => heard = read(stream, bytes.len()),
                    None => got = Some(self.world.receive()),
                }
            }
            3 if !bytes.is_empty() => {
                if let Some(stream) = self.streams.get_mut(&guest) {
                    stream.write_all(bytes).unwrap();
                    got = Some(self.world.receive());
                }
            }
            4 => self.close(guest),
            _ => {}
        }
        (got, heard, self.world.rig.device.save())
    }

    fn close(&mut self, guest: u32) {
        if let Some(mut stream) = self.streams.remove(&guest) {
            self.world.send(&Sent::new(guest, 7, op::RST), &[]);
            assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
        }
    }
}

fn twin_steps() -> impl Strategy<Value = Vec<(u8, u32, Vec<u8>)>> {
    proptest::collection::vec((0u8..5, 0u32..3, proptest::collection::vec(any::<u8>(), 0..20)), 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A device that is saved, whatever its connections, goes on elsewhere as one whose driver has ended them, once the driver has been told; to be told
    /// is saved itself.
    #[test]
    fn fuzz_a_saved_socket_device_behaves_the_same(before in twin_steps(), after in twin_steps(), again in any::<bool>()) {
        let mut one = Twin::new(world());
        before.iter().for_each(|step| drop(one.act(step)));
        let states = one.world.rig.stop_all();
        let mut record = one.world.rig.device.save_record();
        one.world.rig.start_all(&states);
        let open: Vec<_> = one.streams.keys().copied().collect();
        open.into_iter().for_each(|guest| one.close(guest));

        let elsewhere = |record: &skep_state::Record| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("v");
            let rig = Rig::idle(Vsock::new("vsock", CID, &path).unwrap(), true);
            rig.device.restore_record(record).unwrap();
            World { rig, path, _directory: directory }
        };
        if again {
            record = elsewhere(&record).rig.device.save_record();
            prop_assert!(record.open::<VsockState>().unwrap().ended);
        }
        let mut two = Twin::new(elsewhere(&record));
        prop_assert!(two.world.rig.device.save().ended);
        two.world.rig.start_all(&[]);
        prop_assert_eq!(two.world.rig.call(2, &[Piece::Write(4)]).data, [0; 4]);
        for step in &after {
            prop_assert_eq!(one.act(step), two.act(step), "{:?}", step);
        }
        one.world.rig.stop_all();
        two.world.rig.stop_all();
        prop_assert_eq!(one.world.rig.device.save_record(), two.world.rig.device.save_record());
    }
}
