//! What every device must make of a state that it did not save.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use skep_block::testing::MemoryDisk;
use skep_net::testing::TestLink;
use skep_net::{LinkInfo, Offloads};
use skep_state::Record;

use crate::blk::BlkConfig;
use crate::net::NetConfig;
use crate::testing::Rig;
use crate::{Balloon, Blk, Console, Net, PortConfig, Rng, VirtioDevice, Vsock};

fn rng() -> Arc<Rng> {
    Rng::new("rng").unwrap()
}

fn balloon() -> Arc<Balloon> {
    Balloon::new("balloon", true).unwrap()
}

fn blk() -> Arc<Blk> {
    let disk = MemoryDisk::new(1 << 16, 512);
    Blk::new(&BlkConfig { name: "blk".into(), disk, queues: 2, serial: String::new(), poll: Duration::ZERO }).unwrap()
}

fn net() -> Arc<Net> {
    let link = TestLink::new(LinkInfo { queues: 2, offloads: Offloads::all(), mtu: None });
    Net::new(&NetConfig { name: "net".into(), link, mac: [2; 6], poll: Duration::ZERO, receive: None, send: None })
        .unwrap()
}

fn console() -> Arc<Console> {
    let (io, _) = UnixStream::pair().unwrap();
    io.set_nonblocking(true).unwrap();
    Console::new("console", vec![PortConfig { name: "tty".into(), console: true, io: Box::new(io) }]).unwrap()
}

fn vsock() -> Arc<Vsock> {
    let directory = tempfile::tempdir().unwrap();
    Vsock::new("vsock", 3, &directory.path().join("v")).unwrap()
}

/// The record that a device saves after it has run, with one byte changed: it is refused, or the device runs with it, and what it then saves
/// is in order. Unchanged it is taken, and the same is saved.
fn check<D: VirtioDevice>(build: impl Fn() -> Arc<D>, place: usize, value: u8) {
    let rig = Rig::new(build());
    rig.stop_all();
    let good = rig.device.save_record();
    let other = build();
    other.restore_record(&good).unwrap();
    other.reset_component();
    let mut body = good.body.clone();
    let place = place % body.len();
    body[place] = value;
    let mut rig = Rig::idle(build(), true);
    if rig.device.restore_record(&Record { body, ..good }).is_ok() {
        rig.start_all(&[]);
        rig.stop_all();
        build().restore_record(&rig.device.save_record()).unwrap();
    }
}

skep_fuzzing::targets! {
    "virtio-device-states", 96: fn fuzz_states(place in any::<usize>(), value in any::<u8>()) {
        check(rng, place, value);
        check(balloon, place, value);
        check(blk, place, value);
        check(net, place, value);
        check(console, place, value);
    }
}

#[test]
fn a_socket_device_refuses_or_takes_any_state() {
    for place in 0..16 {
        for value in [0, 1, 2, 3, 0x1b, 0x7f, 0xff] {
            check(vsock, place, value);
        }
    }
}
