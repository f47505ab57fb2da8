//! Stock Debian kernels with a network card on a tap interface of the host.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::process::Command;

use support::Builder;

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().unwrap();
    assert!(status.success(), "ip {words:?}");
}

/// What a guest in a network does: its address, its neighbour, and a transfer each way.
#[test]
fn a_guest_talks_with_its_host_over_a_tap_interface() {
    let machine = Builder::debian_with_virtio().args(&["--cpus", "2", "--net", "tap=skep0,mac=02:00:00:00:00:07"]);
    let machine = machine.script(
        "cat /sys/class/net/eth0/address
        ip addr add 192.168.77.2/24 dev eth0; ip link set eth0 up
        echo the card is up
        read go
        ping -c 3 -W 20 192.168.77.1
        yes 0123456789abcde | head -c 4194304 | nc 192.168.77.1 7000 >/tmp/back
        wc -c </tmp/back; yes edcba9876543210 | head -c 4194304 | cmp - /tmp/back && echo the same",
    );
    let mut machine = machine.start();
    machine.wait_for("02:00:00:00:00:07");
    machine.wait_for("the card is up");
    ip(&["addr", "add", "192.168.77.1/24", "dev", "skep0"]);
    ip(&["link", "set", "skep0", "up"]);
    let listener = std::net::TcpListener::bind("192.168.77.1:7000").unwrap();
    let host = std::thread::spawn(move || {
        use std::io::{Read, Write};
        const LENGTH: usize = 4 << 20;
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; LENGTH];
        stream.read_exact(&mut got).unwrap();
        let pattern = |text: &[u8]| text.iter().copied().cycle().take(LENGTH).collect::<Vec<u8>>();
        assert!(got == pattern(b"0123456789abcde\n"), "what the guest has sent");
        stream.write_all(&pattern(b"edcba9876543210\n")).unwrap();
    });
    machine.send("go\n");
    machine.wait_for("3 packets received");
    machine.wait_for("4194304");
    machine.wait_for("the same");
    host.join().unwrap();
    machine.wait_for("skep: script 0");
    machine.finish().expect_code(0);
}
