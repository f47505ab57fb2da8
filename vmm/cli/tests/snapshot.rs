//! Stock Debian kernels that are put away and go on, again and again, while they write to disks of both kinds.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Builder, Finished, Machine, image};

/// Writes to both disks without end, reads what it wrote past its cache, and compares. Says its uptime whenever it is asked,
/// and has then written since.
const SCRIPT: &str = "mkdir /a /b; mount -t ext4 /dev/nvme0n1 /a; mount -t ext4 /dev/vda /b
    dd if=/dev/urandom of=/tmp/data bs=64k count=8 2>/dev/null
    work() {
        i=0
        until [ -e /tmp/stop ] && [ $i -gt 2 ]; do
            i=$((i+1)); cp /tmp/data $1/$((i%3)); sync; echo 1 >/proc/sys/vm/drop_caches
            cmp /tmp/data $1/$((i%3)) || touch /tmp/wrong
        done
    }
    work /a & work /b &
    echo the disks are written
    for round in 1 2 3; do read go; echo $round >/a/round; sync; echo round $round: $(cut -d' ' -f1 /proc/uptime) s; done
    touch /tmp/stop; wait
    [ ! -e /tmp/wrong ]
    umount /a /b; mount -t ext4 /dev/nvme0n1 /a; mount -t ext4 /dev/vda /b
    for file in /a/0 /a/1 /b/0 /b/1; do cmp /tmp/data $file; done
    umount /a /b";

struct Guest {
    machine: Machine,
    folder: tempfile::TempDir,
}

impl Guest {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        Builder::command(&[&["ctl", self.path("vm.sock").to_str().unwrap()], words].concat()).finish()
    }

    /// Asks for the guest's uptime in round `round`.
    fn uptime(&mut self, round: u32) -> f64 {
        self.machine.send("go\n");
        let line = self.machine.wait_for(&format!("round {round}: "));
        let line = if line.contains(" s") { line } else { line + &self.machine.wait_for(" s") };
        let text = line.split("round").last().unwrap().split_whitespace().nth(1).unwrap();
        text.parse().unwrap_or_else(|_| panic!("`{text}` is no time in {line}"))
    }

    /// Puts the machine away, whole or as the difference to what it was before, and lets it go on in another process.
    fn again(self, name: &str, save: &[&str], words: &[&str]) -> Self {
        let (snapshot, socket) = (self.path(name), self.path("vm.sock"));
        let all = [&["save", snapshot.to_str().unwrap(), "--quit"], save].concat();
        self.ctl(&all).expect_code(0).expect_console("saved ");
        let Self { machine, folder } = self;
        machine.finish().expect_code(14);
        let restore = ["restore", snapshot.to_str().unwrap(), "--control", socket.to_str().unwrap(), "--log", "info"];
        let mut machine = Builder::command(&[&restore[..], words].concat()).start();
        machine.wait_for_log("restored from");
        Self { machine, folder }
    }
}

#[test]
fn a_guest_goes_on_with_its_disks_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["a.img", "b.img"] {
        fs::copy(image("disk.ext4"), path(name)).unwrap();
    }
    let disk = |name: &str, more: &str| format!("{},format=raw{more}", path(name).display());
    let [a, b, socket] =
        [disk("a.img", ""), disk("b.img", ",device=virtio-blk"), path("vm.sock").display().to_string()];
    let words = ["--cpus", "2", "--disk", &a, "--disk", &b, "--control", &socket];
    let mut machine = Builder::debian_with_virtio().args(&words).script(SCRIPT).start();
    machine.wait_for("the disks are written");
    let mut guest = Guest { machine, folder };
    a_save_that_fails_harms_nobody(&guest);
    // It goes on by itself.
    let kept = guest.path("kept");
    guest.ctl(&["save", kept.to_str().unwrap(), "--track"]).expect_code(0);
    Builder::command(&["snapshot", "verify", kept.to_str().unwrap()]).finish().expect_code(0);
    let first = guest.uptime(1);
    Builder::command(&["restore", kept.to_str().unwrap()])
        .finish()
        .expect_code(1)
        .expect_log("has been written since the snapshot was saved");

    // A chain of differences.
    let mut guest = guest.again("one", &["--diff"], &["--track"]);
    let second = guest.uptime(2);
    let guest = guest.again("two", &["--diff"], &["--clock", "jump"]);
    Builder::command(&["snapshot", "verify", guest.path("two").to_str().unwrap()]).finish().expect_code(0);
    // What a machine maps may lose its name.
    for name in ["kept", "one", "two"] {
        fs::remove_dir_all(guest.path(name)).unwrap();
    }
    let mut guest = guest.again("three", &[], &[]);
    let third = guest.uptime(3);
    assert!(first < second && second < third, "{first} {second} {third}");
    guest.machine.finish().expect_code(0).expect_console("skep: script 0");
}

/// A full disk, where this is root's own machine; a folder that is there, and one that can't be made.
fn a_save_that_fails_harms_nobody(guest: &Guest) {
    let refused = |folder: &Path, text: &str| {
        guest.ctl(&["save", folder.to_str().unwrap()]).expect_code(1).expect_log(text);
        guest.ctl(&["status"]).expect_code(0).expect_console("running\n");
    };
    refused(guest.folder.path(), "is there already");
    refused(&guest.path("none/such"), "there is no such folder");
    if std::env::var_os("SKEP_LAB").is_some() {
        let small = guest.path("small");
        fs::create_dir(&small).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&small).status().unwrap();
        assert!(mount.success());
        refused(&small.join("snapshot"), "No space left on device");
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "nothing is left");
        assert!(Command::new("umount").arg(&small).status().unwrap().success());
    }
}
