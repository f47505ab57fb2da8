//! The project's own tools: `cargo xtask COMMAND`.

mod arch;
mod images;
mod lab;
mod paths;
mod process;

use anyhow::Result;
use clap::Parser;
use std::process::ExitCode;

/// The project's own tools
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Cli {
    Images(images::Args),
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Images(args) => images::main(&args).map(|()| 0),
        Cli::Lab(args) => lab::main(&args),
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
