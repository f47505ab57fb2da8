//! `cargo xtask bench state`: how long a guest stands still to be saved or to migrate, and how soon it goes on, on this machine's `/dev/kvm`.
//!
//! The guest is the one that is built into skep, halted. It uses little of its memory; a machine whose memory is full is made by filling the snapshot. QEMU
//! writes the same guest by `migrate exec:`, which is its way to a file in Debian's version. Both migrate to a process beside them, over TCP on loopback.

use super::figures::{Table, median};
use crate::arch::Arch;
use crate::paths::Scratch;
use crate::process;
use crate::test::Kvm;
use anyhow::{Context, Result, bail};
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

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn microseconds(value: &serde_json::Value, key: &str) -> Result<f64> {
    value[key].as_f64().map(|us| us / 1e3).with_context(|| format!("skep does not say {key}"))
}

/// What rounds have shown, in milliseconds.
#[derive(Default)]
struct Series {
    standstill: Vec<f64>,
    whole: Vec<f64>,
    first: Vec<f64>,
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

/// Fills what the guest does not use with something.
fn fill(folder: &Path, size: u64) -> Result<()> {
    let file = File::options().write(true).open(folder.join("memory"))?;
    let piece: Vec<u8> = (0..1_u32 << 20).map(|at| (at.wrapping_mul(0x9e37_79b1) >> 24) as u8 | 1).collect();
    for at in USED..size {
        file.write_all_at(&piece, at << 20)?;
    }
    file.sync_all()?;
    Ok(())
}

/// One round with a guest of `size` MiB: idle, and full.
fn round(skep: &Path, scratch: &Path, size: u64, idle: &mut Series, full: &mut Series) -> Result<()> {
    let path = |name: &str| scratch.join(name);
    let (socket, memory) = (path("vm.sock"), format!("{size}M"));
    let mut hello = Command::new(skep);
    hello.args(["hello", "first", "end=halt", "--memory", &memory, "--control"]).arg(&socket);
    let mut machine = Machine::start(&mut hello, &socket, Some("skep hello: up"))?;
    save(&mut machine, &path("idle"), idle)?;
    drop(machine);
    for (from, to, series) in [("idle", "again", idle), ("full", "full-again", full)] {
        if from == "full" {
            fs::rename(path("idle"), path("full"))?;
            fill(&path("full"), size)?;
        }
        fs::remove_file(&socket)?;
        let mut restore = Command::new(skep);
        restore.arg("restore").arg(path(from)).arg("--control").arg(&socket);
        let mut machine = Machine::start(&mut restore, &socket, None)?;
        let stats = loop {
            let (stats, _) = machine.ask("\"command\":\"stats\"")?;
            if stats["first-instruction-us"].is_number() {
                break stats;
            }
        };
        series.first.push(microseconds(&stats, "first-instruction-us")?);
        if from == "full" {
            save(&mut machine, &path(to), series)?;
            fs::remove_dir_all(path(to))?;
        }
    }
    fs::remove_file(&socket)?;
    Ok(fs::remove_dir_all(path("full"))?)
}

/// What QEMU takes to write the same guest into a file.
fn qemu(arch: Arch, scratch: &Path, size: u64) -> Result<f64> {
    let path = |name: &str| scratch.join(name).display().to_string();
    let (guest, socket, file) = (path("hello"), path("qemu.sock"), path("qemu.state"));
    fs::write(&guest, if arch == Arch::X86_64 { HELLO_X86_64 } else { HELLO_AARCH64 })?;
    let machine = if arch == Arch::X86_64 { "microvm" } else { "virt,gic-version=host" };
    let mut command = Command::new(process::find(&format!("qemu-system-{arch}"))?);
    command.args(super::qemu::arguments(machine, &guest, "first end=halt"));
    command.args(["-m", &format!("{size}M"), "-monitor", &format!("unix:{socket},server=on,wait=off")]);
    let mut machine = Machine::start(&mut command, Path::new(&socket), Some("skep hello: up"))?;
    let mut said = Vec::new();
    machine.stream.read_until(b')', &mut said)?;
    let begin = Instant::now();
    // It answers with its prompt when that is done.
    writeln!(
        machine.stream.get_mut(),
        "stop\nmigrate_set_parameter max-bandwidth 100G\nmigrate \"exec:cat > {file}\"\ninfo migrate"
    )?;
    let mut text = String::new();
    while !text.contains("completed") {
        let mut line = Vec::new();
        if machine.stream.read_until(b'\n', &mut line)? == 0 {
            bail!("QEMU ended: {text}");
        }
        text += &String::from_utf8_lossy(&line);
    }
    let time = milliseconds(begin.elapsed());
    drop(machine);
    // It may have left its socket.
    let _ = fs::remove_file(&socket);
    fs::remove_file(&file)?;
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
    let (socket, memory) = (path("vm.sock"), format!("{MOVED}M"));
    let mut command = Command::new(skep);
    let mut machine = if full {
        command.arg("restore").arg(path("full")).arg("--control").arg(&socket);
        Machine::start(&mut command, &socket, None)?
    } else {
        command.args(["hello", "first", "end=halt", "--memory", &memory, "--control"]).arg(&socket);
        Machine::start(&mut command, &socket, Some("skep hello: up"))?
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
    let (socket, memory) = (scratch.join("vm.sock"), format!("{MOVED}M"));
    let mut hello = Command::new(skep);
    hello.args(["hello", "first", "end=halt", "--memory", &memory, "--control"]).arg(&socket);
    let mut machine = Machine::start(&mut hello, &socket, Some("skep hello: up"))?;
    save(&mut machine, &scratch.join("full"), &mut Series::default())?;
    drop(machine);
    fs::remove_file(&socket)?;
    fill(&scratch.join("full"), MOVED)
}

/// The same of QEMU, by its own figures: it counts milliseconds.
fn qemu_migrates(arch: Arch, scratch: &Path, series: &mut Migrations) -> Result<()> {
    let path = |name: &str| scratch.join(name).display().to_string();
    let (guest, machine) = (path("hello"), if arch == Arch::X86_64 { "microvm" } else { "virt,gic-version=host" });
    fs::write(&guest, if arch == Arch::X86_64 { HELLO_X86_64 } else { HELLO_AARCH64 })?;
    let start = |socket: &str, more: &[&str], until| {
        let mut command = Command::new(process::find(&format!("qemu-system-{arch}"))?);
        command.args(super::qemu::arguments(machine, &guest, "first end=halt"));
        command.args(["-m", &format!("{MOVED}M"), "-monitor", &format!("unix:{socket},server=on,wait=off")]);
        Machine::start(command.args(more), Path::new(socket), until)
    };
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (here, there, channel) = (path("qemu-here"), path("qemu-there"), format!("tcp:127.0.0.1:{port}"));
    let _there = start(&there, &["-incoming", &channel], None)?;
    let mut machine = start(&here, &[], Some("skep hello: up"))?;
    writeln!(machine.stream.get_mut(), "migrate_set_parameter max-bandwidth 100G\nmigrate {channel}\ninfo migrate")?;
    let mut figures = [None, None];
    while figures.contains(&None) {
        let mut line = Vec::new();
        if machine.stream.read_until(b'\n', &mut line)? == 0 {
            bail!("QEMU ended before it told of its migration");
        }
        let line = String::from_utf8_lossy(&line);
        for (figure, key) in figures.iter_mut().zip(["downtime: ", "total time: "]) {
            let value = line.split_once(key).and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
            *figure = figure.or(value);
        }
    }
    let [Some(standstill), Some(whole)] = figures else { bail!("QEMU does not tell of its migration") };
    series.standstill.push(standstill);
    series.whole.push(whole);
    drop(machine);
    for name in ["qemu-here", "qemu-there"] {
        // It may have left them.
        let _ = fs::remove_file(path(name));
    }
    Ok(())
}

fn migrations(arch: Arch, skep: &Path, scratch: &Path, rounds: u32) -> Result<Table> {
    let mut table = Table::new(["guest that migrates", "sent, MiB", "standstill, ms", "in all, ms", "GiB/s"]);
    filled(skep, scratch)?;
    let mut all: [(&str, Migrations); 3] = [
        ("skep, idle", Migrations::default()),
        ("skep, full", Migrations::default()),
        ("QEMU, idle", Migrations::default()),
    ];
    for number in 0..=rounds {
        if number == 1 {
            // The first one is not counted.
            all.iter_mut().for_each(|(_, series)| *series = Migrations::default());
        }
        migrate(skep, scratch, false, &mut all[0].1)?;
        migrate(skep, scratch, true, &mut all[1].1)?;
        qemu_migrates(arch, scratch, &mut all[2].1).unwrap_or_else(|error| eprintln!("bench: QEMU: {error:#}"));
    }
    for (name, series) in all {
        let middle = |values: &[f64]| median(values.iter().copied());
        let text = |value: Option<f64>| value.map_or("-".to_owned(), |ms| format!("{ms:.1}"));
        let sent = series.sent as f64 / f64::from(1 << 20);
        let whole = middle(&series.whole);
        let rate = whole.filter(|_| sent > 100.0).map(|ms| sent / 1024.0 / (ms / 1e3));
        let sent = if series.sent > 0 { format!("{sent:.1}") } else { "-".to_owned() };
        table.row([format!("{MOVED} MiB, {name}"), sent, text(middle(&series.standstill)), text(whole), text(rate)]);
    }
    Ok(table)
}

/// What it takes to pause many vCPUs that are halted.
fn pause(skep: &Path, scratch: &Path, rounds: u32) -> Result<Vec<f64>> {
    let socket = scratch.join("vm.sock");
    let mut hello = Command::new(skep);
    hello.args(["hello", "cpus", "end=halt", "--cpus", VCPUS, "--control"]).arg(&socket);
    let mut machine = Machine::start(&mut hello, &socket, Some("end: halt"))?;
    let mut times = Vec::new();
    for _ in 0..=rounds {
        times.push(milliseconds(machine.ask("\"command\":\"pause\"")?.1));
        machine.ask("\"command\":\"resume\"")?;
    }
    drop(machine);
    fs::remove_file(&socket)?;
    Ok(times.split_off(1))
}

pub(super) fn main(args: &Args) -> Result<()> {
    let arch = Arch::of_this_machine().context("skep does not run on this machine's architecture")?;
    if Kvm::here() == Kvm::None {
        bail!("there is no /dev/kvm that this user may use");
    }
    let scratch = Scratch::new()?;
    let given: Vec<_> = args.skep.clone().into_iter().collect();
    let (_, skep) = super::skeps(arch, &given)?.remove(0);
    let mut table = Table::new([
        "guest",
        "data, MiB",
        "standstill, ms",
        "save, ms",
        "to the first instruction, ms",
        "QEMU's save, ms",
    ]);
    let middle = |values: &[f64]| median(values.iter().copied()).map_or("-".to_owned(), |ms| format!("{ms:.1}"));
    for size in SIZES {
        let (mut idle, mut full, mut theirs) = (Series::default(), Series::default(), Vec::new());
        for number in 0..=args.rounds {
            if number == 1 {
                // The first one is not counted.
                (idle, full, theirs) = Default::default();
            }
            round(&skep, scratch.path(), size, &mut idle, &mut full)?;
            theirs
                .extend(qemu(arch, scratch.path(), size).inspect_err(|error| eprintln!("bench: QEMU: {error:#}")).ok());
        }
        for (name, series, theirs) in [("idle", idle, theirs), ("full", full, Vec::new())] {
            table.row([
                format!("{size} MiB, {name}"),
                format!("{:.1}", series.data as f64 / f64::from(1 << 20)),
                middle(&series.standstill),
                middle(&series.whole),
                middle(&series.first),
                middle(&theirs),
            ]);
        }
    }
    println!("{table}");
    println!("{}", migrations(arch, &skep, scratch.path(), args.rounds)?);
    println!("pause of {VCPUS} halted vCPUs: {} ms", middle(&pause(&skep, scratch.path(), args.rounds)?));
    Ok(())
}
