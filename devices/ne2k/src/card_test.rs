use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;
use skep_irq::{IrqLine, LineDescription, LineTarget, Polarity, Trigger};
use skep_memory::MemoryMap;
use skep_net::LinkInfo;
use skep_net::testing::TestLink;
use skep_pci::{ConfigFunction, NoMessages, PciPlace};
use skep_state::Component;

use super::*;
use crate::registers::{command, interrupt};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// Says each change of the pin.
struct Wire(Mutex<Sender<bool>>);

impl LineTarget for Wire {
    fn set_level(&self, _line: u32, asserted: bool) {
        // A test that has ended hears no more.
        let _ = self.0.lock().unwrap().send(asserted);
    }
}

struct Rig {
    card: Arc<Ne2k>,
    // What is behind a place lives as long as its endpoint.
    endpoint: Arc<Endpoint>,
    link: Arc<TestLink>,
    pin: Receiver<bool>,
}

impl Rig {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(rom: Option<OptionRom>) -> Self {
        let link = TestLink::new(LinkInfo { queues: 1, offloads: Offloads::all(), mtu: None });
        let (sender, pin) = channel();
        let wire: Arc<dyn LineTarget> = Arc::new(Wire(Mutex::new(sender)));
        let description = LineDescription { number: 0, trigger: Trigger::Level, polarity: Polarity::Low };
        let line = IrqLine::to(wire, description);
        let lines = [line, IrqLine::detached(), IrqLine::detached(), IrqLine::detached()];
        let socket = Socket::new(PciPlace::Root(3), MemoryMap::new(), Arc::new(NoMessages), lines);
        let config = Ne2kConfig { name: "net".into(), link: link.clone(), mac: MAC, rom };
        let (endpoint, card) = Ne2k::endpoint(&socket, &config).unwrap();
        assert_eq!(link.settings(), (Offloads::empty(), 1));
        Self { card, endpoint, link, pin }
    }

    fn put(&self, port: u64, value: u8) {
        Function::write(&*self.card, REGISTERS, port, &[value]);
    }

    fn get(&self, port: u64) -> u8 {
        let mut data = [0xff];
        Function::read(&*self.card, REGISTERS, port, &mut data);
        data[0]
    }

    /// Word mode, a ring of 16 pages, interrupts of all kinds.
    fn start(&self) {
        for (port, value) in [(0, 0x21), (0xe, 0x49), (4, 0x40), (1, 0x46), (2, 0x56), (3, 0x55), (0, 0x61), (7, 0x46)]
        {
            self.put(port, value);
        }
        (1..).zip(MAC).for_each(|(port, byte)| self.put(port, byte));
        for (port, value) in [(0, 0x22), (0xc, 4), (0xf, 0x3f)] {
            self.put(port, value);
        }
    }

    /// Waits for an interrupt, says which ones there are, and clears them.
    fn interrupt(&self) -> u8 {
        while !self.pin.recv_timeout(Duration::from_secs(60)).expect("an interrupt") {}
        let status = self.get(7);
        self.put(7, status);
        status
    }

    /// Makes room up to where frames come next.
    fn read_all(&self) -> u8 {
        self.put(0, 0x62);
        let current = self.get(7);
        self.put(0, 0x22);
        self.put(3, if current == 0x46 { 0x55 } else { current - 1 });
        current
    }

    fn send(&self, bytes: &[u8]) {
        let [low, high] = (bytes.len() as u16).to_le_bytes();
        for (port, value) in [(8, 0), (9, 0x40), (0xa, low), (0xb, high), (0, command::REMOTE_WRITE | command::START)] {
            self.put(port, value);
        }
        bytes.chunks(2).for_each(|word| Function::write(&*self.card, REGISTERS, DATA, word));
        for (port, value) in [(7, interrupt::REMOTE_DONE), (5, low), (6, high), (0, 0x26)] {
            self.put(port, value);
        }
    }

    fn arrive_together(&self, count: u8, length: usize) {
        let (sender, paused) = channel();
        self.card.pause(move || sender.send(()).unwrap());
        paused.recv_timeout(Duration::from_secs(60)).unwrap();
        (0..count).for_each(|seed| self.arrive(length, seed));
        self.card.resume();
    }

    fn arrive(&self, length: usize, seed: u8) {
        let frame = [0; HEADER].into_iter().chain(MAC).chain((6..length).map(|_| seed));
        self.link.send(0, &frame.collect::<Vec<_>>());
    }
}

fn sent(bytes: &[u8]) -> Vec<u8> {
    [&[0; HEADER], bytes].concat()
}

