//! `cargo xtask bench boot`: from the execution of the monitor to the init of Debian's cloud kernel, in labs whose clocks count instructions.
//!
//! A millisecond of such a lab is a million instructions of its host, guest included, so times repeat on a noisy machine. A first round, which
//! fills the lab's page cache, is not counted.

use super::figures::{Table, median};
use super::qemu;
use super::{InLabs, MEMORY, MEMORY_BYTES, release};
use crate::arch::Arch;
use crate::images::Images;
use crate::lab::{LAB, Lab, Program, Progress};
use anyhow::{Context, Result, bail};
use std::time::Duration;
use stopwatch::Reading;

/// Measure the boot of Debian's cloud kernel in labs whose clocks count instructions
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    labs: InLabs,
}

/// What the guest's init says first. With `quiet` it is also what the guest says first.
const GREETING: &str = "skep: hello from Debian guest init";
/// One boot takes minutes on a busy machine, and there are many.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What is measured, and what came of it.
pub(super) struct Contender {
    name: String,
    /// It ends with a reading on its standard output.
    command: Vec<String>,
    readings: Vec<Reading>,
}

impl Contender {
    /// A monitor's `command` in a lab, until its guest says `until`.
    pub(super) fn new(name: String, until: &str, memory: u64, command: Vec<String>) -> Contender {
        let watch = [&format!("{LAB}/bin/stopwatch"), until, &memory.to_string()].map(str::to_owned);
        Contender { name, command: [watch.into(), command].concat(), readings: Vec::new() }
    }

    /// The same after what `script` does, a script.
    pub(super) fn after(self, script: &str) -> Contender {
        let shell = ["sh", "-ec", &format!("{script}; exec \"$@\""), "sh"].map(str::to_owned);
        Contender { command: [shell.into(), self.command].concat(), ..self }
    }
}

pub(super) fn main(args: &Args) -> Result<()> {
    args.labs.print(|arch| table("monitor, kernel", &measure(arch, args)?))
}

fn measure(arch: Arch, args: &Args) -> Result<Vec<Contender>> {
    let (names, lab) = args.labs.lab(arch)?;
    let lab = lab
        .icount(true)
        .carry(Images::get(arch)?.guest(), "images")
        .carry(release("stopwatch", arch)?, "bin/stopwatch")
        .limit(LIMIT);
    let mut contenders = contenders(arch, &names);
    run(&lab, &mut contenders, args.labs.rounds)?;
    Ok(contenders)
}

/// Measures all of them in so many rounds, after one that is not counted.
pub(super) fn run(lab: &Lab, contenders: &mut [Contender], rounds: u32) -> Result<()> {
    let all: Vec<Program> = contenders.iter().map(|one| Program::new(one.command.clone())).collect();
    let programs: Vec<Program> = (0..=rounds).flat_map(|_| all.clone()).collect();
    let names: Vec<String> = contenders.iter().map(|one| one.name.clone()).collect();
    let outcomes = lab.run(&programs, &mut |progress| {
        if let Progress::End(number, outcome) = progress {
            let output = String::from_utf8_lossy(&outcome.output);
            eprintln!("bench: {}: {}", names[number % names.len()], output.trim_end());
        }
    })?;
    for (number, outcome) in outcomes.iter().enumerate() {
        let (round, which) = (number / names.len(), number % names.len());
        let Some(reading) = Reading::find(&String::from_utf8_lossy(&outcome.output)) else {
            bail!("{} failed with code {}", names[which], outcome.code);
        };
        if round > 0 {
            contenders[which].readings.push(reading);
        }
    }
    Ok(())
}

fn contenders(arch: Arch, skeps: &[String]) -> Vec<Contender> {
    // The kernel's file, its format, and the machines of QEMU's that start it here: their names in the table, and QEMU's for them.
    type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)]);
    let kernels: &[Row] = match arch {
        Arch::X86_64 => &[
            // QEMU's microvm does not come to init in this lab: its kernel panics on a CPU without fast strings, and its firmware finds no bzImage.
            ("vmlinux", "ELF", &[("QEMU q35", "q35")]),
            ("vmlinuz", "bzImage", &[("QEMU q35", "q35")]),
        ],
        Arch::Aarch64 => &[("Image", "Image", &[("QEMU virt", "virt,gic-version=3")])],
    };
    let append = format!("console={} quiet panic=-1 skep.action=wait", arch.console());
    let initrd = format!("{LAB}/images/initramfs.cpio.gz");
    let mut contenders = Vec::new();
    for (file, format, machines) in kernels {
        let kernel = format!("{LAB}/images/{file}");
        for name in skeps {
            let program = format!("{LAB}/bin/{name}");
            let words = [&program, "run", "--kernel", &kernel, "--initrd", &initrd, "--cmdline", &append];
            // QEMU's machines here have no device either that nobody asked for.
            let machine = ["--memory", MEMORY, "--cpus", "1", "--device", "rng=false"];
            let command = words.into_iter().chain(machine).map(str::to_owned).collect();
            contenders.push(Contender::new(format!("{name}, {format}"), GREETING, MEMORY_BYTES, command));
        }
        for (name, machine) in *machines {
            let mut command = qemu::command(arch, &format!("{LAB}/qemu"));
            command.extend(qemu::arguments(machine, &kernel, &append));
            command.extend(["-initrd".to_owned(), initrd.clone()]);
            contenders.push(Contender::new(format!("{name}, {format}"), GREETING, MEMORY_BYTES, command));
        }
    }
    contenders
}

/// What they took, as multiples of what the first one did. Which of the exits were to the monitor, KVM counts on arm64 alone: a posted write, an interrupt
/// controller's register or a halt is its own business.
pub(super) fn table(what: &str, contenders: &[Contender]) -> Result<Table> {
    let mut table = Table::new([what, "boot, virtual ms", "ratio", "exits", "MMIO to the monitor", "overhead, MiB"]);
    let mut first = None;
    for Contender { name, readings, .. } in contenders {
        let middle =
            |of: fn(&Reading) -> f64| median(readings.iter().map(of)).with_context(|| format!("no reading of {name}"));
        let ms = middle(|one| one.time.as_secs_f64() * 1e3)?;
        table.row([
            name.clone(),
            format!("{ms:.0}"),
            format!("{:.2}", ms / *first.get_or_insert(ms)),
            format!("{:.0}", middle(|one| one.counter("exits") as f64)?),
            match middle(|one| one.counter("mmio_exit_user") as f64)? {
                0.0 => "not told".to_owned(),
                count => format!("{count:.0}"),
            },
            format!("{:.2}", middle(|one| one.resident.overhead as f64 / 1024.0)?),
        ]);
    }
    Ok(table)
}
