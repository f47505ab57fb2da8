//! Stock Debian kernels with devices whose backends are other programs: Debian's own.
#![allow(clippy::unwrap_used)] // Helpers of tests.

#[path = "support/card.rs"]
#[allow(unreachable_pub)] // A part of this test.
mod card;
mod support;
#[path = "support/teller.rs"]
#[allow(unreachable_pub)] // A part of this test.
mod teller;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use card::{Card, Wire};
use support::{Builder, Machine, image, ip, trade};
use teller::Teller;
use tempfile::TempDir;

/// A program of QEMU's, which is in the path in a lab, and elsewhere where Debian has it.
fn of_qemu(name: &str) -> Command {
    let installed = Path::new("/usr/lib/qemu").join(name);
    let in_lab = std::env::var_os("SKEP_LAB").is_some();
    let mut command = Command::new(if !in_lab && installed.exists() { installed } else { name.into() });
    command.stdin(Stdio::null());
    command
}

/// A backend. Dropping it kills it.
struct Backend(Child);

impl Backend {
    /// Starts it, and waits until its socket is there.
    fn start(mut command: Command, socket: &Path) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut backend = Self(child);
        while !socket.exists() {
            assert_eq!(backend.0.try_wait().unwrap(), None, "{command:?} has ended");
            std::thread::yield_now();
        }
        backend
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It has ended already where its connection was closed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine, its control socket, its backends and their files.
struct Rig {
    machine: Machine,
    folder: TempDir,
}

impl Rig {
    fn path(folder: &TempDir, name: &str) -> PathBuf {
        folder.path().join(name)
    }

    fn start(folder: TempDir, words: &[&str], script: &str) -> Self {
        let socket = Self::path(&folder, "vm.sock");
        let machine = Builder::debian_with_virtio()
            .args(&["--cpus", "2", "--pci-ports", "2", "--control", socket.to_str().unwrap()])
            .args(words)
            .script(script);
        Self { machine: machine.start(), folder }
    }

