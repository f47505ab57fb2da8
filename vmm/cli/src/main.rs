//! `skep`: the command.
//!
//! `run` and `check` take one schema by flags or by a file (`skep-config`); `hello` boots a guest that is built in; `doctor` says what this
//! host can do; `ctl` talks with a machine that runs; `restore` and `snapshot` take what one has saved, `receive` one that migrates; `image` makes and looks at disk images (`skep-block`). Exit codes are in [`exit`], and
//! in `skep --help`.

#![deny(unsafe_code)]

mod args;
mod ctl;
mod doctor;
mod exit;
mod image;
mod later;
mod log;
mod pages;
mod receive;
mod report;
mod run;
mod snapshot;
mod stats;
#[cfg(all(panic = "abort", target_env = "musl"))]
mod unwind;

use std::process::ExitCode;
use std::time::Instant;

use args::Command;
use later::{Below, Later};

/// musl's asks the kernel for nearly every block, a hundred times before a guest runs; this one asks for larger pieces.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let started = Instant::now();
    skep_vmm::ignore_file_size_signal();
    let done = match args::parse() {
        Ok(Command::Run(Later(args))) => run::run(args, started),
        Ok(Command::Hello(Later(args))) => run::hello(args, started),
        Ok(Command::Check(Later(args))) => run::check(args),
        Ok(Command::Ctl(Later(args))) => ctl::ctl(args),
        Ok(Command::Image(Later(Below { command }))) => image::image(command),
        Ok(Command::Restore(Later(args))) => snapshot::restore(args, started),
        Ok(Command::Receive(Later(args))) => receive::receive(args, started),
        Ok(Command::Snapshot(Later(Below { command }))) => snapshot::snapshot(command),
        Ok(Command::Doctor(Later(args))) => doctor::doctor(args),
        Ok(Command::Completions { shell }) => pages::completions(shell),
        Ok(Command::Man { folder }) => pages::man(&folder),
        Err(refused) => return args::explain(&refused),
    };
    done.unwrap_or_else(|failure| {
        report::print(failure.error());
        failure.exit()
    })
    .into()
}