#[test]
fn frames_go_both_ways() {
    let rig = Rig::new();
    rig.start();
    rig.send(&[7; 60]);
    assert_eq!(rig.interrupt(), interrupt::TRANSMITTED);
    assert_eq!(rig.link.take(0), [sent(&[7; 60])]);
    rig.arrive(200, 1);
    assert_eq!(rig.interrupt(), interrupt::RECEIVED);
    assert_eq!(rig.read_all(), 0x47);
    let record = rig.card.save();
    assert_eq!(record.buffer[0x600..0x60a], [1, 0x47, 204, 0, 0x52, 0x54, 0, 1, 2, 3]);
}

#[test]
fn a_frame_waits_for_the_network_and_another_for_the_ring() {
    let rig = Rig::new();
    rig.start();
    rig.link.set_full(0, true);
    rig.send(&[1; 60]);
    // It is still being sent when frames of the other way have come: seven of these fill the ring, the eighth waits.
    for seed in 0..9 {
        rig.arrive(300, seed);
    }
    let mut pages = 0;
    while pages < 14 {
        assert_eq!(rig.interrupt() & !interrupt::RECEIVED, 0);
        rig.put(0, 0x62);
        pages = rig.get(7) - 0x46;
        rig.put(0, 0x22);
    }
    assert_eq!((pages, rig.get(0) & command::TRANSMIT), (14, command::TRANSMIT));
    assert_eq!(rig.link.take(0), Vec::<Vec<u8>>::new());
    rig.link.set_full(0, false);
    assert_eq!(rig.interrupt(), interrupt::TRANSMITTED);
    assert_eq!(rig.link.take(0), [sent(&[1; 60])]);
    rig.read_all();
    while rig.read_all() != 0x48 {
        assert_eq!(rig.interrupt(), interrupt::RECEIVED);
    }
    assert_eq!(rig.link.waiting(0), 0);
}

/// Linux's interrupt handler chooses pages by commands that neither start nor stop, and says to start at its end.
#[test]
fn a_command_that_neither_starts_nor_stops_changes_nothing() {
    const ROUNDS: u8 = 100;
    let rig = Rig::new();
    rig.start();
    rig.link.set_full(0, true);
    let mut read = 0x46;
    let mut come = 0;
    for round in 0..ROUNDS {
        rig.pin.try_iter().for_each(drop);
        rig.arrive(60, round);
        while !rig.pin.recv_timeout(Duration::from_secs(60)).expect("an interrupt") {}
        rig.put(0, 0x20);
        if round == 0 {
            // A frame of its own goes as well.
            rig.send(&[1; 60]);
            rig.put(0, 0x20);
            rig.link.set_full(0, false);
            rig.wait("the frame to be sent", || rig.get(7) & interrupt::TRANSMITTED != 0);
            rig.put(7, interrupt::TRANSMITTED);
        }
        assert_eq!(rig.get(7), interrupt::RECEIVED);
        // What comes now comes with the next interrupt.
        rig.arrive(60, round);
        while come < 2 * u16::from(round + 1) {
            rig.put(0, 0x60);
            let current = rig.get(7);
            rig.put(0, 0x20);
            while read != current {
                let seed = rig.card.save().buffer[usize::from(read - 0x40) * 256 + 10];
                assert_eq!(u16::from(seed), come / 2);
                come += 1;
                read = if read == 0x55 { 0x46 } else { read + 1 };
                rig.put(3, if read == 0x46 { 0x55 } else { read - 1 });
            }
            rig.put(7, interrupt::RECEIVED);
            rig.settle();
        }
        rig.put(0, 0x22);
    }
    assert_eq!((come, rig.link.waiting(0)), (2 * u16::from(ROUNDS), 0));
    // One that is stopped is started by the bit only.
    for (command, running) in [(0x21, false), (0x20, false), (0x23, false), (0x22, true), (0x20, true)] {
        rig.put(0, command);
        assert_eq!(rig.get(7) & interrupt::STOPPED == 0, running, "{command:#x}");
    }
}

/// As Linux's driver does it: it looks where the ring ends, and acknowledges the interrupt when it has read up to there.
#[test]
fn a_frame_that_comes_before_an_interrupt_is_acknowledged_has_its_own() {
    let rig = Rig::new();
    rig.start();
    for seed in 0..100 {
        rig.arrive(60, seed);
        while !rig.pin.recv_timeout(Duration::from_secs(60)).expect("an interrupt") {}
        assert_eq!(rig.get(7), interrupt::RECEIVED);
        let read = rig.read_all();
        rig.arrive(60, seed);
        rig.settle();
        rig.put(0, 0x60);
        assert_eq!(rig.get(7), read, "it has not come yet");
        rig.put(0, 0x20);
        rig.put(7, interrupt::RECEIVED);
        assert_eq!(rig.interrupt(), interrupt::RECEIVED);
        assert_ne!(rig.read_all(), read);
    }
}

