//! `cargo xtask demo`: a stock Debian kernel boots as a guest under skep, to the greeting of its init, on both architectures.

use crate::arch::Arch;
use crate::images::Images;
use crate::lab::{Board, LAB, Lab, Program, Progress};
use crate::process::show;
use crate::test::{self, Kvm};
use anyhow::{Context, Result};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the guests' init says first (see `images/guest-init.sh`); the kernel's name and version follow.
const GREETING: &str = "skep: hello from Debian guest init: ";

/// Boot a stock Debian kernel under skep on both architectures, and show its console
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this architecture
    #[arg(long)]
    arch: Option<Arch>,
}

/// How a guest did.
struct Boot {
    arch: Arch,
    place: String,
    /// What the greeting says, and the time from skep's start to it.
    greeting: Option<(String, Duration)>,
    /// skep's exit code.
    code: i32,
    total: Duration,
}

impl Boot {
    fn good(&self) -> bool {
        self.greeting.is_some() && self.code == 0
    }
}

/// Runs what the arguments say, and gives back the exit code.
pub(crate) fn main(args: &Args) -> Result<i32> {
    let start = Instant::now();
    let mut boots = Vec::new();
    for arch in args.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]) {
        eprintln!("demo: building skep for {arch}");
        let skep = test::skep(arch)?;
        let images = Images::get(arch)?;
        let native = Kvm::here() == Kvm::Hardware && Arch::of_this_machine() == Some(arch);
        let boot = if native { on_hardware(arch, &skep, &images) } else { in_lab(arch, &skep, &images) };
        boots.push(boot.with_context(|| format!("no guest booted on {arch}"))?);
    }

    println!();
    for boot in &boots {
        let Boot { arch, place, code, .. } = boot;
        match &boot.greeting {
            Some((words, after)) => {
                println!(
                    "{arch}: on {place}, the guest's init greeted {:.1} s after skep's start:",
                    after.as_secs_f64()
                );
                println!("    {words}");
            }
            None => println!("{arch}: on {place}, the guest's init did not greet"),
        }
        println!("    skep ended with code {code} after {:.1} s", boot.total.as_secs_f64());
    }
    let good = boots.iter().filter(|boot| boot.good()).count();
    println!("{good} of {} guests booted as they should; {:.0} s in all", boots.len(), start.elapsed().as_secs_f64());
    Ok(i32::from(good < boots.len()))
}

/// The command line of skep; `skep` and `images` are paths where it runs.
fn command(arch: Arch, skep: &str, images: &str) -> Vec<String> {
    let kernel = match arch {
        Arch::X86_64 => "vmlinuz",
        Arch::Aarch64 => "Image",
    };
    let command_line = format!("console={} panic=-1", arch.console());
    let kernel = format!("{images}/{kernel}");
    let initrd = format!("{images}/initramfs.cpio.gz");
    let words = [
        skep,
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--cmdline",
        &command_line,
        "--memory",
        "256M",
        "--cpus",
        "1",
        "--serial",
        "stdio",
    ];
    words.map(str::to_owned).into()
}

fn in_lab(arch: Arch, skep: &Path, images: &Images) -> Result<Boot> {
    let board = Board::of(arch);
    let lab = Lab::new(board).carry(images.guest(), "images").carry(skep, "skep").limit(Duration::from_secs(300));
    let argv = command(arch, &format!("{LAB}/skep"), &format!("{LAB}/images"));
    let line = argv.join(" ");
    let program = Program::new(argv).limit(Duration::from_secs(240));
    let mut watch = Watch::new();
    let outcomes = lab.run(&[program], &mut |progress| match progress {
        Progress::Begin(_) => {
            println!("== {line} (in the lab)");
            watch = Watch::new();
        }
        Progress::Output(bytes) => watch.see(bytes),
        Progress::End(..) => {}
    })?;
    let outcome = outcomes.first().context("the lab ran nothing")?;
    let place = format!("the lab's {}", board.name());
    Ok(Boot { arch, place, greeting: watch.greeting, code: outcome.code, total: outcome.time })
}

fn on_hardware(arch: Arch, skep: &Path, images: &Images) -> Result<Boot> {
    let argv = command(arch, &skep.to_string_lossy(), &images.guest().to_string_lossy());
    println!("== {}", argv.join(" "));
    let mut watch = Watch::new();
    let mut child = Command::new("timeout")
        .arg("240")
        .args(&argv)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start timeout, of coreutils")?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut buffer = [0; 4096];
    while let length @ 1.. = stdout.read(&mut buffer)? {
        watch.see(&buffer[..length]);
    }
    let code = child.wait()?.code().unwrap_or(128);
    Ok(Boot {
        arch,
        place: "this machine's KVM".to_owned(),
        greeting: watch.greeting,
        code,
        total: watch.start.elapsed(),
    })
}

/// Shows what a guest prints, and notes when it greets.
struct Watch {
    start: Instant,
    line: Vec<u8>,
    greeting: Option<(String, Duration)>,
}

impl Watch {
    /// The clock starts now.
    fn new() -> Watch {
        Watch { start: Instant::now(), line: Vec::new(), greeting: None }
    }

    fn see(&mut self, bytes: &[u8]) {
        show(bytes);
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            if let Some((_, words)) = String::from_utf8_lossy(&self.line).split_once(GREETING) {
                self.greeting.get_or_insert((words.trim_end().to_owned(), self.start.elapsed()));
            }
            self.line.clear();
        }
    }
}

#[cfg(test)]
#[path = "demo_test.rs"]
mod demo_test;
