//! Stock Debian kernels to which disks and network cards come, and from which they go, while they run: by `skep ctl`.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Builder, Finished, Machine, image};
use tempfile::TempDir;

/// What stands in the file `greeting` of the disk with a file system.
const GREETING: &str = "a file on a disk of the host";

/// A guest that runs a script, its control socket, and files.
struct Guest {
    machine: Machine,
    folder: TempDir,
}

impl Guest {
    fn start(builder: Builder, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let words = ["--cpus", "2", "--pci-ports", "2", "--control", socket.to_str().unwrap()];
        // What comes and goes is waited for.
        let tools = "until_is() { until [ -e $1 ]; do sleep 0.1; done; }
            until_gone() { while [ -e $1 ]; do sleep 0.1; done; }
            echo the guest is ready\n";
        // A device's node goes before its slot is empty: a guest that ended at once would end the removal.
        let mut machine = builder.args(&words).script(&format!("{tools}{script}\nread end")).start();
        machine.wait_for("the guest is ready");
        Self { machine, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A copy of the disk with a file system.
    fn file_system(&self) -> PathBuf {
        let path = self.path("data.img");
        fs::copy(image("disk.ext4"), &path).unwrap();
        path
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        let socket = self.path("vm.sock");
        Builder::command(&[&["ctl", socket.to_str().unwrap()], words].concat()).finish()
    }

    fn add_disk(&self, path: &Path, more: &str) {
        let flag = format!("{},format=raw{more}", path.display());
        self.ctl(&["disk", "add", &flag]).expect_code(0).expect_console(": at port:0\n");
    }

    fn expect_device(&self, row: &str) {
        let list = self.ctl(&["device", "list"]);
        let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(list.console.lines().any(|line| squeezed(line) == row), "`{row}` is not in:\n{}", list.console);
    }

    /// The guest lets it go; its place is free when that has been told.
    fn remove(&self, id: &str) {
        let removed = self.ctl(&["device", "remove", id, "--timeout", "200"]);
        removed.expect_code(0).expect_console(&format!("{id}: gone\n"));
        assert!(!self.ctl(&["device", "list"]).console.contains(id));
    }

    fn finish(mut self) {
        self.machine.send("end\n");
        self.machine.finish().expect_code(0).expect_console("skep: script 0");
    }
}

/// It comes, is read, grows, goes, and comes once more with the same file in the same slot: that was unlocked, and the slot is empty.
fn a_disk_comes_and_goes(builder: Builder, device: &str, node: &str) {
    let script = format!(
        "mkdir /mnt
        for round in 1 2; do
            until_is /dev/{node}
            mount -t ext4 -o ro /dev/{node} /mnt; cat /mnt/greeting; umount /mnt
            echo round $round: $(cat /sys/block/{node}/size) sectors, queues $(ls /sys/block/{node}/mq)
            [ $round = 2 ] || until [ $(cat /sys/block/{node}/size) = 32768 ]; do sleep 0.1; done
            echo round $round: seen
            until_gone /dev/{node}
            echo round $round: gone
        done"
    );
    let mut guest = Guest::start(builder, &script);
    let path = guest.file_system();
    let more = format!(",device={device},id=data");
    guest.add_disk(&path, &more);
    guest.machine.wait_for(GREETING);
    guest.machine.wait_for("round 1: 16384 sectors, queues 0 1");
    guest.expect_device(&format!("data {device} port:0 on 8M"));
    fs::File::options().write(true).open(&path).unwrap().set_len(16 << 20).unwrap();
    guest.ctl(&["disk", "resize", "data"]).expect_code(0).expect_console("data: 16M\n");
    guest.machine.wait_for("round 1: seen");
    guest.remove("data");
    guest.machine.wait_for("round 1: gone");
    guest.add_disk(&path, &more);
    guest.machine.wait_for(GREETING);
    guest.machine.wait_for("round 2: 32768 sectors");
    guest.machine.wait_for("round 2: seen");
    guest.remove("data");
    guest.machine.wait_for("round 2: gone");
    guest.finish();
}

#[test]
fn an_nvme_disk_comes_and_goes() {
    a_disk_comes_and_goes(Builder::debian(), "nvme", "nvme0n1");
}

#[test]
fn a_virtio_disk_comes_and_goes() {
    a_disk_comes_and_goes(Builder::debian_with_virtio(), "virtio-blk", "vda");
}

/// The guest reads without end while the disk is taken away, and gets an error in the end.
fn a_disk_goes_under_load(builder: Builder, device: &str, node: &str) {
    let script = format!(
        "until_is /dev/{node}
        (while dd if=/dev/{node} of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; echo no more reads) &
        echo the disk is read
        until_gone /dev/{node}
        wait
        echo and gone"
    );
    let mut guest = Guest::start(builder, &script);
    let path = guest.file_system();
    guest.add_disk(&path, &format!(",device={device},id=busy"));
    guest.machine.wait_for("the disk is read");
    guest.remove("busy");
    guest.machine.wait_for("no more reads");
    guest.machine.wait_for("and gone");
    // Another writer may have it.
    guest.add_disk(&path, ",id=again");
    guest.finish();
}

#[test]
fn an_nvme_disk_goes_under_load() {
    a_disk_goes_under_load(Builder::debian(), "nvme", "nvme0n1");
}

#[test]
fn a_virtio_disk_goes_under_load() {
    a_disk_goes_under_load(Builder::debian_with_virtio(), "virtio-blk", "vda");
}

#[test]
fn namespaces_come_to_and_go_from_a_controller_that_runs() {
    let script = "until_is /dev/nvme0n1; until_is /dev/nvme0n2
        mkdir /mnt; mount -t ext4 -o ro /dev/nvme0n2 /mnt; cat /mnt/greeting; umount /mnt
        until_gone /dev/nvme0n2
        [ -e /dev/nvme0n1 ] && echo the other one stays";
    let mut guest = Guest::start(Builder::debian(), script);
    let (first, second) = (guest.path("first.img"), guest.file_system());
    fs::File::create(&first).unwrap().set_len(1 << 20).unwrap();
    guest.add_disk(&first, ",controller=both");
    let flag = format!("{},format=raw,controller=both,id=second", second.display());
    let joined = guest.ctl(&["disk", "add", &flag]);
    joined.expect_code(0).expect_console("second: namespace 2 of the controller at port:0\n");
    guest.machine.wait_for(GREETING);
    guest.expect_device("second nvme-namespace both:2 on 8M");
    guest.remove("second");
    guest.machine.wait_for("the other one stays");
    guest.finish();
}

fn ip(words: &[&str]) {
    let status = Command::new("ip").args(words).status().unwrap();
    assert!(status.success(), "ip {words:?}");
}

#[test]
fn a_network_card_comes_and_goes() {
    let script = "card=/sys/class/net/eth0
        until_is $card; cat $card/address
        ip addr add 192.168.78.2/24 dev eth0; ip link set eth0 up
        echo the card is up
        read go
        ping -c 3 -W 20 192.168.78.1
        until_gone $card
        echo the card has gone";
    let mut guest = Guest::start(Builder::debian_with_virtio(), script);
    let added = guest.ctl(&["net", "add", "tap=skep1,id=lan,mac=02:00:00:00:00:08"]);
    added.expect_code(0).expect_console("lan: at port:0\n");
    guest.machine.wait_for("02:00:00:00:00:08");
    guest.machine.wait_for("the card is up");
    guest.expect_device("lan virtio-net port:0 on");
    ip(&["addr", "add", "192.168.78.1/24", "dev", "skep1"]);
    ip(&["link", "set", "skep1", "up"]);
    guest.machine.send("go\n");
    guest.machine.wait_for("3 packets received");
    guest.remove("lan");
    assert!(!Path::new("/sys/class/net/skep1").exists(), "the interface was made for the card");
    guest.machine.wait_for("the card has gone");
    guest.finish();
}

#[test]
fn a_guest_that_does_not_answer_keeps_its_device() {
    let script = "until_is /dev/nvme0n1
        echo the disk is here
        read word
        if [ $word = deaf ]; then
            cd /sys/bus/pci_express/drivers/pciehp
            for port in 0000*; do echo $port >unbind; done
            echo nobody listens
            read word
            reboot -f
        fi
        until_gone /dev/nvme0n1
        echo the disk has gone";
    let mut guest = Guest::start(Builder::debian(), script);
    let path = guest.file_system();
    guest.add_disk(&path, ",id=data");
    guest.machine.wait_for("the disk is here");
    guest.machine.send("deaf\n");
    guest.machine.wait_for("nobody listens");
    let kept = guest.ctl(&["device", "remove", "data", "--timeout", "1"]);
    kept.expect_code(1).expect_log("the guest has not let `data` go within 1 s, and may still");
    guest.expect_device("data nvme port:0 leaving 8M");
    let twice = guest.ctl(&["device", "remove", "data"]);
    twice.expect_code(1).expect_log("the guest has been asked already to let `data` go\n  try: wait");
    let again = guest.ctl(&["device", "remove", "data", "--again", "--no-wait"]);
    again.expect_code(0).expect_console("data: the guest has been asked to let it go\n");
    // It hears again after a restart, and what it was asked before is forgotten.
    guest.machine.send("restart\n");
    guest.machine.wait_for("the guest is ready");
    guest.machine.wait_for("the disk is here");
    guest.expect_device("data nvme port:0 on 8M");
    guest.machine.send("go\n");
    guest.remove("data");
    guest.machine.wait_for("the disk has gone");
    guest.finish();
}