    fn ctl(&self, words: &[&str]) -> Machine {
        let socket = Self::path(&self.folder, "vm.sock");
        Builder::command(&[&["ctl", socket.to_str().unwrap()], words].concat()).start()
    }
}

/// A directory, and `virtiofsd` before it.
fn virtiofsd(folder: &TempDir) -> (Backend, PathBuf) {
    let (socket, source) = (Rig::path(folder, "fs.sock"), Rig::path(folder, "shared"));
    fs::create_dir(&source).unwrap();
    let mut command = of_qemu("virtiofsd");
    command.arg(format!("--socket-path={}", socket.display()));
    command.args(["-o", &format!("source={}", source.display()), "-o", "sandbox=chroot"]);
    (Backend::start(command, &socket), socket)
}

/// A disk, and `qemu-storage-daemon` before it.
fn storage_daemon(folder: &TempDir, name: &str) -> (Backend, PathBuf) {
    let (socket, disk) = (Rig::path(folder, &format!("{name}.sock")), Rig::path(folder, name));
    fs::copy(image("disk.ext4"), &disk).unwrap();
    let mut command = of_qemu("qemu-storage-daemon");
    let node = format!("driver=file,node-name=disk,filename={}", disk.display());
    let export = format!(
        "type=vhost-user-blk,id=out,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={}",
        socket.display()
    );
    command.args(["--blockdev", &node, "--export", &export]);
    (Backend::start(command, &socket), socket)
}

/// Bytes that go each way by the network card.
const TRADED: usize = 512 << 10;

/// A directory and a disk are read and written; frames go both ways by two pairs of queues; the disk's driver goes and comes again; a disk grows while
/// it is in use; the guest lets disk and directory go while it writes; backends of a disk and of the card die, and others take their places.
#[test]
fn backends_serve_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let (_files, files_socket) = virtiofsd(&folder);
    let (_blocks, disk_socket) = storage_daemon(&folder, "disk");
    let (mortal, mortal_socket) = storage_daemon(&folder, "mortal");
    let (_growing, whole_socket) = storage_daemon(&folder, "growing");
    let sectors = fs::metadata(image("disk.ext4")).unwrap().len() / 512;
    let half_socket = Rig::path(&folder, "half.sock");
    let last = fs::File::options().write(true).open(Rig::path(&folder, "growing")).unwrap();
    last.write_all_at(b"its last sector\n", (sectors - 1) * 512).unwrap();
    let teller = Teller::start(&half_socket, whole_socket, sectors / 2);
    let (wire, card_socket) = (Wire::new("skep2"), Rig::path(&folder, "card.sock"));
    ip(&["addr", "add", "192.168.78.1/24", "dev", "skep2"]);
    ip(&["link", "set", "skep2", "up"]);
    let host = trade("192.168.78.1:7000", TRADED);
    let card = Card::start(&card_socket, &wire);
    let shared = Rig::path(&folder, "shared");
    fs::write(shared.join("greeting"), "a file of the host\n").unwrap();
    let words = [
        "--device",
        &format!("fs,socket={},tag=host,id=files,place=port:0", files_socket.display()),
        "--disk",
        &format!("vhost-user={},id=data,queues=2,place=port:1", disk_socket.display()),
        "--disk",
        &format!("vhost-user={},id=mortal", mortal_socket.display()),
        "--disk",
        &format!("vhost-user={},id=growing", half_socket.display()),
        "--net",
        &format!("vhost-user={},queues=2,id=card,mac=02:00:00:00:00:07", card_socket.display()),
    ];
    // The guest finds what it has to do in the directory: a kernel's command line has no room for it. Bus 0 comes before what is behind its ports:
    // the mortal disk is the first, the growing one the second.
    let task = format!(
        "mount -t ext4 /dev/vdc /disk
        anew() {{
            device=$(basename $(readlink -f /sys/$2/device)); driver=/sys/bus/virtio/drivers/virtio_$1
            echo $device >$driver/unbind; echo $device >$driver/bind
        }}
        up() {{
            ip addr add 192.168.78.2/24 dev eth0; ip link set eth0 up; ping -c 2 -W 20 192.168.78.1
        }}
        cat /mnt/greeting /disk/greeting
        cat /sys/class/net/eth0/address; up
        yes 0123456789abcde | head -c {TRADED} | nc 192.168.78.1 7000 >/tmp/back
        yes edcba9876543210 | head -c {TRADED} | cmp - /tmp/back && echo it came back
        yes a line of the guest | head -c 300000 | tee /mnt/large >/disk/large
        umount /disk; anew blk block/vdc; mount -t ext4 /dev/vdc /disk
        cmp /mnt/large /disk/large && echo the same
        [ $(cat /sys/block/vdb/size) = {half} ] && echo half a disk
        until [ $(cat /sys/block/vdb/size) = {sectors} ]; do sleep 0.1; done
        dd if=/dev/vdb bs=512 skip={before} 2>/dev/null | head -n 1
        umount /disk
        while dd if=/dev/zero of=/mnt/busy bs=64k count=8 2>/dev/null; do echo >/tmp/files; done &
        while dd if=/dev/zero of=/dev/vdc bs=64k count=8 conv=fsync 2>/dev/null && [ -b /dev/vdc ]; do
            echo >/tmp/blocks
        done &
        until [ -e /tmp/files ] && [ -e /tmp/blocks ]; do sleep 0.1; done
        echo both are written to
        while [ -e /sys/block/vdc ] || ls /sys/bus/virtio/drivers/virtiofs | grep -q ^virtio; do sleep 0.1; done
        wait
        echo and gone
        while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.1; done
        echo the link is down; read go
        anew blk block/vda; mount -t ext4 /dev/vda /disk; cat /disk/greeting
        anew net class/net/eth0; up",
        half = sectors / 2,
        before = sectors - 1,
    );
    fs::write(shared.join("task"), task).unwrap();
    let first = "dmesg -n 1; mkdir /mnt /disk; mount -t virtiofs host /mnt; cp /mnt/task /tmp; . /tmp/task";
    let mut rig = Rig::start(folder, &words, first);
    rig.machine.wait_for("a file of the host");
    rig.machine.wait_for("a file on a disk of the host");
    rig.machine.wait_for("02:00:00:00:00:07");
    rig.machine.wait_for("2 packets received");
    rig.machine.wait_for("it came back");
    host.join().unwrap();
    rig.machine.wait_for("the same");
    let large = "a line of the guest\n".repeat(15_000);
    assert!(fs::read_to_string(shared.join("large")).unwrap() == large, "the host sees what the guest has written");
    rig.machine.wait_for("half a disk");
    teller.grow();
    rig.machine.wait_for("its last sector");
    rig.machine.wait_for("both are written to");
    // Both at once: Linux blinks for 5 seconds before it lets one go.
    let removals = ["files", "data"].map(|id| (id, rig.ctl(&["device", "remove", id, "--timeout", "200"])));
    for (id, removal) in removals {
        removal.finish().expect_code(0).expect_console(&format!("{id}: gone\n"));
    }
    rig.machine.wait_for("and gone");
    drop(mortal);
    let said = rig.machine.wait_for_log("is given up");
    assert!(said.contains("`mortal`: the vhost-user backend at"), "it is the first to be: {said}");
    // Neither the guest nor the control socket minds.
    rig.ctl(&["device", "list"]).finish().expect_code(0).expect_console("mortal");
    fs::remove_file(&mortal_socket).unwrap();
    let (_heir, _) = storage_daemon(&rig.folder, "mortal");
    card.kill();
    let said = rig.machine.wait_for_log("is given up");
    assert!(said.contains("`card`: the vhost-user backend at"), "it is the second: {said}");
    rig.machine.wait_for("the link is down");
    let count = |counter: &AtomicUsize| counter.swap(0, Ordering::Relaxed);
    // Which pair a flow takes, and whether a kernel has a frame left to be cut, is a matter of its timing; unit tests show each.
    let [first, second] = wire.received.each_ref().map(count);
    let (large, spread) = (count(&wire.large), count(&wire.spread));
    assert!(first + second > 0 && large + spread > 0, "received: {first} {second}; to be cut: {large} {spread}");
    let heir = Card::start(&card_socket, &wire);
    rig.machine.send("go\n");
    rig.machine.wait_for("a file on a disk of the host");
    rig.machine.wait_for("2 packets received");
    rig.machine.finish().expect_code(0).expect_console("skep: script 0");
    heir.kill();
}
