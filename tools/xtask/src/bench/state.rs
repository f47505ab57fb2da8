//! `cargo xtask bench state`: how long a guest stands still to be saved or to migrate, and how soon it goes on, on this machine's `/dev/kvm`.
//!
//! The guest is the one that is built into skep, halted. It uses little of its memory; a machine whose memory is full is made by filling the snapshot. QEMU
//! writes the same guest by `migrate exec:`, which is its way to a file in Debian's version; its guest is full by a file that its memory is mapped from. Both
//! migrate to a process beside them, over TCP on loopback. QEMU's times are those that it tells itself (`info migrate`), in whole milliseconds.
//!
//! Beside what has a limit to keep stands what KVM takes for it by itself, in the same rounds (`hypervisor/kvm/examples/kvm_alone.rs`).

use super::figures::{Table, median, told};
use super::rates;
use crate::arch::Arch;
use crate::paths::Scratch;
use crate::process;
use crate::test::Kvm;
use anyhow::{Context, Result, bail, ensure};
use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Measure save, restore and migration, on this machine's /dev/kvm
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds; a first one more is not counted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure this skep instead of building one
    #[arg(long, value_name = "PROGRAM")]
    skep: Option<PathBuf>,
}

/// Guests' memory in MiB.
const SIZES: [u64; 2] = [256, 4096];
/// The guest uses nothing beyond this, in MiB.
const USED: u64 = 64;
/// Memory of a guest that migrates, in MiB.
const MOVED: u64 = 1024;
/// Bytes by which the machine's own rates are told.
const COPIED: usize = 1 << 30;
/// How often a snapshot is restored in a round.
const RESTORES: usize = 5;
/// vCPUs that are paused.
const VCPUS: &str = "254";
/// A machine that is not there by then is not coming.
const LIMIT: Duration = Duration::from_secs(60);

