use proptest::prelude::*;
use skep_state::testing::spoilt;
use skep_state::{Record, State};

use super::*;

const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x01, 0x02, 0x03];
const PEER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];
const BROADCAST: [u8; 6] = [0xff; 6];
/// Where drivers put the frame that they send, and the ring.
const SEND: u8 = 0x40;
const START: u8 = 0x46;
const STOP: u8 = 0x80;

impl Chip {
    fn get(&mut self, port: u64) -> u8 {
        let mut data = [0];
        self.read(port, &mut data);
        data[0]
    }

    fn put(&mut self, port: u64, value: u8) {
        self.write(port, &[value]);
    }

    fn remote(&mut self, command: u8, address: u16, count: u16) {
        self.put(0, 0x22);
        let ([low, high], [count_low, count_high]) = (address.to_le_bytes(), count.to_le_bytes());
        for (port, value) in [(8, low), (9, high), (0xa, count_low), (0xb, count_high)] {
            self.put(port, value);
        }
        self.put(0, command | command::START);
    }

    /// Reads buffer memory, two bytes at a time.
    fn fetch(&mut self, address: u16, count: u16) -> Vec<u8> {
        self.remote(command::REMOTE_READ, address, count);
        let mut bytes = vec![0; usize::from(count)];
        bytes.chunks_mut(2).for_each(|word| self.read(DATA, word));
        assert_eq!(self.get(7) & interrupt::REMOTE_DONE, interrupt::REMOTE_DONE);
        self.put(7, interrupt::REMOTE_DONE);
        bytes
    }

    fn store(&mut self, address: u16, bytes: &[u8]) {
        self.remote(command::REMOTE_WRITE, address, bytes.len() as u16);
        bytes.chunks(2).for_each(|word| self.write(DATA, word));
    }
}

/// A controller as Linux's driver sets it up: word mode, a ring, broadcasts and its own address.
fn started() -> Chip {
    let mut chip = Chip::new(MAC);
    chip.put(0, 0x21);
    for (port, value) in [(0xe, 0x49), (0xc, 0x20), (0xd, 0x02), (4, SEND), (1, START), (3, STOP - 1), (2, STOP)] {
        chip.put(port, value);
    }
    chip.put(7, 0xff);
    chip.put(0, 0x61);
    (1..).zip(MAC).for_each(|(port, byte)| chip.put(port, byte));
    chip.put(7, START);
    chip.put(0, 0x22);
    chip.put(0xd, 0);
    chip.put(0xc, receive::BROADCAST);
    chip
}

fn frame(to: [u8; 6], length: usize, seed: u8) -> Vec<u8> {
    let rest = (0..length - 12).map(|at| seed.wrapping_add(at as u8));
    to.into_iter().chain(PEER).chain(rest).collect()
}

