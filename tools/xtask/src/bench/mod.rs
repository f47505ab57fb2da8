//! `cargo xtask bench`: what skep takes, beside Debian's QEMU in the same run.
//!
//! Rounds are interleaved, and a figure is the median of its rounds. Each prints a table in Markdown, as README.md holds it.

mod boot;
mod figures;
mod firmware;
mod io;
mod lab_io;
mod lab_state;
mod qemu;
mod rates;
mod size;
mod start;
mod state;

use crate::arch::Arch;
use crate::cargo;
use crate::lab::{Board, Lab};
use anyhow::{Context, Result};
use clap::Subcommand;
use figures::Table;
use std::path::PathBuf;

/// Measure skep beside QEMU
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Start(start::Args),
    Boot(boot::Args),
    Firmware(firmware::Args),
    Io(io::Args),
    LabIo(lab_io::Args),
    LabState(lab_state::Args),
    Size(size::Args),
    State(state::Args),
}

/// Runs what the arguments say.
pub(crate) fn main(args: &Args) -> Result<()> {
    match &args.what {
        What::Start(args) => start::main(args),
        What::Boot(args) => boot::main(args),
        What::Firmware(args) => firmware::main(args),
        What::Io(args) => io::main(args),
        What::LabIo(args) => lab_io::main(args),
        What::LabState(args) => lab_state::main(args),
        What::Size(args) => size::main(args),
        What::State(args) => state::main(args),
    }
}

/// The guests' memory, as the command lines of both monitors have it.
const MEMORY: &str = "256M";
/// The same in bytes.
const MEMORY_BYTES: u64 = 256 << 20;

/// What the benchmarks in the labs have in common.
#[derive(clap::Args)]
struct InLabs {
    /// Only this architecture
    #[arg(long)]
    arch: Option<Arch>,
    /// Interleaved rounds
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measure this skep (static, of the lab's architecture) instead of building one; again to compare several
    #[arg(long, value_name = "PROGRAM", requires = "arch")]
    skep: Vec<PathBuf>,
}

impl InLabs {
    /// Prints what `measure` has found on each architecture.
    fn print(&self, measure: impl Fn(Arch) -> Result<Table>) -> Result<()> {
        self.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]).into_iter().try_for_each(|arch| {
            println!("{arch}:\n\n{}", measure(arch)?);
            Ok(())
        })
    }

    /// The skeps that are measured, by their names, and a lab that has them as `bin/NAME`, and QEMU as `qemu`.
    fn lab(&self, arch: Arch) -> Result<(Vec<String>, Lab)> {
        let skeps = skeps(arch, &self.skep)?;
        let lab = Lab::new(Board::of(arch)).carry(qemu::portable(arch)?, "qemu");
        let carry = |lab: Lab, (name, program): &(String, PathBuf)| lab.carry(program, format!("bin/{name}"));
        Ok((skeps.iter().map(|(name, _)| name.clone()).collect(), skeps.iter().fold(lab, carry)))
    }
}

/// Builds the static `package` of `arch` as users get it.
fn release(package: &str, arch: Arch) -> Result<PathBuf> {
    built(package, ["--bin", package], arch)
}

/// The same of another program of a package's, by the words that name it to cargo.
fn built(package: &str, program: [&str; 2], arch: Arch) -> Result<PathBuf> {
    let [kind, name] = program;
    let words = ["build", "--release", "--package", package, kind, name, "--target", arch.musl_target()];
    let built = cargo::build(&words.map(str::to_owned))?.into_iter().next();
    Ok(built.with_context(|| format!("cargo built no {name} of {package}"))?.path)
}

/// The skeps to measure, with their names in the table: those that are given, else one that is built now.
fn skeps(arch: Arch, given: &[PathBuf]) -> Result<Vec<(String, PathBuf)>> {
    if given.is_empty() {
        return Ok(vec![("skep".to_owned(), release("skep", arch)?)]);
    }
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    given.iter().map(|path| Ok((name(path).context("--skep names no file")?, path.clone()))).collect()
}