/// It takes nine for an interrupt, and masks all while it fills a frame in.
#[test]
fn no_more_frames_come_for_an_interrupt_than_linux_takes() {
    let rig = Rig::new();
    rig.start();
    rig.put(0xf, 0);
    rig.arrive_together(12, 60);
    rig.settle();
    rig.put(0xf, 0x3f);
    for current in [0x46 + 8, 0x46 + 12] {
        while !rig.pin.recv_timeout(Duration::from_secs(60)).expect("an interrupt") {}
        assert_eq!(rig.read_all(), current);
        rig.put(7, interrupt::RECEIVED);
    }
}

/// It acknowledges nothing, and reads up to where the ring ends.
#[test]
fn a_driver_that_polls_gets_all_frames() {
    let rig = Rig::new();
    rig.start();
    rig.put(0xf, 0);
    let mut read = 0x46;
    for seed in 0..40 {
        rig.arrive(60, seed);
        rig.wait("a frame", || {
            let before = read;
            read = rig.read_all();
            read != before
        });
    }
}

#[test]
fn a_paused_card_does_nothing_and_goes_on() {
    let rig = Rig::new();
    rig.start();
    let (sender, paused) = channel();
    rig.card.pause(move || sender.send(()).unwrap());
    paused.recv_timeout(Duration::from_secs(60)).unwrap();
    rig.arrive(100, 1);
    rig.send(&[2; 60]);
    let state = rig.card.save();
    assert_eq!((state.current, state.command & command::TRANSMIT), (0x46, command::TRANSMIT));

    // Another one takes its place.
    let heir = Rig::new();
    heir.card.restore(&state).unwrap();
    heir.card.resume();
    assert_eq!(heir.interrupt(), interrupt::TRANSMITTED);
    assert_eq!(heir.link.take(0), [sent(&[2; 60])]);

    rig.card.resume();
    let seen = rig.interrupt();
    let all = interrupt::TRANSMITTED | interrupt::RECEIVED;
    assert_eq!(seen | if seen == all { 0 } else { rig.interrupt() }, all);
}

#[test]
fn the_frame_that_waits_for_the_ring_is_saved() {
    let rig = Rig::new();
    rig.start();
    // A driver that polls.
    rig.put(0xf, 0);
    rig.arrive_together(8, 300);
    rig.wait("the frames to be received", || rig.link.waiting(0) == 0);
    rig.settle();
    let state = rig.card.save();
    let frame: Vec<u8> = MAC.into_iter().chain((6..300).map(|_| 7)).collect();
    assert_eq!((state.current, state.held.as_ref()), (0x54, Some(&frame)));

    let heir = Rig::new();
    heir.card.restore(&state).unwrap();
    heir.card.resume();
    assert_eq!(heir.read_all(), 0x54);
    heir.wait("the frame to be taken", || heir.card.save().held.is_none());
    let state = heir.card.save();
    assert_eq!((state.current, &state.buffer[0x1404..0x1410]), (0x46, &frame[..12]));
    // What waits when it is stopped is lost, also by the reset port.
    let stopped = Rig::new();
    stopped.card.restore(&rig.card.save()).unwrap();
    stopped.card.resume();
    stopped.get(0x1f);
    stopped.wait("the frame to be lost", || stopped.card.save().held.is_none());
    // And when it is reset.
    Function::reset(&*rig.card);
    assert_eq!(rig.card.save(), Ne2kState::default());
}

#[test]
fn a_reset_stops_it_and_frees_the_pin() {
    let rig = Rig::new();
    rig.start();
    rig.arrive(100, 1);
    while !rig.pin.recv_timeout(Duration::from_secs(60)).unwrap() {}
    Function::reset(&*rig.card);
    assert!(!rig.pin.recv_timeout(Duration::from_secs(60)).unwrap());
    assert_eq!(rig.card.save(), Ne2kState::default());
    // What comes while it is stopped is lost.
    rig.arrive(100, 2);
    rig.start();
    rig.arrive(100, 3);
    assert_eq!(rig.interrupt(), interrupt::RECEIVED);
}

#[test]
fn it_is_a_card_of_realteks() {
    let rig = Rig::new();
    assert_eq!(rig.endpoint.bars()[0], Some(Bar::io(32)));
    assert_eq!((IDENTITY.vendor, IDENTITY.device, IDENTITY.class), (0x10ec, 0x8029, 0x02_0000));
    // Only its own BAR.
    let mut data = [0xff];
    Function::read(&*rig.card, 1, 0, &mut data);
    Function::write(&*rig.card, 1, 0, &[0x22]);
    assert_eq!((data[0], rig.get(0)), (0xff, 0x21));
}

/// What a guest and a network do: which, where, and bytes.
type Step = (u8, u16, Vec<u8>);

