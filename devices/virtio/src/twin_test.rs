//! A device that is saved and restored behaves as one that was not: what a driver reads and is answered, what the host gets, and what is saved next.
//!
//! A socket device's twins are with its tests: its connections end where it goes on elsewhere. The transport has its twins as well.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skep_block::testing::MemoryDisk;
use skep_net::testing::TestLink;
use skep_net::{LinkInfo, Offloads};
use skep_state::{Component, Persist};

use crate::blk::BlkConfig;
use crate::net::NetConfig;
use crate::testing::{BUFFERS, Piece, Rig, Used};
use crate::{Balloon, Blk, Console, Net, PortConfig, VirtioDevice};

/// What is done, by the host or by the driver: which, a number, and bytes.
type Step = (u8, u32, Vec<u8>);

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    // Of commands and events, most numbers are none.
    let bytes = proptest::collection::vec(prop_oneof![3 => 0u8..10, 1 => any::<u8>()], 0..20);
    proptest::collection::vec((any::<u8>(), any::<u32>(), bytes), 0..count)
}

/// A device, and what the host has of it.
type Made<D, H> = (Arc<D>, H);
/// Does a step, and answers what it showed.
type Act<D, H> = fn(&mut Rig<D>, &mut H, &Step) -> Vec<u8>;

fn twins<D: VirtioDevice + Component, H>(
    build: impl Fn() -> Made<D, H>,
    act: Act<D, H>,
    before: &[Step],
    after: &[Step],
) {
    let seen = |rig: &mut Rig<D>, host: &mut H, step: &Step| {
        let shown = act(rig, host, step);
        let mut config = [0; 64];
        rig.device.read_config(0, &mut config);
        (shown, config, rig.device.save_record())
    };
    let (device, mut host) = build();
    let mut one = Rig::new(device);
    before.iter().for_each(|step| drop(seen(&mut one, &mut host, step)));
    let states = one.stop_all();
    let record = one.device.save_record();
    one.start_all(&states);

    let (device, mut twins_host) = build();
    let mut two = Rig::idle(device, true);
    two.device.restore_record(&record).unwrap();
    assert_eq!(two.device.save_record(), record);
    two.start_all(&[]);
    for step in after {
        assert_eq!(seen(&mut one, &mut host, step), seen(&mut two, &mut twins_host, step), "{step:?}");
    }
    one.stop_all();
    two.stop_all();
    assert_eq!(one.device.save_record(), two.device.save_record());
    one.device.reset_component();
    two.device.reset_component();
    assert_eq!(one.device.save_record(), two.device.save_record());
}

fn shown(used: Used) -> Vec<u8> {
    [&used.len.to_le_bytes()[..], &used.data].concat()
}

fn console() -> Made<Console, [UnixStream; 2]> {
    let made = ["tty", "agent"].map(|name| {
        let (io, peer) = UnixStream::pair().unwrap();
        io.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (PortConfig { name: name.into(), console: name == "tty", io: Box::new(io) }, peer)
    });
    let [(tty, one), (agent, two)] = made;
    (Console::new("console", vec![tty, agent]).unwrap(), [one, two])
}

