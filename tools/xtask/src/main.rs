//! The project's own tools: `cargo xtask COMMAND`.

mod arch;
mod images;
mod paths;
mod process;

use clap::Parser;

/// The project's own tools
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Cli {
    Images(images::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse() {
        Cli::Images(args) => images::main(&args),
    }
}
