//! Disks under load, by the guest that polls its queues: what is read is what was written, and exits, system calls and wake-ups are few. On any
//! /dev/kvm of either architecture.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use skep_guests::{IO_AARCH64, IO_X86_64};
use support::calls::{Calls, until_the_end};
use support::{Builder, Finished, is_x86_64, skep};

/// A disk that the host's page cache holds.
const SIZE: u64 = 16 << 20;

/// What the guest does on all of a new disk, so that what is read later is in the page cache.
const FILL: &str = "verify=1 seed=7 op=write bs=131072 depth=8 count=128 run";

struct Bench {
    folder: tempfile::TempDir,
    device: &'static str,
}

impl Bench {
    fn new(device: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("io"), if is_x86_64() { IO_X86_64 } else { IO_AARCH64 }).unwrap();
        fs::File::create(folder.path().join("disk")).unwrap().set_len(SIZE).unwrap();
        Self { folder, device }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn words(&self, more: &str, cmdline: &str) -> Vec<String> {
        let disk = format!("{},format=raw,device={}{more}", self.path("disk").display(), self.device);
        let kernel = self.path("io").display().to_string();
        let cmdline = format!("device={} {cmdline}", self.device);
        let words = ["run", "--kernel", &kernel, "--memory", "64M", "--disk", &disk, "--cmdline", &cmdline, "--stats"];
        words.map(str::to_owned).into()
    }

