//! `cargo xtask fuzz`: a fuzz target under libFuzzer, which needs nothing but a C++ compiler (`cargo fuzz`, on nightly Rust, runs them as well).
//!
//! The targets are in `fuzz/`; what each does is a property test (`skep-fuzzing`) that stable Rust runs with seeds and with the files of
//! `fuzz/corpus`. What libFuzzer comes upon stays outside the work tree's corpus, in `fuzz/target`, until somebody lays a file into it.

use crate::arch::Arch;
use crate::paths;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Let libFuzzer look for input that hurts
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The target; without one, they are listed
    #[arg(conflicts_with = "all")]
    target: Option<String>,
    /// Every target, one after the other
    #[arg(long)]
    all: bool,
    /// Seconds that each is looked at; without it, a target until it is interrupted or has found something, and all for 20
    #[arg(long, value_name = "SECONDS")]
    time: Option<u32>,
}

/// How long each of all targets is looked at, in seconds.
const SHORT: u32 = 20;

/// What tells of the code that was reached, as `cargo fuzz` asks for it; overflows and debug assertions are the profile's. What
/// only tests use of the modules that they share with a target is no warning.
const FLAGS: &str = "--cfg fuzzing -Awarnings -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Runs what the arguments say.
pub(crate) fn main(args: &Args) -> Result<()> {
    let fuzz = paths::workspace().join("fuzz");
    let mut targets = Vec::new();
    for entry in fs::read_dir(fuzz.join("fuzz_targets"))? {
        targets.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    targets.sort();
    if args.all {
        let time = args.time.unwrap_or(SHORT);
        let mut failed = Vec::new();
        for target in &targets {
            println!("{target}: {time} s");
            // What is new to it is of no use where so many pass by.
            if let Err(error) = run(&fuzz, target, Some(time), &["-verbosity=0", "-print_final_stats=1"]) {
                eprintln!("{error:#}");
                failed.push(target.as_str());
            }
        }
        if !failed.is_empty() {
            bail!("of {} targets, these failed: {}", targets.len(), failed.join(", "));
        }
        println!("{} targets, none has found anything", targets.len());
        return Ok(());
    }
    let Some(target) = &args.target else {
        println!("{}", targets.join("\n"));
        return Ok(());
    };
    if !targets.contains(target) {
        bail!("there is no fuzz target {target}; there are: {}", targets.join(", "));
    }
    run(&fuzz, target, args.time, &[])
}

fn run(fuzz: &Path, target: &str, time: Option<u32>, options: &[&str]) -> Result<()> {
    let arch = Arch::of_this_machine().context("this machine's architecture is none of skep's")?;
    let found = fuzz.join("target/found").join(target);
    fs::create_dir_all(&found)?;
    let mut command = Command::new("cargo");
    // The toolchain and the target folder of the cargo that runs this are not the fuzzer's.
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"] {
        command.env_remove(variable);
    }
    command.args(["run", "--release", "--target", &format!("{arch}-unknown-linux-gnu"), "--bin", target]);
    command.env("RUSTFLAGS", FLAGS).arg("--").arg(&found).arg(fuzz.join("corpus").join(target)).current_dir(fuzz);
    // Of a seed's size.
    command.arg("-max_len=64").args(time.map(|seconds| format!("-max_total_time={seconds}"))).args(options);
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        bail!("{target} ended with {status}: what it found, if it ran, is in {} (crash-...)", fuzz.display());
    }
    Ok(())
}
