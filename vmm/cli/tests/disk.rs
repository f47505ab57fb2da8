//! Stock Debian kernels with disks of every kind: what a guest writes is in the host's file, and what is there it reads.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Builder, image};
use tempfile::TempDir;

/// What stands in the file `greeting` of the disk with a file system.
const GREETING: &str = "a file on a disk of the host";

struct Disks(TempDir);

impl Disks {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A copy of the disk with a file system.
    fn file_system(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::copy(image("disk.ext4"), &path).unwrap();
        path
    }

    /// A disk of zeroes.
    fn empty(&self, name: &str, size: u64) -> PathBuf {
        let path = self.0.path().join(name);
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

/// The flag's value.
fn disk(path: &Path, more: &str) -> String {
    format!("{},format=raw{more}", path.display())
}

/// A guest for disks of that kind, and the name of its first one.
fn guest(device: &str) -> (Builder, &'static str) {
    match device {
        "nvme" => (Builder::debian(), "nvme0n1"),
        _ => (Builder::debian_with_virtio(), "vda"),
    }
}

fn a_guest_keeps_its_files(device: &str) {
    let disks = Disks::new();
    let path = disks.file_system("root.img");
    let flag = disk(&path, &format!(",device={device},serial=SKEP-01"));
    let (builder, node) = guest(device);
    let first = builder.args(&["--disk", &flag]).script(&format!(
        "cat /sys/block/{node}/device/serial /sys/block/{node}/serial 2>/dev/null || true
        mkdir /mnt; mount -t ext4 /dev/{node} /mnt; cat /mnt/greeting
        echo kept by a guest on {device} >/mnt/note; umount /mnt"
    ));
    let end = first.finish();
    end.expect_code(0).expect_console("skep: script 0").expect_console(GREETING).expect_console("SKEP-01");
    let note = format!("kept by a guest on {device}");
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.windows(note.len()).any(|window| window == note.as_bytes()), "it is in the host's file");
    let (builder, node) = guest(device);
    let second = builder.args(&["--disk", &flag]).script(&format!("mkdir /mnt; mount /dev/{node} /mnt; cat /mnt/note"));
    second.finish().expect_code(0).expect_console("skep: script 0").expect_console(&note);
}

#[test]
fn a_guest_keeps_its_files_on_nvme() {
    a_guest_keeps_its_files("nvme");
}

#[test]
fn a_guest_keeps_its_files_on_virtio() {
    a_guest_keeps_its_files("virtio-blk");
}

/// Runs `skep image`, which succeeds.
#[track_caller]
fn skep_image(words: &[&str]) {
    let output = Command::new(support::skep()).arg("image").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A qcow2 image before a raw one: what a guest writes is in the image, sound and whole, and the raw one stays what it is.
fn a_guest_keeps_its_files_in_qcow2(device: &str) {
    let disks = Disks::new();
    let base = disks.file_system("base.img");
    let before = fs::read(&base).unwrap();
    let (path, copy) = (disks.0.path().join("root.qcow2"), disks.0.path().join("copy.img"));
    let [name, copy_name] = [&path, &copy].map(|path| path.to_str().unwrap());
    let backing = ["--backing", "base.img", "--backing-format", "raw"];
    skep_image(&[&["create", name, "--format", "qcow2"][..], &backing].concat());
    let flag = format!("{name},format=qcow2,device={device}");
    for (boot, file) in ["greeting", "note"].into_iter().enumerate() {
        let (builder, node) = guest(device);
        let end = builder.args(&["--cpus", "2", "--disk", &flag]).script(&format!(
            "mkdir /mnt; mount -t ext4 /dev/{node} /mnt; cat /mnt/{file}
            echo kept in boot {boot} on {device} >>/mnt/note
            dd if=/dev/urandom of=/mnt/data bs=64k count=16 2>/dev/null; sync; rm /mnt/data; fstrim /mnt || true
            umount /mnt"
        ));
        let end = end.finish();
        end.expect_code(0).expect_console("skep: script 0");
        end.expect_console(if boot == 0 { GREETING } else { "kept in boot 0" });
        skep_image(&["check", name, "--format", "qcow2"]);
    }
    skep_image(&["convert", name, "--from", "qcow2", copy_name, "--to", "raw"]);
    let note = format!("kept in boot 0 on {device}\nkept in boot 1 on {device}\n");
    let bytes = fs::read(&copy).unwrap();
    assert!(bytes.windows(note.len()).any(|window| window == note.as_bytes()), "it is in the host's file");
    assert!(fs::read(&base).unwrap() == before);
}

#[test]
fn a_guest_keeps_its_files_in_qcow2_on_nvme() {
    a_guest_keeps_its_files_in_qcow2("nvme");
}

#[test]
fn a_guest_keeps_its_files_in_qcow2_on_virtio() {
    a_guest_keeps_its_files_in_qcow2("virtio-blk");
}

/// Two CPUs, each with its queue, past the guest's cache.
fn what_is_written_directly_is_in_the_file(device: &str) {
    const LENGTH: usize = 4 << 20;
    let disks = Disks::new();
    let path = disks.empty("data.img", LENGTH as u64);
    let (builder, node) = guest(device);
    let end = builder.args(&["--cpus", "2", "--disk", &disk(&path, &format!(",device={device}"))]).script(&format!(
        "yes 0123456789abcde | head -c {LENGTH} >/tmp/data
        for half in 0 1; do
            taskset -c $half dd if=/tmp/data of=/dev/{node} bs=64k count=32 skip=$((half*32)) seek=$((half*32)) oflag=direct 2>/dev/null &
        done
        wait
        dd if=/dev/{node} bs=128k iflag=direct 2>/dev/null | cmp - /tmp/data && echo the same"
    ));
    let end = end.finish();
    end.expect_code(0).expect_console("skep: script 0").expect_console("the same");
    let expected: Vec<u8> = b"0123456789abcde\n".iter().copied().cycle().take(LENGTH).collect();
    assert!(fs::read(&path).unwrap() == expected, "the file has what the guest wrote");
}

#[test]
fn what_is_written_directly_is_in_the_file_of_nvme() {
    what_is_written_directly_is_in_the_file("nvme");
}

#[test]
fn what_is_written_directly_is_in_the_file_of_virtio() {
    what_is_written_directly_is_in_the_file("virtio-blk");
}

/// The second one is for reading only, and stays as it is.
fn two_disks_are_told_apart(device: &str, nodes: [&str; 2]) {
    let disks = Disks::new();
    let (first, second) = (disks.empty("first.img", 1 << 20), disks.file_system("second.img"));
    let before = fs::read(&second).unwrap();
    let [one, two] = nodes;
    let end = guest(device).0.args(&[
        "--disk",
        &disk(&first, &format!(",device={device}")),
        "--disk",
        &disk(&second, &format!(",device={device},readonly")),
    ]);
    let end = end.script(&format!(
        "echo sizes $(cat /sys/block/{one}/size /sys/block/{two}/size) ro $(cat /sys/block/{one}/ro /sys/block/{two}/ro)
        mkdir /mnt; mount -t ext4 -o ro,noload /dev/{two} /mnt; cat /mnt/greeting
        echo of the guest | dd of=/dev/{one} 2>/dev/null; sync
        if echo x | dd of=/dev/{two} 2>/dev/null; then echo it was written; fi"
    ));
    let end = end.finish();
    end.expect_code(0)
        .expect_console("skep: script 0")
        .expect_console(GREETING)
        .expect_console("sizes 2048 16384 ro 0 1");
    assert!(!end.console.contains("it was written"), "{}", end.console);
    assert!(fs::read(&first).unwrap().starts_with(b"of the guest\n"));
    assert!(fs::read(&second).unwrap() == before);
}

#[test]
fn two_nvme_disks_are_told_apart() {
    two_disks_are_told_apart("nvme", ["nvme0n1", "nvme1n1"]);
}

#[test]
fn two_virtio_disks_are_told_apart() {
    two_disks_are_told_apart("virtio-blk", ["vda", "vdb"]);
}

#[test]
fn disks_of_one_controller_are_its_namespaces() {
    let disks = Disks::new();
    let (first, second) = (disks.empty("first.img", 1 << 20), disks.empty("second.img", 4 << 20));
    let flag = |path: &Path, more: &str| disk(path, &format!(",controller=both{more}"));
    let end = Builder::debian().args(&["--disk", &flag(&first, ""), "--disk", &flag(&second, ",block-size=4096")]);
    let end = end.script(
        "echo $(ls -d /sys/class/nvme/nvme*) $(cat /sys/class/nvme/nvme0/serial)
        echo sizes $(cat /sys/block/nvme0n1/size /sys/block/nvme0n2/size)
        echo blocks $(cat /sys/block/nvme0n1/queue/logical_block_size /sys/block/nvme0n2/queue/logical_block_size)",
    );
    let end = end.finish();
    end.expect_code(0).expect_console("skep: script 0").expect_console("/sys/class/nvme/nvme0 disk0");
    end.expect_console("sizes 2048 8192").expect_console("blocks 512 4096");
}

#[test]
fn disks_outlive_reboots_in_place() {
    let disks = Disks::new();
    let (first, second) = (disks.file_system("nvme.img"), disks.file_system("virtio.img"));
    let flags = [disk(&first, ""), disk(&second, ",device=virtio-blk")];
    let machine = Builder::debian_with_virtio().args(&["--cpus", "2", "--disk", &flags[0], "--disk", &flags[1]]);
    let machine = machine.cmdline("skep.action=reboot").script(
        "mkdir /mnt
        for disk in nvme0n1 vda; do
            mount /dev/$disk /mnt; cat /mnt/greeting
            boots=$(cat /mnt/boots 2>/dev/null || echo 0); boots=$((boots+1))
            echo $boots >/mnt/boots; sync
            echo $disk: boot $boots
            # What was not unmounted is replayed from its journal.
            [ $boots = 2 ] || umount /mnt
        done
        if [ $boots = 3 ]; then poweroff -f; fi",
    );
    let end = machine.finish();
    end.expect_code(0);
    for boot in ["nvme0n1: boot 1", "vda: boot 1", "nvme0n1: boot 3", "vda: boot 3"] {
        end.expect_console(boot);
    }
    assert_eq!(end.console.matches(GREETING).count(), 6);
}

#[test]
fn kernels_find_no_fault_with_the_devices() {
    let disks = Disks::new();
    let (first, second) = (disks.empty("first.img", 1 << 20), disks.empty("second.img", 1 << 20));
    let end = Builder::debian_with_virtio().args(&["--cpus", "2", "--device", "balloon", "--device", "rng"]);
    let end = end.args(&["--disk", &disk(&first, ""), "--disk", &disk(&second, ",device=virtio-blk")]);
    let end = end.cmdline("loglevel=5 skep.dmesg").script(
        "ls /sys/bus/virtio/devices /sys/bus/virtio/drivers/virtio_balloon
        cat /sys/class/misc/hw_random/rng_current
        head -c 64 /dev/hwrng | wc -c",
    );
    let end = end.finish();
    end.expect_code(0).expect_console("skep: script 0").expect_console("virtio_rng.0").expect_console("\n64\r\n");
    end.expect_console("nvme nvme0: ").expect_console("virtio_blk virtio0: ");
    let about = |line: &str| ["nvme", "virtio", "pci", "vd", "irq"].iter().any(|word| line.contains(word));
    for line in end.console.lines().filter(|line| about(line)) {
        for word in [
            "fail",
            "error",
            "warn",
            "can't",
            "conflict",
            "invalid",
            "unable",
            "timeout",
            "bug:",
            "firmware bug",
            "nobody cared",
        ] {
            assert!(!line.to_lowercase().contains(word), "{line}");
        }
    }
}