fn steps(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let value =
        prop_oneof![any::<u8>(), Just(0x22), Just(0x26), Just(0x0a), Just(0x12), Just(0x46), Just(0x62), Just(0)];
    proptest::collection::vec((any::<u8>(), any::<u16>(), proptest::collection::vec(value, 1..=4)), count)
}

impl Rig {
    /// Waits until the thread has done all that it was told before.
    fn settle(&self) {
        let (sender, paused) = channel();
        self.card.pause(move || sender.send(()).unwrap());
        paused.recv_timeout(Duration::from_secs(60)).unwrap();
        self.card.resume();
    }

    fn wait(&self, what: &str, mut come: impl FnMut() -> bool) {
        let begun = std::time::Instant::now();
        while !come() {
            assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
            std::thread::yield_now();
        }
    }

    /// Does a step, and says all that it showed.
    fn step(&self, (kind, at, bytes): &Step) -> String {
        let mut seen = Vec::new();
        match kind % 8 {
            // Command, BARs, the ROM's, the interrupt line: headers.
            0 => {
                let offset = [4, 0x10, 0x30, 0x3c, at & 0xfc][usize::from(at >> 8) % 5];
                let value = bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
                let action = ConfigFunction::config_write(&*self.endpoint, offset, u32::MAX, value);
                seen.extend(format!("{action:?}").into_bytes());
            }
            1..=3 => Function::write(&*self.card, REGISTERS, u64::from(at % 32), bytes),
            4 | 5 => {
                seen = vec![0xff; bytes.len()];
                Function::read(&*self.card, REGISTERS, u64::from(at % 32), &mut seen);
            }
            6 => self.arrive_if_none_waits(usize::from(at % 1500) + 12, bytes[0]),
            _ => {
                seen = vec![0xff; 4];
                skep_bus::Device::read(&*self.endpoint, 6, u64::from(at % 0x400), &mut seen);
            }
        }
        self.wait("a frame to be sent", || !self.card.shared.lock().is_transmitting());
        let mut next = Chip::new(MAC);
        next.set_state(self.card.save());
        if !next.has_told() && next.retry().is_some_and(|room| room != Room::None) {
            self.wait("the frame that has room", || !self.card.shared.lock().is_holding());
        }
        let registers = [4, 0x10, 0x30, 0x3c].map(|offset| ConfigFunction::config_read(&*self.endpoint, offset));
        let (decoded, pin) = (ConfigFunction::decoded(&*self.endpoint), self.pin.try_iter().collect::<Vec<_>>());
        format!("{seen:x?} {registers:x?} {decoded:?} {pin:?} {:x?}", self.link.take(0))
    }

    /// A frame comes, unless another one waits for the ring, or it would wait itself for the driver.
    fn arrive_if_none_waits(&self, length: usize, seed: u8) {
        let mut next = Chip::new(MAC);
        next.set_state(self.card.save());
        let frame: Vec<u8> = MAC.into_iter().chain((6..length).map(|_| seed)).collect();
        if !next.is_holding() && !next.has_told() {
            next.offer(&frame);
            self.link.send(0, &sent(&frame));
            self.wait("a frame to be received", || self.link.waiting(0) == 0);
            self.settle();
            assert!(self.card.save() == *next.state());
        }
    }
}

/// The smallest ROM that is one, for any device.
fn rom() -> OptionRom {
    let mut bytes = vec![0; 0x200];
    bytes[..3].copy_from_slice(&[0x55, 0xaa, 1]);
    bytes[0x18..0x1a].copy_from_slice(&0x1c_u16.to_le_bytes());
    bytes[0x1c..0x24].copy_from_slice(b"PCIR\xec\x10\x29\x80");
    bytes[0x26] = 0x18;
    (bytes[0x2c], bytes[0x31]) = (1, 0x80);
    OptionRom::new(&bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The card as a whole: its place among PCI functions, its ROM, its controller, its pin.
    #[test]
    fn fuzz_a_saved_card_behaves_the_same(sane: bool, before in steps(0..60), after in steps(1..60)) {
        let (one, two) = (Rig::with(Some(rom())), Rig::with(Some(rom())));
        if sane {
            one.start();
        }
        before.iter().for_each(|step| drop(one.step(step)));
        one.settle();
        let records = (one.endpoint.save_record(), one.card.save_record());
        two.endpoint.restore_record(&records.0).unwrap();
        two.card.restore_record(&records.1).unwrap();
        prop_assert_eq!((two.endpoint.save_record(), two.card.save_record()), records);
        // The line's level is its controller's to restore.
        two.pin.try_iter().for_each(drop);
        for step in &after {
            prop_assert_eq!(one.step(step), two.step(step), "{:x?}", step);
        }
        prop_assert_eq!(one.endpoint.save_record(), two.endpoint.save_record());
        prop_assert_eq!(one.card.save_record(), two.card.save_record());
    }
}
