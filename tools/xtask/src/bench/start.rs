//! `cargo xtask bench start`: how soon a guest speaks, and what its monitor has in memory then, on this machine's `/dev/kvm`.
//!
//! The guest is the one that is built into skep; QEMU gets the same file. On a `/dev/kvm` without hardware virtualization it runs as well as on any.
//! One row more is skep with disks and network cards, on tap interfaces that are made for it where this user may do so.

use super::figures::{Table, median};
use super::{MEMORY, MEMORY_BYTES};
use crate::arch::Arch;
use crate::paths::Scratch;
use crate::process;
use crate::test::Kvm;
use anyhow::{Context, Result, bail};
use skep_guests::{HELLO_AARCH64, HELLO_X86_64};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use stopwatch::Reading;

/// Measure the start and the size in memory, on this machine's /dev/kvm
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Interleaved rounds; a first one more is not counted
    #[arg(long, value_name = "N", default_value_t = 51, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure this skep instead of building one; again to compare several
    #[arg(long, value_name = "PROGRAM")]
    skep: Vec<PathBuf>,
}

/// What the guest says first.
const UP: &str = "skep hello: up";
/// What it is told: to say nothing more, and to halt.
const WORDS: [&str; 2] = ["first", "end=halt"];
/// A guest that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(20);

struct Contender {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    readings: Vec<Reading>,
}

pub(super) fn main(args: &Args) -> Result<()> {
    let arch = Arch::of_this_machine().context("skep does not run on this machine's architecture")?;
    if Kvm::here() == Kvm::None {
        bail!("there is no /dev/kvm that this user may use");
    }
    let scratch = Scratch::new()?;
    let guest = scratch.path().join("hello");
    std::fs::write(&guest, if arch == Arch::X86_64 { HELLO_X86_64 } else { HELLO_AARCH64 })?;

    let skeps = super::skeps(arch, &args.skep)?;
    let taps = Taps::make().inspect_err(|error| eprintln!("bench: no row with disks and network cards: {error:#}"));
    let equipped = taps.as_ref().map_or(Ok(Vec::new()), |taps| equipped(&skeps, &guest, scratch.path(), taps))?;
    let mut contenders = contenders(arch, skeps, &guest)?;
    contenders.extend(equipped);
    for round in 0..=args.rounds {
        for contender in &mut contenders {
            let mut command = Command::new(&contender.program);
            let reading = stopwatch::measure(command.args(&contender.arguments), UP, MEMORY_BYTES, LIMIT)
                .with_context(|| contender.name.clone())?;
            if round > 0 {
                contender.readings.push(reading);
            }
        }
    }
    println!("{}", table(&contenders)?);
    Ok(())
}

/// Tap interfaces, which go with this.
struct Taps([String; 2]);

impl Taps {
    fn make() -> Result<Taps> {
        let taps = Taps(["skep-bench0", "skep-bench1"].map(str::to_owned));
        for name in &taps.0 {
            process::output(Command::new("ip").args(["tuntap", "add", "dev", name, "mode", "tap"]))?;
        }
        Ok(taps)
    }
}

impl Drop for Taps {
    fn drop(&mut self) {
        for name in &self.0 {
            // One that was never made can't be taken away.
            let _ = process::output(Command::new("ip").args(["link", "delete", name]));
        }
    }
}

/// Each skep with four disks, two of either kind, and two network cards.
fn equipped(skeps: &[(String, PathBuf)], guest: &Path, scratch: &Path, taps: &Taps) -> Result<Vec<Contender>> {
    const DISK: u64 = 64 << 20;
    let (guest, words) = (guest.to_string_lossy(), WORDS.join(" "));
    let machine = ["run", "--kernel", &guest, "--cmdline", &words, "--memory", MEMORY, "--cpus", "1", "--log", "error"];
    let mut arguments: Vec<String> = machine.map(str::to_owned).into();
    for (number, device) in ["nvme", "nvme", "virtio-blk", "virtio-blk"].into_iter().enumerate() {
        let path = scratch.join(format!("disk{number}"));
        std::fs::File::create(&path)?.set_len(DISK)?;
        arguments.extend(["--disk".to_owned(), format!("{},format=raw,device={device}", path.display())]);
    }
    arguments.extend(taps.0.iter().flat_map(|name| ["--net".to_owned(), format!("tap={name}")]));
    let one = |(name, program): &(String, PathBuf)| Contender {
        name: format!("{name}, 4 disks and 2 network cards"),
        program: program.clone(),
        arguments: arguments.clone(),
        readings: Vec::new(),
    };
    Ok(skeps.iter().map(one).collect())
}

fn contenders(arch: Arch, skeps: Vec<(String, PathBuf)>, guest: &Path) -> Result<Vec<Contender>> {
    let ours = ["hello", "--memory", MEMORY, "--cpus", "1"].into_iter().chain(WORDS).map(str::to_owned);
    let arguments: Vec<String> = ours.collect();
    let skep = |(name, program)| Contender { name, program, arguments: arguments.clone(), readings: Vec::new() };
    let mut contenders: Vec<Contender> = skeps.into_iter().map(skep).collect();
    let qemu = process::find(&format!("qemu-system-{arch}"))?;
    let machines: &[(&str, &str, &[&str])] = match arch {
        // SeaBIOS begins in real mode, which KVM without hardware virtualization emulates for minutes; qboot hardly does.
        Arch::X86_64 => &[("QEMU microvm", "microvm", &[]), ("QEMU q35, qboot", "q35", &["-bios", "qboot.rom"])],
        Arch::Aarch64 => &[("QEMU virt", "virt,gic-version=host", &[])],
    };
    for (name, machine, more) in machines {
        let mut arguments = super::qemu::arguments(machine, &guest.to_string_lossy(), &WORDS.join(" "));
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let name = (*name).to_owned();
        contenders.push(Contender { name, program: qemu.clone(), arguments, readings: Vec::new() });
    }
    Ok(contenders)
}

fn table(contenders: &[Contender]) -> Result<Table> {
    let mut table = Table::new(["monitor", "start, ms", "least, ms", "ratio", "overhead, MiB", "ratio"]);
    let mut first = None;
    for Contender { name, readings, .. } in contenders {
        let ms = || readings.iter().map(|one| one.time.as_secs_f64() * 1e3);
        let middle = median(ms()).context("there are no readings")?;
        let least = ms().fold(f64::INFINITY, f64::min);
        let mib = |one: &Reading| one.resident.overhead as f64 / 1024.0;
        let overhead = median(readings.iter().map(mib)).context("there are no readings")?;
        let (ours, our_overhead) = *first.get_or_insert((middle, overhead));
        table.row([
            name.clone(),
            format!("{middle:.2}"),
            format!("{least:.2}"),
            format!("{:.1}", middle / ours),
            format!("{overhead:.2}"),
            format!("{:.1}", overhead / our_overhead),
        ]);
    }
    Ok(table)
}
