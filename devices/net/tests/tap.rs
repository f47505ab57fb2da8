//! Tap interfaces of the kernel, in a network namespace of the test's own, which an unprivileged user may have as well.
#![allow(clippy::unwrap_used)] // Helpers of tests unwrap as tests do.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use skep_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use skep_memory::{Backing, MemoryMap, RamOptions, RamView, Region, RegionKind};
use skep_net::{GuestSlice, HEADER, Link, LinkQueue, NetError, Offloads, Tap};

/// Set in the process that has a namespace of its own.
const INSIDE: &str = "SKEP_TEST_NAMESPACE";

/// Runs the test named `name` anew in a namespace, or says that this is there.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    let status = command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "the test failed in its namespace, or the host allows no user namespaces");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

fn ram() -> Arc<RamView> {
    let map = MemoryMap::new();
    let backing = Arc::new(Backing::new(0x4_0000, &RamOptions::default()).unwrap());
    map.add(Region::new("ram", RegionKind::Ram, 0, 0x4_0000, backing, 0).unwrap()).unwrap();
    map.ram()
}

fn slices<'a>(ram: &'a RamView, at: u64, lengths: &[usize]) -> Vec<GuestSlice<'a>> {
    let mut at = at;
    let piece = |len: &usize| {
        let slice = ram.get_slice(GuestAddress(at), *len).unwrap();
        at += *len as u64;
        slice
    };
    lengths.iter().map(piece).collect()
}

fn wait(queue: &dyn LinkQueue) {
    let mut poll = [rustix::event::PollFd::from_borrowed_fd(queue.event(), rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut poll, None).unwrap();
}

/// Receives frames until one is IPv4, since the kernel says hello by IPv6; says its length.
fn receive_ipv4(queue: &mut dyn LinkQueue, ram: &RamView) -> usize {
    loop {
        wait(queue);
        let len = queue.receive(&slices(ram, 0, &[5, 100, 70_000])).unwrap();
        let kind: [u8; 2] = ram.read_obj(GuestAddress(HEADER as u64 + 12)).unwrap();
        if kind == [8, 0] {
            return len;
        }
    }
}

#[test]
fn frames_pass_and_offloads_are_the_kernels() {
    if !inside("frames_pass_and_offloads_are_the_kernels") {
        return;
    }
    let tap = Tap::open("skep0", 1).unwrap();
    ip("addr add 192.0.2.1/24 dev skep0");
    ip("neigh add 192.0.2.2 lladdr 52:54:00:00:00:02 dev skep0");
    ip("link set skep0 mtu 1400 up");
    let info = tap.info();
    assert_eq!((info.queues, info.mtu), (1, Some(1400)));
    assert!(info.offloads.contains(Offloads::CHECKSUM | Offloads::TSO4 | Offloads::TSO6));
    let mut queue = tap.open_queue(0).unwrap();
    assert!(matches!(tap.open_queue(0), Err(NetError::Queue { queue: 0, count: 1 })));
    let ram = ram();

    // To the guest: with the checksum to be filled in, and without.
    let socket = UdpSocket::bind("192.0.2.1:5000").unwrap();
    let guest: SocketAddr = "192.0.2.2:6000".parse().unwrap();
    for (offloads, flags) in [(Offloads::empty(), 0), (Offloads::CHECKSUM, 1)] {
        tap.set_offloads(offloads).unwrap();
        socket.send_to(b"to the guest", guest).unwrap();
        let len = receive_ipv4(&mut *queue, &ram);
        assert_eq!(len, HEADER + 14 + 20 + 8 + 12);
        let header: [u8; HEADER] = ram.read_obj(GuestAddress(0)).unwrap();
        assert_eq!(header[0], flags, "needs a checksum");
        let text: [u8; 12] = ram.read_obj(GuestAddress((len - 12) as u64)).unwrap();
        assert_eq!(&text, b"to the guest");
    }
    // A frame without room shows.
    socket.send_to(b"to the guest", guest).unwrap();
    loop {
        wait(&*queue);
        if queue.receive(&slices(&ram, 0, &[20])).unwrap() > 20 {
            break;
        }
    }

    // From the guest: the same frame back, its addresses turned round, its checksum left to the kernel.
    socket.send_to(b"to the guest", guest).unwrap();
    let len = receive_ipv4(&mut *queue, &ram);
    let mut frame = vec![0; len];
    ram.read_slice(&mut frame, GuestAddress(0)).unwrap();
    let ethernet = HEADER;
    let (to, from) = (frame[ethernet..ethernet + 6].to_vec(), frame[ethernet + 6..ethernet + 12].to_vec());
    frame[ethernet..ethernet + 6].copy_from_slice(&from);
    frame[ethernet + 6..ethernet + 12].copy_from_slice(&to);
    let ip = ethernet + 14;
    for (one, other, width) in [(ip + 12, ip + 16, 4), (ip + 20, ip + 22, 2)] {
        for at in 0..width {
            frame.swap(one + at, other + at);
        }
    }
    ram.write_slice(&frame, GuestAddress(0x1000)).unwrap();
    queue.send(&slices(&ram, 0x1000, &[12, len - 12])).unwrap();
    let mut text = [0; 64];
    let (read, sender) = socket.recv_from(&mut text).unwrap();
    assert_eq!((&text[..read], sender), (&b"to the guest"[..], guest));
    assert!(queue.send(&slices(&ram, 0x1000, &[5])).is_err(), "no header");

    // A card that has come from elsewhere: one more frame, the shortest that there is.
    let taken = || {
        let text = std::fs::read_to_string("/proc/net/dev").unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("skep0:")).unwrap().to_owned();
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    };
    let (bytes, frames) = taken();
    tap.announce([0x52, 0x54, 0, 0, 0, 2]);
    assert_eq!(taken(), (bytes + 60, frames + 1));
}

#[test]
fn several_queues_and_names_that_none_has() {
    if !inside("several_queues_and_names_that_none_has") {
        return;
    }
    let tap = Tap::open("skep1", 3).unwrap();
    let queues: Vec<_> = (0..3).map(|queue| tap.open_queue(queue).unwrap()).collect();
    assert!(queues.iter().all(|queue| queue.event().as_raw_fd() >= 0));
    for count in [1, 3, 2, 1] {
        tap.set_active_queues(count).unwrap();
    }
    for name in ["", "a/b", "sixteen-letters-"] {
        assert!(matches!(Tap::open(name, 1), Err(NetError::Name(_))));
    }
    let taken = Tap::open("lo", 1).err().unwrap().to_string();
    assert!(taken.starts_with("can't attach to tap interface `lo`: "), "{taken}");
}
