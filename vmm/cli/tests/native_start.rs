//! What skep does before its guest runs, and what it has in memory then: counts, with the guest that is built in, on any /dev/kvm.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use support::calls::{Calls, before_the_guest};
use support::skep;

/// The guest's memory.
const MEMORY: u64 = 256 << 20;

fn hello() -> Command {
    let mut command = Command::new(skep());
    command.args(["hello", "first", "end=halt", "--cpus", "1", "--memory", "256M"]);
    command
}

#[test]
fn few_system_calls_come_before_the_guest() {
    let calls = before_the_guest(hello());
    let (all, ioctls) = totals(&calls);
    assert!(ioctls >= 5, "a virtual machine takes some: {calls:?}");
    assert!(ioctls <= 40, "{ioctls} ioctls: {calls:?}");
    assert!(all <= 200, "{all} system calls: {calls:?}");
}

/// Interfaces that tests have named.
static TAPS: AtomicU32 = AtomicU32::new(0);

/// The guest with four disks, two of either kind, and two network cards: on tap interfaces, which need root, or else on passt.
fn equipped(folder: &Path) -> Command {
    let guest = folder.join("hello");
    std::fs::write(&guest, if support::is_x86_64() { HELLO_X86_64 } else { HELLO_AARCH64 }).unwrap();
    let mut command = Command::new(skep());
    command.args(["run", "--cmdline", "first end=halt", "--cpus", "1", "--memory", "256M", "--kernel"]).arg(guest);
    for (number, device) in ["nvme", "nvme", "virtio-blk", "virtio-blk"].into_iter().enumerate() {
        let disk = folder.join(format!("disk{number}"));
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        command.arg("--disk").arg(format!("{},format=raw,device={device}", disk.display()));
    }
    let root = rustix::process::geteuid().is_root();
    for _ in 0..2 {
        // Each test has its own: they may run side by side.
        let tap = format!("tap=skep-start{}", TAPS.fetch_add(1, Ordering::Relaxed));
        command.arg("--net").arg(if root { tap } else { "user".to_owned() });
    }
    command
}

#[test]
fn devices_take_few_system_calls_more() {
    let folder = tempfile::tempdir().unwrap();
    let calls = before_the_guest(equipped(folder.path()));
    let (all, ioctls) = totals(&calls);
    assert!(ioctls >= 5, "a virtual machine takes some: {calls:?}");
    assert!(ioctls <= 80, "{ioctls} ioctls: {calls:?}");
    assert!(all <= 350, "{all} system calls: {calls:?}");
    // The vCPU's, and two processes where networks are passt's: the threads of the devices begin with their drivers.
    let threads: u32 = [libc::SYS_clone, libc::SYS_clone3].iter().filter_map(|call| calls.get(call)).sum();
    assert!(threads <= 3, "{threads} threads: {calls:?}");
}

#[test]
fn devices_take_little_memory_more() {
    let folder = tempfile::tempdir().unwrap();
    let reading =
        stopwatch::measure(&mut equipped(folder.path()), "skep hello: up", MEMORY, Duration::from_secs(300)).unwrap();
    println!("KiB in memory: {:?}", reading.resident);
    assert!(reading.resident.anonymous <= 1536, "{reading:?}");
}

fn totals(calls: &Calls) -> (u32, u32) {
    let (all, ioctls) = (calls.values().sum(), calls.get(&libc::SYS_ioctl).copied().unwrap_or_default());
    println!("system calls from exec to the first run of a vCPU: {all}, of them ioctl: {ioctls}; by number: {calls:?}");
    (all, ioctls)
}

#[test]
fn little_memory_is_touched_before_the_guest_speaks() {
    let reading = stopwatch::measure(&mut hello(), "skep hello: up", MEMORY, Duration::from_secs(300)).unwrap();
    println!("KiB in memory: {:?}", reading.resident);
    assert!(reading.resident.anonymous <= 768, "{reading:?}");
    // Two huge pages, where the host gives such, and small ones of the first 2 MiB, which are never huge.
    assert!(reading.resident.guest <= 4096 + 64, "{reading:?}");
}