#[test]
fn drivers_find_it_and_its_address() {
    let mut chip = Chip::new(MAC);
    assert_eq!((chip.get(0), chip.get(7)), (0x21, 0x80));
    assert_eq!((chip.get(0xa), chip.get(0xb)), (b'P', b'C'));
    // What Linux does to tell an NE2000: a counter that is cleared by reading is not the register of page 1 at the same place.
    chip.put(0, 0x61);
    chip.put(0xd, 0xff);
    chip.put(0, 0x20);
    assert_eq!((chip.get(0xd), chip.get(0xd)), (0, 0));
    // The PROM: each byte twice, and the mark of a card with words.
    chip.put(0xe, 0x49);
    let prom = chip.fetch(0, 32);
    assert_eq!(prom[..12], [0x52, 0x52, 0x54, 0x54, 0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(prom[28..], [0x57; 4]);
    // Byte by byte through a port that moves words, as Linux reads it.
    chip.remote(command::REMOTE_READ, 0, 32);
    let bytes: Vec<u8> = (0..6).map(|_| chip.get(DATA)).collect();
    assert_eq!(bytes, MAC);
    // And where it moves bytes.
    chip.put(0xe, 0x48);
    chip.remote(command::REMOTE_READ, 0, 32);
    let bytes: Vec<u8> = (0..4).map(|_| chip.get(DATA)).collect();
    assert_eq!(bytes, [0x52, 0x52, 0x54, 0x54]);
    let mut four = [0; 4];
    chip.read(DATA, &mut four);
    assert_eq!(four, [0, 0, 1, 1]);
}

#[test]
fn the_reset_port_stops_it() {
    let mut chip = started();
    chip.put(0xf, 0x3f);
    assert_eq!(chip.get(7), 0);
    let _ = chip.get(RESET);
    assert_eq!((chip.get(0), chip.get(7)), (0x21, 0x80));
    assert!(!chip.interrupt() && !chip.receives());
    chip.put(7, 0xff);
    assert_eq!(chip.get(7), 0x80, "only a start ends it");
    chip.put(0, 0x22);
    assert_eq!(chip.get(7), 0);
    chip.put(0, 0xe2);
    assert_eq!((chip.get(0xe), chip.get(0xf)), (0x29, 0x80), "Realtek's third page");
    chip.put(6, 0x40);
    assert_eq!(chip.get(6), 0, "it is locked");
    chip.put(1, 0xc0);
    chip.put(6, 0x40);
    assert_eq!(chip.get(6), 0x40);
}

#[test]
fn a_frame_is_sent_from_the_buffer() {
    let mut chip = started();
    let frame = frame(PEER, 60, 7);
    chip.store(u16::from(SEND) << 8, &frame);
    assert_eq!(chip.transmits(), None);
    chip.put(5, 60);
    chip.put(6, 0);
    chip.put(0xf, interrupt::TRANSMITTED);
    chip.put(0, 0x26);
    assert_eq!(chip.transmits().as_deref(), Some(&frame[..]));
    assert!(chip.is_sendable(&frame) && !chip.interrupt());
    assert_eq!(chip.get(0) & command::TRANSMIT, command::TRANSMIT);
    chip.put(0, 0x22);
    assert!(chip.is_transmitting(), "it ends by itself");
    chip.transmitted();
    assert_eq!((chip.get(0), chip.get(4), chip.get(7)), (0x22, 1, interrupt::REMOTE_DONE | interrupt::TRANSMITTED));
    assert!(chip.interrupt());
    chip.put(7, interrupt::TRANSMITTED);
    assert!(!chip.interrupt());
    // A length that no frame has, from a place where there is no memory.
    for (port, value) in [(4, 0xff), (5, 0xff), (6, 0xff), (0, 0x26)] {
        chip.put(port, value);
    }
    assert!(!chip.is_sendable(&chip.transmits().unwrap()));
    // In loopback nothing goes onto the cable.
    chip.put(0xd, 2);
    assert!(!chip.is_sendable(&frame) && !chip.receives());
}

#[test]
fn received_frames_fill_the_ring_and_wait_when_it_is_full() {
    let mut chip = started();
    chip.put(0xf, interrupt::RECEIVED);
    let mut expected = std::collections::VecDeque::new();
    let (mut sent, mut read, mut full) = (0u8, START, 0);
    for round in 0..200 {
        let length = [60, 1514, 300, 1518, 42][round % 5];
        let came = frame(if round % 3 == 0 { BROADCAST } else { MAC }, length, sent);
        match chip.receive(&came) {
            Room::Taken => {
                expected.push_back(came);
                sent = sent.wrapping_add(1);
                assert!(chip.interrupt());
                continue;
            }
            Room::Refused => panic!("it is for this card"),
            Room::None => full += 1,
        }
        // The driver takes all that there is.
        while let Some(frame) = expected.pop_front() {
            let header = chip.fetch(u16::from(read) << 8, 4);
            let status = if frame.starts_with(&BROADCAST) { 0x21 } else { 1 };
            let length = frame.len().max(60) as u16;
            assert_eq!((header[0], u16::from_le_bytes([header[2], header[3]])), (status, length + 4));
            let bytes = chip.fetch((u16::from(read) << 8) + 4, (length + 1) & !1);
            assert_eq!(bytes[..frame.len()], frame);
            assert!(bytes[frame.len()..].iter().take(60 - frame.len().min(60)).all(|byte| *byte == 0), "padding");
            read = header[1];
            chip.put(3, if read == START { STOP - 1 } else { read - 1 });
        }
        chip.put(0, 0x62);
        assert_eq!(chip.get(7), read, "the driver has read all");
        chip.put(0, 0x22);
        chip.put(7, interrupt::RECEIVED);
        assert!(!chip.interrupt());
    }
    assert_eq!(full, 10);
}

#[test]
fn a_send_packet_command_reads_the_frame_at_the_boundary() {
    let mut chip = started();
    chip.put(3, START);
    let came = frame(MAC, 100, 1);
    assert_eq!(chip.receive(&came), Room::Taken);
    chip.put(0, command::SEND_PACKET | command::START);
    let mut bytes = [0; 104];
    bytes.chunks_mut(2).for_each(|word| chip.read(DATA, word));
    assert_eq!(bytes[4..], came);
    assert_eq!((chip.get(3), chip.get(7) & interrupt::REMOTE_DONE), (START + 1, interrupt::REMOTE_DONE));
    chip.read(DATA, &mut bytes[..2]);
    assert_eq!(bytes[..2], [0xff; 2], "no more than was asked for");
}

#[test]
fn the_filter_is_the_drivers() {
    let mut chip = started();
    let other = [0x52, 0x54, 0, 9, 9, 9];
    // All hosts, and its bit: the CRC is that of IEEE 802.3, which Linux's crc_be gives as well.
    let group = [1, 0, 0x5e, 0, 0, 1];
    let bit = (group_hash(&group) >> 26) as usize;
    let take = |chip: &mut Chip, to| {
        let taken = chip.receive(&frame(to, 64, 0)) == Room::Taken;
        let current = chip.state.current;
        chip.put(3, if current == START { STOP - 1 } else { current - 1 });
        taken
    };
    let takes = |chip: &mut Chip, config| {
        chip.put(0xc, config);
        [MAC, other, BROADCAST, group].map(|to| take(chip, to))
    };
    assert_eq!(takes(&mut chip, 0), [true, false, false, false]);
    assert_eq!(takes(&mut chip, receive::BROADCAST), [true, false, true, false]);
    assert_eq!(takes(&mut chip, receive::PROMISCUOUS), [true, true, false, false]);
    assert_eq!(takes(&mut chip, receive::MULTICAST), [true, false, false, false]);
    chip.put(0, 0x62);
    chip.put(8 + bit as u64 / 8, 1 << (bit % 8));
    chip.put(0, 0x22);
    assert_eq!(takes(&mut chip, receive::MULTICAST), [true, false, false, true]);
    assert_eq!(takes(&mut chip, receive::MONITOR | receive::PROMISCUOUS), [false; 4]);
    assert_eq!((chip.get(0xc), chip.get(0xf), chip.get(0xf)), (0x51, 2, 0), "they are counted");
    assert_eq!(chip.receive(&vec![0xff; 1519]), Room::Refused);
    assert_eq!(chip.receive(&[0xff; 5]), Room::Refused);
}

#[test]
fn a_ring_that_is_none_takes_nothing() {
    let mut chip = started();
    for (start, stop, current) in
        [(0, 0x80, 1), (0x46, 0xff, 0x46), (0x60, 0x50, 0x60), (0x46, 0x80, 0x80), (0x46, 0x48, 0x46)]
    {
        let state = Ne2kState { ring_start: start, ring_stop: stop, current, ..chip.state.clone() };
        chip.set_state(state);
        assert_eq!(chip.receive(&frame(MAC, 1000, 0)), Room::Refused, "{start:x} {stop:x} {current:x}");
    }
}

/// What a guest and a network do.
#[derive(Debug, Clone)]
enum Act {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Receive(Vec<u8>),
    Transmit,
}

fn acts() -> impl Strategy<Value = Act> {
    let port = prop_oneof![4 => 0..DATA, 3 => DATA..RESET, 1 => RESET..RESET + 8];
    let length = prop_oneof![4 => Just(1usize), 2 => Just(2), 1 => Just(4), 1 => Just(8)];
    let value =
        prop_oneof![any::<u8>(), Just(0x22), Just(0x26), Just(0x0a), Just(0x12), Just(0x46), Just(0x80), Just(0x62)];
    let address = prop_oneof![Just(MAC), Just(BROADCAST), any::<[u8; 6]>()];
    prop_oneof![
        8 => (port.clone(), proptest::collection::vec(value, 1..=4)).prop_map(|(port, data)| Act::Write(port, data)),
        4 => (port, length).prop_map(|(port, length)| Act::Read(port, length)),
        2 => (address, 12usize..1600).prop_map(|(to, length)| Act::Receive(frame(to, length, 3))),
        1 => Just(Act::Transmit),
    ]
}

/// What can be seen of it.
fn act(chip: &mut Chip, act: &Act) -> (Vec<u8>, bool, Option<Room>) {
    let (mut seen, mut room) = (Vec::new(), None);
    match act {
        Act::Write(port, data) => chip.write(*port, data),
        Act::Read(port, length) => {
            seen = vec![0xff; *length];
            chip.read(*port, &mut seen);
        }
        Act::Receive(frame) => room = if chip.is_holding() { chip.retry() } else { Some(chip.offer(frame)) },
        Act::Transmit => {
            if let Some(frame) = chip.transmits() {
                assert!(frame.len() <= LONGEST + 1);
                seen = frame;
                chip.transmitted();
            }
        }
    }
    (seen, chip.interrupt(), room)
}

skep_fuzzing::targets! {
    "ne2k-accesses": fn fuzz_a_twin_restored_at_any_time_goes_on_alike(
        before in proptest::collection::vec(acts(), 0..60),
        after in proptest::collection::vec(acts(), 1..60),
    ) {
        let mut chip = started();
        before.iter().for_each(|one| { act(&mut chip, one); });
        let state: Ne2kState = Record::of(chip.state()).open().unwrap();
        let mut twin = Chip::new(MAC);
        twin.set_state(state);
        for one in &after {
            prop_assert_eq!(act(&mut chip, one), act(&mut twin, one), "{:?}", one);
        }
        prop_assert!(chip.state() == twin.state());
    }

    "ne2k-ring": fn fuzz_frames_stay_in_the_ring(
        pages in 0x40u8..0xc0,
        stop in 0x40u8..=0xc0,
        boundary in any::<u8>(),
        current in any::<u8>(),
        length in 12usize..1600,
    ) {
        let mut chip = started();
        let state = Ne2kState { ring_start: pages, ring_stop: stop, boundary, current, ..chip.state().clone() };
        chip.set_state(state);
        let taken = chip.receive(&frame(MAC, length, 1));
        let [first, end] = [pages, stop].map(|page| usize::from(page - 0x40) * PAGE);
        let inside = first..end.max(first);
        for (at, byte) in chip.state().buffer.iter().enumerate() {
            prop_assert!(*byte == 0 || inside.contains(&at), "{:#x}", at);
        }
        if taken == Room::Taken {
            prop_assert!((pages..stop).contains(&chip.state().current) && chip.state().current != boundary);
        }
    }
}

#[test]
fn a_hostile_state_is_refused_by_name_or_harmless() {
    let mut chip = started();
    chip.receive(&frame(MAC, 300, 0));
    let mut refused = 0;
    for record in spoilt(&Record::of(chip.state())) {
        match record.open::<Ne2kState>() {
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains(Ne2kState::ID), "{error}");
            }
            Ok(state) => {
                let mut chip = Chip::new(MAC);
                chip.set_state(state);
                let acts = [
                    Act::Transmit,
                    Act::Receive(frame(MAC, 1500, 0)),
                    Act::Read(DATA, 8),
                    Act::Write(DATA, vec![1; 4]),
                ];
                acts.iter().for_each(|one| {
                    act(&mut chip, one);
                });
            }
        }
    }
    assert!(refused > 50, "{refused}");
}
