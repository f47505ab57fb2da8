//! `cargo xtask test`: the integration tests of both architectures, on hardware or in the lab.
//!
//! They are ordinary Rust tests, built statically and told by their environment where things are: `SKEP_BIN` the `skep`
//! to start, `SKEP_IMAGES` the guests' kernels and initramfs (see [`crate::images`]), `SKEP_DEBIAN` a disk with Debian's root file system (for
//! test files whose name begins with `debian`; one that firmware boots for those that have `firmware` in it as well), `SKEP_FIRMWARE` the directory with Debian's firmware (for those whose name has `firmware` in it), and in
//! a lab `SKEP_LAB` its board.

mod build;
mod place;
mod report;

pub(crate) use build::skep;
pub(crate) use place::Kvm;

use crate::arch::Arch;
use crate::images::{Images, firmware, portable, rootfs};
use crate::lab::{Board, LAB, Lab, Outcome, Program, Progress};
use crate::process::show;
use anyhow::{Context, Result, bail};
use build::Built;
use place::Place;
use report::{Counts, Line};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Run the integration tests, on this machine's KVM or in the lab
///
/// Tests of the machine's own architecture run directly where its /dev/kvm is hardware; all others run in the lab, all
/// of an architecture in one boot.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this architecture
    #[arg(long)]
    arch: Vec<Arch>,
    /// On this machine; without hardware virtualization, only those tests that need none
    #[arg(long, conflicts_with_all = ["lab", "board", "arch"])]
    native: bool,
    /// In the lab, even where this machine could do it
    #[arg(long)]
    lab: bool,
    /// In the lab, on this board
    #[arg(long)]
    board: Option<Board>,
    /// Only this test file
    #[arg(long, value_name = "FILE")]
    test: Vec<String>,
    /// Tests that run at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    test_threads: u32,
    /// Seconds that one test file may take
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Rounds of what `cargo xtask soak` repeats
    #[arg(skip)]
    rounds: Option<u32>,
}

impl Args {
    /// One test of a file that needs no hardware virtualization, so often: on this machine, or in the labs.
    pub(crate) fn soak(arch: Vec<Arch>, lab: bool, file: &str, filter: &str, rounds: u32) -> Self {
        let (test, filter) = (vec![file.to_owned()], Some(filter.to_owned()));
        Self {
            arch,
            native: !lab,
            lab,
            board: None,
            test,
            test_threads: 1,
            timeout: 3 * 3600,
            filter,
            rounds: Some(rounds),
        }
    }

    fn rounds(&self) -> String {
        self.rounds.map(|rounds| rounds.to_string()).unwrap_or_default()
    }
}

/// Runs what the arguments say, and gives back the exit code.
pub(crate) fn main(args: &Args) -> Result<i32> {
    let mut lines = Vec::new();
    for (arch, place) in places(args)? {
        let mut built = build::build(arch, &args.test)?;
        if place == Place::Native && Kvm::here() != Kvm::Hardware {
            built.tests.retain(|test| test.without_hardware);
            eprintln!("test: this /dev/kvm has no hardware behind it: only the tests that need none run here");
            if built.tests.is_empty() {
                bail!("none of these test files runs without hardware virtualization");
            }
        }
        // A whole system takes minutes to boot in a lab, and to make: where it is asked for.
        if args.test.is_empty() {
            built.tests.retain(|test| !test.debian);
        }
        let more = match place {
            Place::Native => native(args, arch, &built)?,
            Place::Lab(board) => in_lab(args, board, &built)?,
        };
        lines.extend(more);
    }
    for line in &mut lines {
        check(&mut line.counts, args.filter.is_some());
    }
    report::close(&lines)
}

/// A program that ran nothing has tested nothing, and a test that is left out is forgotten.
fn check(counts: &mut Counts, filtered: bool) {
    if counts.ignored > 0 {
        counts.failed += counts.ignored;
        counts.failures.push(format!("({} tests are marked to be ignored)", counts.ignored));
    }
    if !filtered && counts.passed == 0 && counts.failed == 0 {
        counts.failed = 1;
        counts.failures.push("(it holds no test)".to_owned());
    }
}

fn places(args: &Args) -> Result<Vec<(Arch, Place)>> {
    if args.native {
        if Kvm::here() == Kvm::None {
            bail!("there is no /dev/kvm on this machine that this user may use: run the tests in the lab (--lab)");
        }
        let arch = Arch::of_this_machine().context("skep does not run on this machine's architecture")?;
        return Ok(vec![(arch, Place::Native)]);
    }
    if let Some(board) = args.board {
        let arch = args.arch.first().copied().unwrap_or(board.arch());
        return Ok(vec![(arch, Place::Lab(Board::chosen(arch, Some(board))?))]);
    }
    let arches = if args.arch.is_empty() { Arch::ALL.to_vec() } else { args.arch.clone() };
    let place = |arch| if args.lab { Place::Lab(Board::of(arch)) } else { Place::of(arch) };
    Ok(arches.into_iter().map(|arch| (arch, place(arch))).collect())
}

fn harness_arguments(args: &Args) -> Vec<String> {
    let mut arguments = vec![format!("--test-threads={}", args.test_threads), "--color=never".to_owned()];
    arguments.extend(args.filter.clone());
    arguments
}

