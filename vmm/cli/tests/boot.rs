//! Stock Debian kernels as guests, in both labs or on hardware.

mod support;

use support::warnings::{SHOWN, expect_no_fault};
use support::{Builder, is_x86_64};

const GREETING: &str = "skep: hello from Debian guest init: Linux";

#[test]
fn debian_boots_to_its_init_and_powers_off() {
    Builder::debian().finish().expect_code(0).expect_console(GREETING).expect_console("skep: cpus 1");
}

#[test]
fn every_kernel_format_boots() {
    let kernels: &[&str] = if is_x86_64() { &["vmlinux", "vmlinuz-generic"] } else { &["Image.gz", "Image.zboot"] };
    for kernel in kernels {
        Builder::kernel(kernel).finish().expect_code(0).expect_console(GREETING);
    }
}

#[test]
fn debian_runs_on_two_and_on_eight_vcpus() {
    for cpus in ["2", "8"] {
        let end = Builder::debian().args(&["--cpus", cpus]).finish();
        end.expect_code(0).expect_console(&format!("skep: cpus {cpus}"));
    }
}

#[test]
fn a_reboot_restarts_the_machine_in_place() {
    let mut machine = Builder::debian().cmdline("skep.action=reboot").start();
    machine.wait_for(GREETING);
    machine.wait_for(GREETING);
}

#[test]
fn a_reboot_ends_the_machine_where_the_policy_says_so() {
    let end = Builder::debian().cmdline("skep.action=reboot").args(&["--on-reset", "exit"]).finish();
    end.expect_code(10).expect_console(GREETING);
}

#[test]
fn what_is_typed_fast_is_not_lost() {
    let mut machine = Builder::debian().cmdline("skep.action=echo").start();
    machine.wait_for("skep: echo ready");
    // Far more than the port's FIFO and the guest's own buffer between two of its reads.
    let lines: Vec<String> = (0..40).map(|n| format!("{n:04}-{}", "abcdefgh".repeat(6))).collect();
    machine.send(&(lines.join("\n") + "\n"));
    for line in &lines {
        machine.wait_for(&format!("got {line}"));
    }
    machine.send("bye\n");
    machine.wait_for("skep: bye");
    machine.finish().expect_code(0);
}

#[test]
fn memory_beyond_four_gib_is_there() {
    let end = Builder::debian().memory("5G").finish();
    end.expect_code(0);
    let kib = end.memory_kib();
    assert!(kib > 4_800_000, "{kib} KiB");
}

#[test]
fn a_device_tree_can_be_replaced() {
    if is_x86_64() {
        // There, machines are described by ACPI.
        return;
    }
    let board = |console: &str| {
        let line = console.lines().find_map(|line| line.split_once("skep: board "));
        line.expect("the guest tells its board").1.trim().to_owned()
    };
    let first = Builder::debian().cmdline("skep.fdt").finish();
    let hex: String = first.console.lines().filter_map(|line| line.trim().strip_prefix("skep: fdt ")).collect();
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let text = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let mut tree: Vec<u8> = digits.chunks(2).map(text).collect();
    let (ours, other) = (board(&first.console), "skep,other-virt");
    let at = tree.windows(ours.len()).position(|window| window == ours.as_bytes()).expect("the tree names the board");
    let name = format!("{other:\0<width$}", width = ours.len());
    tree[at..at + name.len()].copy_from_slice(name.as_bytes());

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.dtb");
    std::fs::write(&path, tree).unwrap();
    let second = Builder::debian().cmdline("skep.fdt").args(&["--dtb", path.to_str().unwrap()]).finish();
    second.expect_code(0);
    assert_eq!(board(&second.console), other);
}

/// On arm64, unless it is to have none. An x86_64 guest never has one.
#[test]
fn a_guest_has_the_hosts_performance_monitor() {
    let monitors = |words: &[&str]| {
        let end = Builder::debian().args(words).script("echo monitors: $(ls /sys/bus/event_source/devices):").finish();
        let said = end.expect_code(0).console.lines().find_map(|line| line.trim().strip_prefix("monitors: "));
        let names: Vec<_> = said.unwrap().trim_end_matches(':').split(' ').map(str::to_owned).collect();
        assert!(names.contains(&"software".to_owned()), "{names:?}");
        names.iter().filter(|name| *name == "cpu" || name.starts_with("armv8_pmuv3")).count()
    };
    assert_eq!(monitors(&[]), usize::from(!is_x86_64()));
    if !is_x86_64() {
        assert_eq!(monitors(&["--cpu-features", "pmu=false"]), 0);
    }
}

#[test]
fn the_kernel_finds_no_fault_with_the_machine() {
    let end = Builder::debian().cmdline(SHOWN).args(&["--cpus", "2"]).finish();
    end.expect_code(0);
    expect_no_fault(&end);
}
