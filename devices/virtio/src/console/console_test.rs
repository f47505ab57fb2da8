use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::*;
use crate::testing::{BUFFERS, Piece, RAM, RAM_SIZE, Rig, Told};

fn rig() -> (Rig<Console>, Vec<UnixStream>) {
    let mut peers = Vec::new();
    let mut port = |name: &str, console| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peers.push(theirs);
        PortConfig { name: name.into(), console, io: Box::new(ours) }
    };
    let ports = vec![port("tty", true), port("agent", false)];
    (Rig::new(Console::new("console", ports).unwrap()), peers)
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn read(peer: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

impl Rig<Console> {
    fn tell(&mut self, id: u32, event: u16, value: u16) {
        self.call(3, &[Piece::Read(&message(id, event, value))]);
    }

    /// The next control message.
    fn hear(&mut self) -> Vec<u8> {
        self.call(2, &[Piece::Write(64)]).data
    }
}

#[test]
fn ports_are_added_named_and_opened() {
    let (mut rig, mut peers) = rig();
    rig.tell(0, 0, 1);
    assert_eq!([rig.hear(), rig.hear()], [message(0, 1, 1), message(1, 1, 1)]);
    rig.tell(0, 3, 1);
    assert_eq!(rig.hear(), message(0, 4, 1));
    assert_eq!(rig.hear(), [&message(0, 7, 1)[..], b"tty"].concat());
    assert_eq!(rig.hear(), message(0, 6, 1));
    assert_eq!(rig.hear(), [&message(0, 5, 0)[..], &[80, 0, 25, 0]].concat());
    rig.tell(1, 3, 1);
    assert_eq!(rig.hear(), [&message(1, 7, 1)[..], b"agent"].concat());
    assert_eq!(rig.hear(), message(1, 6, 1));
    rig.device.resize(132, 50);
    assert_eq!(rig.hear(), [&message(0, 5, 0)[..], &[132, 0, 50, 0]].concat());
    let mut config = [0; 12];
    rig.device.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 50, 0, 2, 0, 0, 0, 0, 0, 0, 0]);

    // What the host sends waits until the port is open.
    peers[1].write_all(b"hello").unwrap();
    rig.send(4, &[Piece::Write(3)]);
    rig.tell(1, 6, 1);
    assert_eq!(rig.wait_used(4).data, b"hel");
    assert_eq!(rig.call(4, &[Piece::Write(100)]).data, b"lo");
    rig.call(5, &[Piece::Read(b"good"), Piece::Read(b"bye")]);
    assert_eq!(read(&mut peers[1], 7), b"goodbye");
    rig.call(1, &[Piece::Read(b"login:")]);
    assert_eq!(read(&mut peers[0], 6), b"login:");
    // A host that closes a port is told of, and the rest goes on.
    rig.send(4, &[Piece::Write(9)]);
    drop(peers.pop());
    assert_eq!(rig.hear(), message(1, 6, 0));
    rig.call(5, &[Piece::Read(b"lost")]);
    rig.call(1, &[Piece::Read(b"ok")]);
    assert_eq!(read(&mut peers[0], 2), b"ok");
}

#[test]
fn without_several_ports_the_first_is_open() {
    let (mut rig, mut peers) = rig();
    rig.device.activate(0);
    peers[0].write_all(b"x").unwrap();
    assert_eq!(rig.call(0, &[Piece::Write(10)]).data, b"x");
    rig.device.resize(1, 2);
    rig.wait_told(Told::Config);
    assert_eq!(rig.device.save().ports[0].news, 0);
}

