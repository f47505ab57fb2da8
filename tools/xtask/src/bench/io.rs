//! `cargo xtask bench io`: how fast a disk is, driven by a guest of our own, on this machine's `/dev/kvm`.
//!
//! The guest polls its queues and takes no interrupts, so that it runs at full speed on a `/dev/kvm` without hardware virtualization too; both
//! monitors are given the same guest and the same file, which the page cache holds. CPUs are given to none of them: all inherit what this
//! program may run on (`taskset`).

use super::MEMORY;
use super::figures::{Table, median};
use crate::arch::Arch;
use crate::paths::Scratch;
use crate::process;
use crate::test::Kvm;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use skep_guests::{IO_AARCH64, IO_X86_64};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

/// Measure disks, on this machine's /dev/kvm
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Milliseconds of each measurement
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    ms: u32,
    /// Three rounds of short measurements
    #[arg(long, conflicts_with_all = ["rounds", "ms"])]
    quick: bool,
    /// Only this device
    #[arg(long)]
    device: Option<Device>,
    /// Measure this skep instead of building one; again to compare several
    #[arg(long, value_name = "PROGRAM")]
    skep: Vec<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Device {
    Nvme,
    VirtioBlk,
}

impl Device {
    fn word(self) -> &'static str {
        match self {
            Device::Nvme => "nvme",
            Device::VirtioBlk => "virtio-blk",
        }
    }
}

/// What is measured: its name, and the guest's words.
const CASES: [(&str, &str); 5] = [
    ("4 KiB random reads, depth 1", "op=randread bs=4096 depth=1"),
    ("4 KiB random reads, depth 32", "op=randread bs=4096 depth=32"),
    ("4 KiB random writes, depth 1", "op=randwrite bs=4096 depth=1"),
    ("4 KiB random writes, depth 32", "op=randwrite bs=4096 depth=32"),
    ("128 KiB reads, depth 8", "op=read bs=131072 depth=8"),
];
/// The disk's size in bytes, a multiple of a MiB.
const SIZE: u64 = 1 << 30;
/// How long an idle guest is watched.
const IDLE: Duration = Duration::from_secs(1);

struct Contender {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    rounds: Vec<Round>,
}

/// What one life of a monitor took.
struct Round {
    /// Of each case.
    cases: Vec<Case>,
    /// CPU seconds of them all.
    cpu: f64,
    /// The same in the time that the guest was idle.
    idle: f64,
}

struct Case {
    ops: f64,
    bytes: f64,
    seconds: f64,
    bells: f64,
}

impl Case {
    /// The guest's line.
    fn parse(line: &str) -> Option<Case> {
        let words = line.strip_prefix("io: ")?;
        let number = |key: &str| {
            let value = words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
            value.parse::<f64>().ok()
        };
        let (ops, seconds) = (number("ops")?, number("ns")? / 1e9);
        (number("errors")? == 0.0 && seconds > 0.0).then_some(())?;
        Some(Case { ops, bytes: ops * number("bs")?, seconds, bells: number("bells")? })
    }
}

pub(super) fn main(args: &Args) -> Result<()> {
    let arch = Arch::of_this_machine().context("skep does not run on this machine's architecture")?;
    if Kvm::here() == Kvm::None {
        bail!("there is no /dev/kvm that this user may use");
    }
    let (rounds, ms) = if args.quick { (3, 200) } else { (args.rounds, args.ms) };
    let skeps = super::skeps(arch, &args.skep)?;
    let scratch = Scratch::new()?;
    let (guest, disk) = (scratch.path().join("io"), scratch.path().join("disk"));
    fs::write(&guest, if arch == Arch::X86_64 { IO_X86_64 } else { IO_AARCH64 })?;
    fill(&disk).with_context(|| format!("cannot make a disk of 1 GiB, {}", disk.display()))?;
    for device in args.device.map_or(vec![Device::Nvme, Device::VirtioBlk], |device| vec![device]) {
        let mut contenders = contenders(arch, &skeps, &guest, &disk, device, ms)?;
        for round in 1..=rounds {
            for contender in &mut contenders {
                eprintln!("bench: {}, round {round} of {rounds}: {}", device.word(), contender.name);
                let done =
                    contender.run(Duration::from_millis(u64::from(ms))).with_context(|| contender.name.clone())?;
                contender.rounds.push(done);
            }
        }
        println!("{}\n{}", speeds(device, &contenders)?, costs(&contenders)?);
    }
    Ok(())
}