    fn builder(&self, cmdline: &str) -> Builder {
        let words = self.words("", cmdline);
        Builder::command(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Runs these words, and says what each run of the guest's took.
    fn run(&self, cmdline: &str) -> (Finished, Vec<Figures>) {
        let end = self.builder(cmdline).finish();
        end.expect_code(0).expect_console("problems: 0\r\n");
        let figures: Vec<_> = end.console.lines().filter_map(Figures::of).collect();
        (end, figures)
    }

    /// The system calls of a whole life of skep's.
    fn calls(&self, cmdline: &str) -> Calls {
        let mut command = Command::new(skep());
        command.args(self.words("", cmdline));
        until_the_end(command)
    }
}

/// A line of the guest's.
struct Figures(BTreeMap<String, String>);

impl Figures {
    fn of(line: &str) -> Option<Self> {
        let words = line.strip_prefix("io: ")?.split_whitespace().filter_map(|word| word.split_once('='));
        Some(Self(words.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()))
    }

    fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> u64 {
        self.text(key).parse().unwrap_or_else(|_| panic!("`{key}` is no number in {:?}", self.0))
    }
}

const DEVICES: [&str; 2] = ["nvme", "virtio-blk"];

#[test]
fn what_was_written_is_read_again_by_any_depth_and_size() {
    for (device, ways) in [("nvme", ["shadow=1", "shadow=0"]), ("virtio-blk", ["indirect=0", "indirect=1"])] {
        for way in ways {
            let bench = Bench::new(device);
            let mut words = format!("{way} {FILL} op=read run");
            // The same pattern again in other pieces, and another one in places.
            for (op, size, depth) in [("write", 512, 1), ("randwrite", 4096, 32), ("write", 8192, 64)] {
                words += &format!(" op={op} bs={size} depth={depth} count=500 run");
            }
            words += " op=read bs=1048576 depth=4 count=16 run op=randread bs=12288 depth=5 count=300 run";
            let (end, figures) = bench.run(&words);
            assert_eq!(figures.len(), 7, "{}", end.console);
            assert_eq!(figures[0].text("checksum"), figures[1].text("checksum"), "what was written is what was read");
            let quiet = if way == "shadow=0" { 0 } else { 1 };
            assert!(figures.iter().all(|one| one.number("quiet") == quiet), "{}", end.console);
            // In a life after that, and on the host.
            let (_, again) = bench.run(&format!("{way} verify=1 seed=7 op=read bs=131072 depth=32 count=128 run"));
            assert_eq!(again[0].text("checksum"), figures[0].text("checksum"));
            let disk = fs::read(bench.path("disk")).unwrap();
            let first = |at: usize| u64::from_le_bytes(disk[at..at + 8].try_into().unwrap());
            let sum = (0..disk.len()).step_by(131_072).fold(0_u64, |sum, at| sum.wrapping_add(first(at)));
            assert_eq!(format!("{sum:#018x}"), figures[0].text("checksum"));
        }
    }
}

#[test]
fn what_does_not_belong_there_is_found() {
    let bench = Bench::new("nvme");
    bench.run(FILL);
    let disk = bench.path("disk");
    let mut content = fs::read(&disk).unwrap();
    content[5 << 20] ^= 1;
    fs::write(&disk, content).unwrap();
    let end = bench.builder("verify=1 seed=7 op=read bs=4096 depth=8 count=4096 run").finish();
    end.expect_console(" errors=0 wrong=1 ").expect_console("problems: 1\r\n");
}

#[test]
fn a_busy_queue_takes_less_than_one_exit_for_four_commands() {
    const OPS: u64 = 20_000;
    for device in DEVICES {
        let bench = Bench::new(device);
        let words = format!("{FILL} verify=0 bs=4096 depth=32 count={OPS} op=randread run op=randwrite run");
        let (end, figures) = bench.run(&words);
        let exits = end.log.lines().find_map(|line| line.strip_prefix("skep: exits: ")?.parse::<u64>().ok()).unwrap();
        for run in &figures[1..] {
            println!("{device} {}: {} doorbells for {OPS} commands", run.text("op"), run.number("bells"));
            assert_eq!((run.number("ops"), run.number("quiet")), (OPS, 1));
            assert!(run.number("bells") * 4 < OPS, "{:?}", run.0);
        }
        // Those that reach skep; each doorbell ends in the kernel.
        println!("{device}: {exits} exits to skep for all");
        assert!(exits * 4 < OPS, "{}", end.log);
    }
}

#[test]
fn system_calls_for_each_command_are_bounded() {
    const OPS: u32 = 4000;
    for device in DEVICES {
        let bench = Bench::new(device);
        bench.run(FILL);
        let calls = |words: &str| {
            let calls = bench.calls(&format!("{words} run"));
            println!("{device} {words}: {calls:?}");
            calls.values().sum::<u32>()
        };
        let none = calls("count=0");
        // A call that reads, and what finding nothing more to do costs.
        let one = calls(&format!("depth=1 count={OPS}")) - none;
        assert!(one < OPS * 6, "{device}: {one} system calls for {OPS} commands, one at a time");
        let many = calls(&format!("depth=32 count={OPS}")) - none;
        assert!(many < OPS / 2, "{device}: {many} system calls for {OPS} commands, 32 at a time");
    }
}

/// How often each thread of a process was given a CPU, by its number and name, but for vCPUs, the thread of the console, and the kernel's own workers for
/// io_uring, which end by themselves when they have had no work for 5 seconds.
fn runs(pid: i32) -> BTreeMap<(String, String), u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let read = |task: &Path, file: &str| Some(fs::read_to_string(task.join(file)).ok()?.trim_end().to_owned());
    let mut runs = BTreeMap::new();
    for task in tasks.map(|task| task.unwrap().path()) {
        let number = task.file_name().unwrap().to_string_lossy().into_owned();
        // One may be gone by now.
        let (Some(name), Some(count)) = (read(&task, "comm"), read(&task, "schedstat")) else { continue };
        if number == pid.to_string() || name.starts_with("vcpu") || name.starts_with("iou-wrk") {
            continue;
        }
        let count = count.split(' ').nth(2).and_then(|count| count.parse().ok());
        runs.insert((number, name), count.expect("Linux counts them, where it has schedstat"));
    }
    runs
}

#[test]
fn a_guest_that_leaves_its_disks_alone_wakes_no_thread_of_theirs() {
    for device in DEVICES {
        let bench = Bench::new(device);
        let words = format!("{FILL} verify=0 op=randread bs=4096 depth=32 count=20000 run idle=200 idle=500 end=halt");
        let mut machine = bench.builder(&words).start();
        machine.wait_for("idle: over");
        let before = runs(machine.pid());
        machine.wait_for("idle: over");
        let after = runs(machine.pid());
        let worker = if device == "nvme" { "nvme-1" } else { "disk0:0" };
        assert!(before.keys().any(|(_, name)| name == worker), "{before:?}");
        assert_eq!(before, after, "none has run for half a second");
    }
}

/// io_uring lets go of its files some time after the process that was killed has gone, and a lock of theirs would stay as long.
#[test]
fn a_disk_is_free_at_once_when_its_machine_was_killed() {
    let bench = Bench::new("nvme");
    let words = format!("{FILL} verify=0 op=randread bs=4096 depth=32 ms=600000 run");
    for _ in 0..8 {
        let mut machine = bench.builder(&words).start();
        machine.wait_for("op=write");
        let pid = rustix::process::Pid::from_raw(machine.pid()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        machine.finish();
    }
}
