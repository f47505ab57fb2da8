//! The project's own tools: `cargo xtask COMMAND`.
//!
//! They fetch and make the guests' kernels ([`images`]), boot emulated hosts that have KVM ([`lab`]), run the integration
//! tests there or on hardware ([`mod@test`]), show a guest booting ([`demo`]), measure it beside QEMU ([`mod@bench`]), let libFuzzer look for what
//! hurts it ([`fuzz`]), check the rules of the house ([`lint`]), write the specification of saved state ([`state`]), freeze records ([`golden`]), and repeat for long
//! what tests do a few times ([`soak`]).
//! They run on Linux machines of either architecture that have Debian's package tools; `tools/setup` installs what they
//! call.

mod arch;
mod bench;
mod cargo;
mod demo;
mod fuzz;
mod golden;
mod images;
mod lab;
mod lint;
mod paths;
mod process;
mod soak;
mod state;
mod test;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;

/// The project's own tools
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Cli {
    Images(images::Args),
    Lab(lab::Args),
    Test(test::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Lint(lint::Args),
    State(state::Args),
    Golden(golden::Args),
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Images(args) => images::main(&args).map(|()| 0),
        Cli::Lab(args) => lab::main(&args),
        Cli::Test(args) => test::main(&args),
        Cli::Demo(args) => demo::main(&args),
        Cli::Bench(args) => bench::main(&args).map(|()| 0),
        Cli::Fuzz(args) => fuzz::main(&args).map(|()| 0),
        Cli::Lint(args) => lint::main(&args),
        Cli::State(args) => state::main(&args).map(|()| 0),
        Cli::Soak(args) => soak::main(&args),
        Cli::Golden(args) => golden::main(&args),
    };
    end(result)
}

/// The exit code; an error is shown with what caused it.
fn end(result: Result<i32>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