fn with_console(rig: &mut Rig<Console>, peers: &mut [UnixStream; 2], (kind, number, bytes): &Step) -> Vec<u8> {
    let port = *number as usize % 2;
    match kind % 8 {
        0..=3 => {
            // A port that is there, or none; an event.
            let event = u16::from(bytes.first().copied().unwrap_or(3) % 9);
            let value = (number >> 16) as u16 & 1;
            let message = [&(number % 3).to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
            shown(rig.call(3, &[Piece::Read(&message)]))
        }
        4 => {
            rig.device.resize(*number as u16, (number >> 16) as u16);
            Vec::new()
        }
        5 => {
            // What the driver is still to be told.
            let news = |rig: &Rig<Console>| rig.device.save().ports.iter().any(|port| port.news != 0);
            let mut told = Vec::new();
            while news(rig) {
                told.extend(shown(rig.call(2, &[Piece::Write(64)])));
            }
            told
        }
        _ => {
            let mut seen = shown(rig.call([1, 5][port], &[Piece::Read(bytes), Piece::Read(b".")]));
            let mut out = [0; 64];
            let length = peers[port].read(&mut out).unwrap_or(0);
            seen.extend(&out[..length]);
            seen
        }
    }
}

fn net() -> Made<Net, Arc<TestLink>> {
    let link = TestLink::new(LinkInfo { queues: 3, offloads: Offloads::all(), mtu: Some(1500) });
    let (name, mac) = ("net".into(), [2; 6]);
    let config = NetConfig { name, link: link.clone(), mac, poll: Duration::ZERO, receive: None, send: None };
    (Net::new(&config).unwrap(), link)
}

fn with_net(rig: &mut Rig<Net>, link: &mut Arc<TestLink>, (kind, number, bytes): &Step) -> Vec<u8> {
    let mut seen = match kind % 6 {
        0..=3 => {
            let (class, command, length) = [(1, 1, 6), (3, 0, 0), (4, 0, 2), (5, 0, 8)][usize::from(kind % 4)];
            let mut data = bytes.clone();
            // Most are as long as they are to be.
            if number % 4 != 0 {
                data.resize(length, 0);
            }
            shown(rig.call(
                6,
                &[Piece::Read(&[class as u8, command as u8]), Piece::Read(&[&data[..], &[]].concat()), Piece::Write(1)],
            ))
        }
        4 => {
            rig.device.announce();
            Vec::new()
        }
        _ => {
            let pair = (number % 3) as u16;
            let used =
                shown(rig.call(2 * pair + 1, &[Piece::Read(&[0; 12]), Piece::Read(&[&[9; 14], &bytes[..]].concat())]));
            [used, link.take(pair).concat()].concat()
        }
    };
    seen.extend(format!("{:?}", link.settings()).into_bytes());
    seen
}

fn balloon() -> Made<Balloon, ()> {
    (Balloon::new("balloon", true).unwrap(), ())
}

fn with_balloon(rig: &mut Rig<Balloon>, (): &mut (), (kind, number, bytes): &Step) -> Vec<u8> {
    match kind % 4 {
        0 => {
            rig.device.set_target(u64::from(*number) << 8);
            Vec::new()
        }
        1 => {
            rig.device.write_config(u64::from(kind / 4 % 10), &bytes[..bytes.len().min(4)]);
            Vec::new()
        }
        _ => {
            let page = ((BUFFERS >> 12) as u32 + 0x200 + number % 0x40).to_le_bytes();
            shown(rig.call(u16::from(kind % 2), &[Piece::Read(&page)]))
        }
    }
}

fn blk() -> Made<Blk, ()> {
    let disk = MemoryDisk::new(1 << 16, 512);
    let (name, serial) = ("blk".into(), "a serial".to_owned());
    (Blk::new(&BlkConfig { name, disk, queues: 2, serial, poll: Duration::ZERO }).unwrap(), ())
}

fn with_blk(rig: &mut Rig<Blk>, (): &mut (), (kind, number, bytes): &Step) -> Vec<u8> {
    if kind % 3 == 0 {
        let offset = 32 + u64::from(*number == 0);
        rig.device.write_config(offset, &bytes[..bytes.len().min(2)]);
        return Vec::new();
    }
    // Reads, flushes, the name, and what is none of them.
    let request = [0, 4, 8, 77][usize::from(kind / 3 % 4)];
    let header = [&u64::from(request as u32).to_le_bytes()[..], &u64::from(number % 140).to_le_bytes()].concat();
    let length = [512, 0, 20, 16][usize::from(kind / 3 % 4)];
    let mut pieces = vec![Piece::Read(&header)];
    if length > 0 {
        pieces.push(Piece::Write(length));
    }
    pieces.push(Piece::Write(1));
    shown(rig.call((number >> 16) as u16 % 2, &pieces))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn fuzz_a_saved_console_behaves_the_same(before in steps(40), after in steps(40)) {
        twins(console, with_console, &before, &after);
    }

    #[test]
    fn fuzz_a_saved_network_card_behaves_the_same(before in steps(30), after in steps(30)) {
        twins(net, with_net, &before, &after);
    }

    #[test]
    fn fuzz_a_saved_balloon_behaves_the_same(before in steps(30), after in steps(30)) {
        twins(balloon, with_balloon, &before, &after);
    }

    #[test]
    fn fuzz_a_saved_disk_behaves_the_same(before in steps(30), after in steps(30)) {
        twins(blk, with_blk, &before, &after);
    }
}