/// A machine and its control socket. Dropping it kills it.
struct Machine {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Machine {
    /// Starts it, and waits for its guest to say `until` and for its socket.
    fn start(command: &mut Command, socket: &Path, until: Option<&str>) -> Result<Machine> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        if let (Some(until), Some(output)) = (until, child.stdout.as_mut()) {
            let (mut said, mut byte) = (Vec::new(), [0]);
            while !String::from_utf8_lossy(&said).contains(until) {
                if output.read(&mut byte)? == 0 {
                    bail!("it ended before it said `{until}`: {}", String::from_utf8_lossy(&said));
                }
                said.push(byte[0]);
            }
        }
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > LIMIT => return Err(error).context("its socket does not come"),
                Err(_) => std::thread::yield_now(),
            }
        };
        Ok(Machine { child, stream: BufReader::new(stream) })
    }

    /// Waits until all of its vCPUs sleep in KVM.
    fn wait_for_halt(&self) -> Result<()> {
        const KVM_RUN: &str = "0xae80";
        let begin = Instant::now();
        let tasks = format!("/proc/{}/task", self.child.id());
        let sleeps = |task: &Path| -> Result<bool> {
            let is_vcpu = fs::read_to_string(task.join("comm"))?.starts_with("vcpu");
            // A system call's number and its arguments, of a thread that sleeps in it.
            Ok(!is_vcpu || fs::read_to_string(task.join("syscall"))?.split(' ').nth(2) == Some(KVM_RUN))
        };
        for task in fs::read_dir(tasks)? {
            let task = task?.path();
            while !sleeps(&task)? {
                ensure!(begin.elapsed() < LIMIT, "its vCPUs do not halt");
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Asks skep, and answers what it says and how long that took.
    fn ask(&mut self, request: &str) -> Result<(serde_json::Value, Duration)> {
        let begin = Instant::now();
        writeln!(self.stream.get_mut(), "{{\"id\":1,{request}}}")?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("it ended before it answered {request}");
            }
            let mut answer: serde_json::Value = serde_json::from_str(&line)?;
            if answer["id"] == 1 {
                let result = answer["result"].take();
                if result.is_null() {
                    bail!("{request}: {line}");
                }
                return Ok((result, begin.elapsed()));
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended can't be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The guest that is built in, with `size` MiB, halted.
fn hello(skep: &Path, socket: &Path, size: u64) -> Result<Machine> {
    let mut command = Command::new(skep);
    command.args(["hello", "first", "end=halt", "--memory", &format!("{size}M"), "--control"]).arg(socket);
    Machine::start(&mut command, socket, Some("skep hello: up"))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn microseconds(value: &serde_json::Value, key: &str) -> Result<f64> {
    value[key].as_f64().map(|us| us / 1e3).with_context(|| format!("skep does not say {key}"))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// GiB/s, of what is enough for a rate.
fn rate(bytes: u64, milliseconds: Option<f64>) -> String {
    let gibibytes = bytes as f64 / f64::from(1 << 30);
    let told = milliseconds.filter(|ms| *ms > 0.0 && gibibytes > 0.1);
    told.map_or("-".to_owned(), |ms| format!("{:.2}", gibibytes / (ms / 1e3)))
}

/// What rounds have shown, in milliseconds.
#[derive(Default)]
struct Series {
    standstill: Vec<f64>,
    whole: Vec<f64>,
    first: Vec<f64>,
    /// Up to where a vCPU runs, by KVM alone.
    alone: Vec<f64>,
    data: u64,
}

/// Saves, and notes what that took.
fn save(machine: &mut Machine, folder: &Path, series: &mut Series) -> Result<()> {
    let request = format!("\"command\":\"save\",\"arguments\":{{\"folder\":\"{}\",\"quit\":false}}", folder.display());
    let (saved, whole) = machine.ask(&request)?;
    series.standstill.push(microseconds(&saved, "standstill-us")?);
    series.whole.push(milliseconds(whole));
    series.data = saved["data"].as_u64().unwrap_or_default();
    Ok(())
}

/// Fills what the guest does not use of its memory's file, which has `size` MiB, with something.
fn fill(memory: &Path, size: u64) -> Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(memory)?;
    let piece: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8 | 1).collect();
    for at in USED..size {
        file.write_all_at(&piece, at << 20)?;
    }
    file.sync_all()?;
    Ok(())
}

/// The programs that are measured.
struct Programs {
    skep: PathBuf,
    kvm_alone: PathBuf,
}

impl Programs {
    /// What KVM takes by itself, in milliseconds.
    fn kvm_alone(&self, words: &[&str]) -> Result<Vec<f64>> {
        let output = process::output(Command::new(&self.kvm_alone).args(words))?;
        Ok(told(output.as_ref(), "kvm_alone").into_iter().map(|(_, ms)| ms).collect())
    }

    /// Restores a snapshot, and notes when its guest is there.
    fn restore(&self, snapshot: &Path, socket: &Path, series: &mut Series) -> Result<Machine> {
        let mut restore = Command::new(&self.skep);
        restore.arg("restore").arg(snapshot).arg("--control").arg(socket);
        let mut machine = Machine::start(&mut restore, socket, None)?;
        let stats = loop {
            let (stats, _) = machine.ask("\"command\":\"stats\"")?;
            if stats["first-instruction-us"].is_number() {
                break stats;
            }
        };
        series.first.push(microseconds(&stats, "first-instruction-us")?);
        Ok(machine)
    }

    /// One round with a guest of `size` MiB: idle, and full.
    fn round(&self, scratch: &Path, size: u64, idle: &mut Series, full: &mut Series) -> Result<()> {
        let path = |name: &str| scratch.join(name);
        let socket = path("vm.sock");
        let mut machine = hello(&self.skep, &socket, size)?;
        save(&mut machine, &path("idle"), idle)?;
        drop(machine);
        fs::remove_file(&socket)?;
        for (name, series) in [("idle", idle), ("full", full)] {
            let snapshot = path(name);
            if name == "full" {
                fs::rename(path("idle"), &snapshot)?;
                fill(&snapshot.join("memory"), size)?;
            }
            let file = snapshot.join("memory").display().to_string();
            for number in 1..=RESTORES {
                let mut machine = self.restore(&snapshot, &socket, series)?;
                if name == "full" && number == RESTORES {
                    save(&mut machine, &path("full-again"), series)?;
                    fs::remove_dir_all(path("full-again"))?;
                }
                drop(machine);
                fs::remove_file(&socket)?;
                series.alone.extend(self.kvm_alone(&["first", &file, &size.to_string()])?);
            }
        }
        Ok(fs::remove_dir_all(path("full"))?)
    }
}

/// QEMU with the same guest and a monitor. `ram` is what its memory is, where that is named.
fn qemu_guest(
    arch: Arch,
    scratch: &Path,
    size: u64,
    ram: Option<&str>,
    (socket, until): (&str, Option<&str>),
    more: &[&str],
) -> Result<Machine> {
    let (guest, socket) = (scratch.join("hello").display().to_string(), scratch.join(socket).display().to_string());
    fs::write(&guest, if arch == Arch::X86_64 { HELLO_X86_64 } else { HELLO_AARCH64 })?;
    let machine = if arch == Arch::X86_64 { "microvm" } else { "virt,gic-version=host" };
    let machine = if ram.is_some() { format!("{machine},memory-backend=ram") } else { machine.to_owned() };
    let mut command = Command::new(process::find(&format!("qemu-system-{arch}"))?);
    command.args(super::qemu::arguments(&machine, &guest, "first end=halt"));
    command.args(["-m", &format!("{size}M"), "-monitor", &format!("unix:{socket},server=on,wait=off")]);
    if let Some(ram) = ram {
        command.args(["-object", &format!("{ram},id=ram,size={size}M")]);
    }
    Machine::start(command.args(more), Path::new(&socket), until)
}

/// Memory of QEMU's that is a private mapping of a file.
fn mapped(file: &Path) -> String {
    format!("memory-backend-file,share=off,mem-path={}", file.display())
}

/// A figure that QEMU tells of its migration, in milliseconds: it counts them whole.
fn figure(line: &str, key: &str) -> Option<f64> {
    line.split_once(key)?.1.split_whitespace().next()?.parse().ok()
}

/// Has QEMU migrate, and answers the figures that it tells afterwards. They are its own: the monitor looks once a second whether it is done.
fn qemu_figures<const N: usize>(machine: &mut Machine, commands: &str, keys: [&str; N]) -> Result<[f64; N]> {
    writeln!(machine.stream.get_mut(), "migrate_set_parameter max-bandwidth 100G\n{commands}\ninfo migrate")?;
    let mut figures = [None; N];
    while figures.contains(&None) {
        let mut line = Vec::new();
        let read = machine.stream.read_until(b'\n', &mut line)?;
        let line = String::from_utf8_lossy(&line);
        if read == 0 || line.contains("status: failed") {
            bail!("it does not tell of its migration: {}", line.trim());
        }
        for (found, key) in figures.iter_mut().zip(keys) {
            *found = found.or(figure(&line, key));
        }
    }
    Ok(figures.map(|found| found.unwrap_or_default()))
}

/// What QEMU takes to write the same guest into a file: one that is idle, or whose memory is full.
fn qemu(arch: Arch, scratch: &Path, size: u64, full: bool) -> Result<f64> {
    let (ram, file) = (scratch.join("qemu.ram"), scratch.join("qemu.state"));
    if full {
        fill(&ram, size)?;
    }
    let ready = ("qemu.sock", Some("skep hello: up"));
    let mut machine = qemu_guest(arch, scratch, size, full.then(|| mapped(&ram)).as_deref(), ready, &[])?;
    let commands = format!("stop\nmigrate \"exec:cat > {}\"", file.display());
    let [time] = qemu_figures(&mut machine, &commands, ["total time: "])?;
    drop(machine);
    // It may have left its socket, and an idle guest has no such file.
    for name in ["qemu.sock", "qemu.ram"] {
        let _ = fs::remove_file(scratch.join(name));
    }
    let written = fs::metadata(&file)?.len();
    fs::remove_file(&file)?;
    if full && written < (size - USED) << 20 {
        bail!("QEMU's guest was to be full, and it wrote {written} bytes");
    }
    Ok(time)
}

/// What a migration took, in milliseconds.
#[derive(Default)]
struct Migrations {
    standstill: Vec<f64>,
    whole: Vec<f64>,
    sent: u64,
}

/// A skep that waits for a machine on loopback, and where.
fn receiver(skep: &Path) -> Result<(Child, String)> {
    let mut command = Command::new(skep);
    command.args(["receive", "tcp:127.0.0.1:0", "--serial", "none"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let output = child.stderr.take().context("its standard error is a pipe")?;
    BufReader::new(output).read_line(&mut line)?;
    let place = line.trim().rsplit(' ').next().context("it does not say where it waits")?;
    Ok((child, place.to_owned()))
}

/// One migration of a guest of [`MOVED`] MiB that is idle, or whose memory is full.
fn migrate(skep: &Path, scratch: &Path, full: bool, series: &mut Migrations) -> Result<()> {
    let path = |name: &str| scratch.join(name);
    let socket = path("vm.sock");
    let mut machine = if full {
        let mut command = Command::new(skep);
        command.arg("restore").arg(path("full")).arg("--control").arg(&socket);
        Machine::start(&mut command, &socket, None)?
    } else {
        hello(skep, &socket, MOVED)?
    };
    let (mut child, place) = receiver(skep)?;
    let (moved, _) = machine.ask(&format!("\"command\":\"migrate\",\"arguments\":{{\"to\":\"{place}\"}}"))?;
    child.kill()?;
    child.wait()?;
    series.standstill.push(microseconds(&moved, "standstill-us")?);
    series.whole.push(microseconds(&moved, "elapsed-us")?);
    series.sent = moved["sent"].as_u64().unwrap_or_default();
    drop(machine);
    // It may have gone with its machine.
    let _ = fs::remove_file(&socket);
    Ok(())
}

/// A snapshot whose guest has something in all of its memory.
fn filled(skep: &Path, scratch: &Path) -> Result<()> {
    let socket = scratch.join("vm.sock");
    let mut machine = hello(skep, &socket, MOVED)?;
    save(&mut machine, &scratch.join("full"), &mut Series::default())?;
    drop(machine);
    fs::remove_file(&socket)?;
    fill(&scratch.join("full").join("memory"), MOVED)
}

/// The same of QEMU, by its own figures.
fn qemu_migrates(arch: Arch, scratch: &Path, full: bool, series: &mut Migrations) -> Result<()> {
    let ram = mapped(&scratch.join("full").join("memory"));
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let channel = format!("tcp:127.0.0.1:{port}");
    let incoming = ["-incoming", &channel];
    let _there =
        qemu_guest(arch, scratch, MOVED, full.then_some("memory-backend-ram"), ("qemu-there", None), &incoming)?;
    let ready = ("qemu-here", Some("skep hello: up"));
    let mut machine = qemu_guest(arch, scratch, MOVED, full.then_some(&*ram), ready, &[])?;
    let keys = ["downtime: ", "total time: ", "transferred ram: "];
    let [standstill, whole, sent] = qemu_figures(&mut machine, &format!("migrate {channel}"), keys)?;
    series.standstill.push(standstill);
    series.whole.push(whole);
    series.sent = (sent * 1024.0) as u64;
    drop(machine);
    for name in ["qemu-here", "qemu-there"] {
        // It may have left them.
        let _ = fs::remove_file(scratch.join(name));
    }
    Ok(())
}

fn migrations(arch: Arch, skep: &Path, scratch: &Path, rounds: u32) -> Result<Table> {
    let mut table = Table::new(["guest that migrates", "sent, MiB", "standstill, ms", "in all, ms", "GiB/s"]);
    filled(skep, scratch)?;
    let mut all = ["skep, idle", "QEMU, idle", "skep, full", "QEMU, full"].map(|name| (name, Migrations::default()));
    for number in 0..=rounds {
        if number == 1 {
            // The first one is not counted.
            all.iter_mut().for_each(|(_, series)| *series = Migrations::default());
        }
        for (at, full) in [(0, false), (2, true)] {
            // Where this machine is itself a guest, its host takes some 10 us for each page that it has to back first, and takes back what lies idle: of
            // two in a row the second has what the first one's processes had, and is counted.
            migrate(skep, scratch, full, &mut Migrations::default())?;
            migrate(skep, scratch, full, &mut all[at].1)?;
            for series in [&mut Migrations::default(), &mut all[at + 1].1] {
                let theirs = qemu_migrates(arch, scratch, full, series);
                theirs.unwrap_or_else(|error| eprintln!("bench: QEMU: {error:#}"));
            }
        }
    }
    for (name, series) in all {
        let middle = |values: &[f64]| median(values.iter().copied());
        let text = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        let (standstill, whole) = (middle(&series.standstill), middle(&series.whole));
        let rate = rate(series.sent, whole);
        let sent = if series.sent > 0 { mebibytes(series.sent) } else { "-".to_owned() };
        table.row([format!("{MOVED} MiB, {name}"), sent, text(standstill), text(whole), rate]);
    }
    Ok(table)
}

/// What it takes to pause many vCPUs that are halted: skep, and KVM by itself.
fn pause(programs: &Programs, scratch: &Path, rounds: u32) -> Result<[Vec<f64>; 2]> {
    let socket = scratch.join("vm.sock");
    let mut hello = Command::new(&programs.skep);
    hello.args(["hello", "cpus", "end=halt", "--cpus", VCPUS, "--control"]).arg(&socket);
    let mut machine = Machine::start(&mut hello, &socket, Some("end: halt"))?;
    let [mut times, mut alone] = [Vec::new(), Vec::new()];
    for _ in 0..=rounds {
        machine.wait_for_halt()?;
        times.push(milliseconds(machine.ask("\"command\":\"pause\"")?.1));
        // While skep's stand still. Of two the second counts, as of skep's.
        alone.extend(programs.kvm_alone(&["pause", VCPUS, "2"])?.pop());
        machine.ask("\"command\":\"resume\"")?;
    }
    drop(machine);
    fs::remove_file(&socket)?;
    Ok([times.split_off(1), alone.split_off(1)])
}

pub(super) fn main(args: &Args) -> Result<()> {
    let arch = Arch::of_this_machine().context("skep does not run on this machine's architecture")?;
    if Kvm::here() == Kvm::None {
        bail!("there is no /dev/kvm that this user may use");
    }
    let scratch = Scratch::new()?;
    let given: Vec<_> = args.skep.clone().into_iter().collect();
    let (_, skep) = super::skeps(arch, &given)?.remove(0);
    let kvm_alone = super::built("skep-kvm", ["--example", "kvm_alone"], arch)?;
    let programs = Programs { skep, kvm_alone };
    let mut table = Table::new([
        "guest",
        "data, MiB",
        "standstill, ms",
        "save, ms",
        "save, GiB/s",
        "to the first instruction, ms",
        "by KVM alone, ms",
        "QEMU's save, ms",
    ]);
    let middle = |values: &[f64]| median(values.iter().copied()).map_or("-".to_owned(), |ms| format!("{ms:.1}"));
    for size in SIZES {
        let (mut idle, mut full, mut theirs) = (Series::default(), Series::default(), [Vec::new(), Vec::new()]);
        for number in 0..=args.rounds {
            if number == 1 {
                // The first one is not counted.
                (idle, full, theirs) = Default::default();
            }
            programs.round(scratch.path(), size, &mut idle, &mut full)?;
            for (times, full) in theirs.iter_mut().zip([false, true]) {
                let time = qemu(arch, scratch.path(), size, full);
                times.extend(time.inspect_err(|error| eprintln!("bench: QEMU: {error:#}")).ok());
            }
        }
        for ((name, series), theirs) in [("idle", idle), ("full", full)].into_iter().zip(theirs) {
            table.row([
                format!("{size} MiB, {name}"),
                mebibytes(series.data),
                middle(&series.standstill),
                middle(&series.whole),
                rate(series.data, median(series.whole.iter().copied())),
                middle(&series.first),
                middle(&series.alone),
                middle(&theirs),
            ]);
        }
    }
    println!("{table}");
    let rates: Vec<_> = (0..=args.rounds).map(|_| (rates::memory(COPIED), rates::loopback(COPIED))).skip(1).collect();
    let copy = median(rates.iter().map(|(memory, _)| *memory)).unwrap_or_default();
    let loopback = median(rates.iter().filter_map(|(_, tcp)| tcp.as_ref().ok().copied())).unwrap_or_default();
    println!(
        "this machine: memory is copied at {copy:.2} GiB/s, TCP on loopback takes {loopback:.2} GiB/s, one thread each\n"
    );
    println!("{}", migrations(arch, &programs.skep, scratch.path(), args.rounds)?);
    println!("of two migrations in a row the second is counted, whose memory a host below has backed\n");
    let [paused, alone] = pause(&programs, scratch.path(), args.rounds)?;
    println!("pause of {VCPUS} halted vCPUs: {} ms; by KVM alone: {} ms", middle(&paused), middle(&alone));
    Ok(())
}