#[test]
fn nonsense_from_the_driver_is_passed_over() {
    let (mut rig, _peers) = rig();
    for (id, event, value) in [(7, 3, 1), (u32::MAX, 6, 1), (0, 99, 1), (0, 0, 0), (1, 1, 1), (1, 3, 0)] {
        rig.tell(id, event, value);
    }
    rig.call(3, &[Piece::Read(&[0; 7])]);
    assert!(rig.device.save().ports.iter().all(|port| port.news == 0));
    // However often it asks, it is told once.
    for _ in 0..1000 {
        rig.tell(1, 3, 1);
    }
    rig.hear();
    rig.hear();
    assert_eq!(rig.device.save().ports[1].news, 0);
    rig.send(0, &[Piece::Read(b"no room")]);
    rig.send(3, &[Piece::Read(&message(0, 6, 1))]);
    rig.wait_told(Told::NeedsReset);
}

/// A slow host stops neither the guest nor a pause, and no byte is lost or comes twice over stops.
#[test]
fn a_slow_host_gets_every_byte_once() {
    let (mut rig, mut peers) = rig();
    let text: Vec<u8> = (0..400_000u32).map(|at| (at / 7) as u8).collect();
    for part in text.chunks(100_000) {
        let gpa = rig.rings[1].room(part.len() as u64);
        rig.guest.write(gpa, part);
        rig.send(1, &[Piece::At { gpa, len: part.len() as u32, write: false }]);
    }
    let mut seen = Vec::new();
    while seen.len() < text.len() {
        let states = rig.stop_all();
        let saved = rig.device.save();
        rig.device.restore(&saved).unwrap();
        rig.start_all(&states);
        let len = 30_000.min(text.len() - seen.len());
        seen.extend(read(&mut peers[0], len));
    }
    assert_eq!(seen, text);
    (0..4).for_each(|_| drop(rig.wait_used(1)));
    assert_eq!(rig.device.save().ports[0].sent, 0);
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let (rig, _peers) = rig();
    let good = rig.device.save();
    for (field, wrong) in [
        ("ports", ConsoleState { ports: vec![], ..good.clone() }),
        ("ports", ConsoleState { ports: vec![PortState::default(); 32], ..good.clone() }),
        ("ports", ConsoleState { ports: vec![PortState::default()], ..good.clone() }),
        ("news", ConsoleState { ports: vec![PortState { news: 32, ..PortState::default() }; 2], ..good.clone() }),
    ] {
        let error = wrong.check().and_then(|()| rig.device.restore(&wrong)).unwrap_err();
        assert!(matches!(error, StateError::Invalid { field: named, .. } if named == field), "{error}");
    }
    rig.device.restore(&good).unwrap();
    assert!(Console::new("none", Vec::new()).is_err());
}

skep_fuzzing::targets! {
    "virtio-console", 64: fn fuzz_queues(
        steps in proptest::collection::vec(
            (0u16..6, proptest::collection::vec(any::<u8>(), 0..20), 0u32..5, any::<u16>(), any::<bool>()),
            0..60,
        ),
    ) {
        let (mut rig, mut peers) = rig();
        peers.iter().for_each(|peer| peer.set_nonblocking(true).unwrap());
        for (queue, mut bytes, len, place, write) in steps {
            if let (3, Some(event)) = (queue, bytes.get_mut(4)) {
                *event %= 9;
            }
            let _ = Write::write(&mut peers[usize::from(queue % 2)], &bytes);
            let _ = Read::read(&mut peers[usize::from(place % 2)], &mut [0; 100]);
            while rig.rings[usize::from(queue)].take_used().is_some() {}
            let outside = Piece::At { gpa: RAM + RAM_SIZE - 10, len: 20, write };
            let inside = Piece::At { gpa: BUFFERS + u64::from(place), len, write: true };
            let last = if place % 64 == 0 { outside } else { inside };
            if rig.rings[usize::from(queue)].free() >= 2 {
                rig.send(queue, &[Piece::Read(&bytes), last]);
            }
            if place % 16 == 1 {
                let states = rig.stop_all();
                let saved = rig.device.save();
                saved.check().unwrap();
                rig.device.restore(&saved).unwrap();
                rig.start_all(&states);
            }
        }
        rig.stop_all();
    }
}
