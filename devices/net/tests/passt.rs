//! The program `passt` itself, which tools/setup installs.
#![allow(clippy::unwrap_used)] // Helpers of tests unwrap as tests do.

use std::process::Command;
use std::sync::Arc;

use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use skep_memory::{Backing, MemoryMap, RamOptions, RamView, Region, RegionKind};
use skep_net::{HEADER, Link, Passt, PasstConfig};

fn ram() -> Arc<RamView> {
    let map = MemoryMap::new();
    let backing = Arc::new(Backing::new(0x4_0000, &RamOptions::default()).unwrap());
    map.add(Region::new("ram", RegionKind::Ram, 0, 0x4_0000, backing, 0).unwrap()).unwrap();
    map.ram()
}

/// It answers a guest that asks for the address of its gateway.
#[test]
fn the_gateway_answers() {
    let addresses = ["--address", "192.0.2.15", "--netmask", "24", "--gateway", "192.0.2.2", "--ipv4-only"];
    let config = PasstConfig { arguments: addresses.map(Into::into).to_vec(), ..PasstConfig::default() };
    assert!(Command::new(&config.program).arg("--version").output().is_ok(), "install passt: ./tools/setup does");
    let passt = Passt::start(&config).unwrap();
    let mut queue = passt.open_queue(0).unwrap();
    let ram = ram();
    let mac = [0x52, 0x54, 0, 0, 0, 0x0f];
    let request = [
        &[0; HEADER][..],
        &[0xff; 6],
        &mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &mac,
        &[192, 0, 2, 15],
        &[0; 6],
        &[192, 0, 2, 2],
        &[0; 18],
    ]
    .concat();
    ram.write_slice(&request, GuestAddress(0)).unwrap();
    queue.send(&[ram.get_slice(GuestAddress(0), request.len()).unwrap()]).unwrap();
    // ARP: an answer, to us, from the gateway.
    loop {
        let mut poll = [rustix::event::PollFd::from_borrowed_fd(queue.event(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        let Ok(len) = queue.receive(&[ram.get_slice(GuestAddress(0x1000), 0x1000).unwrap()]) else { continue };
        let mut frame = vec![0; len];
        ram.read_slice(&mut frame, GuestAddress(0x1000)).unwrap();
        if frame[HEADER + 12..HEADER + 14] == [8, 6] {
            assert_eq!(frame[HEADER..HEADER + 6], mac);
            assert_eq!(frame[HEADER + 20..HEADER + 22], [0, 2]);
            assert_eq!(frame[HEADER + 28..HEADER + 32], [192, 0, 2, 2]);
            return;
        }
    }
}