fn in_lab(args: &Args, board: Board, built: &Built) -> Result<Vec<Line>> {
    let images = Images::get(board.arch())?;
    let limit = Duration::from_secs(args.timeout);
    let mut lab = Lab::new(board)
        .carry(images.guest(), "images")
        .carry(&built.skep, "bin/skep")
        .limit(limit * u32::try_from(built.tests.len()).unwrap_or(u32::MAX));
    let debian = built.tests.iter().any(|test| test.debian);
    let vhost_user = built.tests.iter().any(|test| test.vhost_user);
    let network = built.tests.iter().any(|test| test.firmware && test.name.contains("net"));
    let tools = [(debian, portable::TOOLS), (vhost_user, portable::BACKENDS), (network, portable::NETWORK)];
    let tools = tools.into_iter().filter(|(needed, _)| *needed).map(|(_, tools)| tools).collect::<Vec<_>>();
    for (file, name) in portable::together(&tools, board.arch())? {
        lab = lab.carry(file, name);
    }
    if built.tests.iter().any(|test| test.debian && !test.firmware) {
        lab = lab.carry(rootfs::disk(board.arch(), false)?, "debian.ext4");
    }
    if built.tests.iter().any(|test| test.debian && test.firmware) {
        lab = lab.carry(rootfs::bootable(board.arch())?, "debian-gpt.img");
    }
    if built.tests.iter().any(|test| test.firmware) {
        lab = lab.carry(firmware::directory(board.arch(), false)?, "firmware");
    }
    let mut programs = Vec::new();
    for test in &built.tests {
        let name = format!("tests/{}", test.name);
        lab = lab.carry(&test.path, &name);
        let program = Program::new(std::iter::once(format!("{LAB}/{name}")).chain(harness_arguments(args)))
            .env("SKEP_BIN", format!("{LAB}/bin/skep"))
            .env("SKEP_IMAGES", format!("{LAB}/images"))
            .env("SKEP_DEBIAN", format!("{LAB}/{}", if test.firmware { "debian-gpt.img" } else { "debian.ext4" }))
            .env("SKEP_FIRMWARE", format!("{LAB}/firmware"))
            .env("SKEP_LAB", board.name())
            .env("SKEP_ROUNDS", args.rounds())
            .env("RUST_BACKTRACE", "1")
            .limit(limit);
        programs.push(program);
    }
    let place = Place::Lab(board).name();
    let line = |suite: String, outcome: &Outcome| Line {
        place: place.clone(),
        suite,
        counts: Counts::read(&outcome.output, outcome.code),
        time: outcome.time,
    };
    let (mut lines, mut astray) = (Vec::new(), Vec::new());
    let mut result = lab.run(&programs, &mut |progress| match progress {
        Progress::Begin(number) => println!("== {}", built.tests[number].name),
        Progress::Output(bytes) => show(bytes),
        Progress::End(number, outcome) => {
            let line = line(built.tests[number].name.clone(), outcome);
            if report::went_astray(board.arch(), &line.counts, &outcome.output) {
                astray.push(number);
            }
            lines.push(line);
        }
    });
    if result.is_ok() && !astray.is_empty() {
        let names: Vec<_> = astray.iter().map(|number| built.tests[*number].name.as_str()).collect();
        eprintln!(
            "test: A GUEST RAN ON AND SAID NOTHING in {}: once more, in another host (docs/lab.md says why)",
            names.join(", ")
        );
        let again: Vec<_> = astray.iter().map(|number| programs[*number].clone()).collect();
        result = lab.run(&again, &mut |progress| match progress {
            Progress::Begin(number) => println!("== {} again", built.tests[astray[number]].name),
            Progress::Output(bytes) => show(bytes),
            Progress::End(number, outcome) => {
                lines[astray[number]] = line(format!("{} (again)", built.tests[astray[number]].name), outcome);
            }
        });
    }
    if let Err(error) = result {
        eprintln!("test: {error:#}");
        let suite = built.tests.get(lines.len()).map_or("the lab's end", |test| &test.name).to_owned();
        let counts = Counts { failed: 1, failures: vec![format!("({error:#})")], ..Counts::default() };
        lines.push(Line { place, suite, counts, time: Duration::ZERO });
    }
    Ok(lines)
}

fn native(args: &Args, arch: Arch, built: &Built) -> Result<Vec<Line>> {
    let images = Images::get(arch)?;
    let firmware =
        built.tests.iter().any(|test| test.firmware).then(|| firmware::directory(arch, false)).transpose()?;
    let mut lines = Vec::new();
    for test in &built.tests {
        println!("== {}", test.name);
        let debian = match (test.debian, test.firmware) {
            (false, _) => None,
            (true, false) => Some(rootfs::disk(arch, false)?),
            (true, true) => Some(rootfs::bootable(arch)?),
        };
        let start = Instant::now();
        let mut child = Command::new("timeout")
            .args(["-s", "KILL", &args.timeout.to_string()])
            .arg(&test.path)
            .args(harness_arguments(args))
            .env("SKEP_BIN", &built.skep)
            .env("SKEP_IMAGES", images.guest())
            .env("SKEP_DEBIAN", debian.as_deref().unwrap_or(Path::new("")))
            .env("SKEP_FIRMWARE", firmware.as_deref().unwrap_or(Path::new("")))
            .env_remove("SKEP_LAB")
            .env("SKEP_ROUNDS", args.rounds())
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", test.path.display()))?;
        let mut output = Vec::new();
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let mut buffer = [0; 4096];
        while let length @ 1.. = stdout.read(&mut buffer)? {
            show(&buffer[..length]);
            output.extend_from_slice(&buffer[..length]);
        }
        let status = child.wait()?;
        let code = status.code().unwrap_or(137);
        lines.push(Line {
            place: Place::Native.name(),
            suite: test.name.clone(),
            counts: Counts::read(&output, code),
            time: start.elapsed(),
        });
    }
    Ok(lines)
}

#[cfg(test)]
#[path = "check_test.rs"]
mod check_test;
