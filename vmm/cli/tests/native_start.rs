//! What skep does before its guest runs, and what it has in memory then: counts, with the guest that is built in, on any /dev/kvm.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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
    // Two huge pages, where the host gives such: the guest's, and that of the tables it finds.
    assert!(reading.resident.guest <= 4096, "{reading:?}");
}