/// Makes a file without holes, which the page cache then holds.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0_u8; 1 << 20];
    for number in 0..SIZE >> 20 {
        // Not one page is like another.
        for (page, bytes) in block.chunks_mut(4096).enumerate() {
            bytes[..8].copy_from_slice(&(number << 8 | page as u64).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    // What is written back meanwhile would take its time from whoever is measured.
    file.sync_all()?;
    Ok(())
}

fn contenders(
    arch: Arch,
    skeps: &[(String, PathBuf)],
    guest: &Path,
    disk: &Path,
    device: Device,
    ms: u32,
) -> Result<Vec<Contender>> {
    let guest = guest.to_string_lossy();
    let words = |more: &str| {
        let warm = format!("device={} {more} op=randread bs=4096 depth=32 ms={} run", device.word(), ms / 4 + 1);
        let runs: String = CASES.iter().map(|(_, words)| format!(" {words} ms={ms} run")).collect();
        format!("{warm}{runs} end=halt")
    };
    let mut contenders = Vec::new();
    for (name, program) in skeps {
        let drive = format!("{},format=raw,device={}", disk.display(), device.word());
        let cmdline = words("");
        let arguments = ["run", "--kernel", &guest, "--memory", MEMORY, "--cpus", "1", "--disk", &drive];
        let arguments = arguments.into_iter().chain(["--cmdline", &cmdline]).map(str::to_owned).collect();
        contenders.push(Contender { name: name.clone(), program: program.clone(), arguments, rounds: Vec::new() });
    }
    let program = process::find(&format!("qemu-system-{arch}"))?;
    // qboot starts a PVH kernel with next to nothing in real mode, which KVM without hardware virtualization emulates.
    let (machine, firmware): (_, &[&str]) = match arch {
        Arch::X86_64 => ("q35", &["-bios", "qboot.rom"]),
        Arch::Aarch64 => ("virt,gic-version=host", &[]),
    };
    let kinds: &[(&str, &str, &[&str])] = match device {
        Device::Nvme => &[
            ("QEMU", "shadow=0", &["-device", "nvme,drive=disk,serial=disk,ioeventfd=off"]),
            ("QEMU, shadow doorbells, ioeventfd", "", &["-device", "nvme,drive=disk,serial=disk,ioeventfd=on"]),
        ],
        Device::VirtioBlk => &[
            ("QEMU, iothread", "", &["-object", "iothread,id=t", "-device", BLK]),
            ("QEMU, iothread that never polls", "", &["-object", "iothread,id=t,poll-max-ns=0", "-device", BLK]),
        ],
    };
    let drive = format!("file={},format=raw,if=none,id=disk,cache=writeback,aio=threads", disk.display());
    for (name, more, devices) in kinds {
        let mut arguments = super::qemu::arguments(machine, &guest, &words(more));
        let words = firmware.iter().copied().chain(["-drive", &drive]).chain(devices.iter().copied());
        arguments.extend(words.map(str::to_owned));
        contenders.push(Contender {
            name: (*name).to_owned(),
            program: program.clone(),
            arguments,
            rounds: Vec::new(),
        });
    }
    Ok(contenders)
}

const BLK: &str = "virtio-blk-pci,drive=disk,iothread=t,disable-legacy=on";

impl Contender {
    /// One life, of measurements that take `each`.
    fn run(&self, each: Duration) -> Result<Round> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("it can't be started")?;
        let done = watched(&mut child, each * 10 + Duration::from_secs(60));
        let done = done.and_then(|(lines, cpu)| self.read(&child, &lines, cpu));
        // It has ended already if it has failed.
        let _ = child.kill();
        let _ = child.wait();
        done
    }

    /// What it has come to, `warm` CPU seconds after its start.
    fn read(&self, child: &Child, lines: &[String], warm: f64) -> Result<Round> {
        let said = || format!("{}:\n{}", self.arguments.join(" "), lines.join("\n"));
        let cases: Vec<Case> = lines.iter().filter_map(|line| Case::parse(line)).skip(1).collect();
        if cases.len() != CASES.len() || !lines.iter().any(|line| line == "problems: 0") {
            bail!("its guest did not do what it was told\n{}", said());
        }
        let cpu = cpu_seconds(child.id())?;
        thread::sleep(IDLE);
        Ok(Round { cases, cpu: cpu - warm, idle: cpu_seconds(child.id())? - cpu })
    }
}

/// The lines that `child` says until its guest halts, and the CPU seconds that it had taken at the end of the guest's first run, which is not
/// counted. It is killed after `limit`.
fn watched(child: &mut Child, limit: Duration) -> Result<(Vec<String>, f64)> {
    let stdout = child.stdout.take().context("it has no output")?;
    let pid = Pid::from_child(child);
    let (alive, ended) = channel::<()>();
    let watchdog = thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // It is not waited for before this thread has ended.
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let (mut lines, mut warm) = (Vec::new(), None);
    for line in BufReader::new(stdout).lines() {
        let line = line?.trim_end().to_owned();
        if line.starts_with("io: ") && warm.is_none() {
            warm = Some(cpu_seconds(child.id())?);
        }
        let over = line == "end: halt";
        lines.push(line);
        if over {
            break;
        }
    }
    drop(alive);
    let _ = watchdog.join();
    Ok((lines, warm.unwrap_or_default()))
}

/// What the threads of a process have had of the CPUs.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// How fast each is, and how much faster the first one.
fn speeds(device: Device, contenders: &[Contender]) -> Result<String> {
    let heading: Vec<String> = [device.word().to_owned()]
        .into_iter()
        .chain(contenders.iter().enumerate().flat_map(|(number, contender)| {
            let ratio = (number > 0).then(|| "ratio".to_owned());
            [contender.name.clone()].into_iter().chain(ratio)
        }))
        .collect();
    let mut table = Table::of(heading);
    for (index, (name, _)) in CASES.iter().enumerate() {
        let large = name.starts_with("128");
        let mut row = vec![(*name).to_owned()];
        let mut first = None;
        for contender in contenders {
            let cases = || contender.rounds.iter().filter_map(|round| round.cases.get(index));
            let middle = if large {
                median(cases().map(|case| case.bytes / case.seconds / 1e9))
            } else {
                median(cases().map(|case| case.ops / case.seconds / 1e3))
            };
            let middle = middle.context("there are no rounds")?;
            row.push(if large { format!("{middle:.2} GB/s") } else { format!("{middle:.1}k/s") });
            match first {
                None => first = Some(middle),
                Some(first) => row.push(format!("{:.2}", first / middle)),
            }
        }
        table.add(row);
    }
    Ok(table.to_string())
}

/// What each takes of the CPUs, and how many doorbells of the guest.
fn costs(contenders: &[Contender]) -> Result<Table> {
    let mut table = Table::new(["monitor", "CPU us a command", "CPU ms in an idle second", "commands a doorbell"]);
    for Contender { name, rounds, .. } in contenders {
        let sum = |round: &Round, of: fn(&Case) -> f64| round.cases.iter().map(of).sum::<f64>();
        let middle = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of)).context("there are no rounds");
        table.row([
            name.clone(),
            format!("{:.2}", middle(&|round| round.cpu * 1e6 / sum(round, |case| case.ops))?),
            format!("{:.2}", middle(&|round| round.idle * 1e3)?),
            format!("{:.1}", middle(&|round| sum(round, |case| case.ops) / sum(round, |case| case.bells).max(1.0))?),
        ]);
    }
    Ok(table)
}
