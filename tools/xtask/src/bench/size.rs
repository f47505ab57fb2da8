//! `cargo xtask bench size`: how large the static program is.

use super::figures::Table;
use super::release;
use crate::arch::Arch;
use anyhow::Result;
use std::fs;

/// Measure the size of the static, stripped program of both architectures
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this architecture
    #[arg(long)]
    arch: Option<Arch>,
}

pub(super) fn main(args: &Args) -> Result<()> {
    let mut table = Table::new(["architecture", "bytes", "MiB"]);
    for arch in args.arch.map_or(Arch::ALL.to_vec(), |arch| vec![arch]) {
        let bytes = fs::metadata(release("skep", arch)?)?.len();
        table.row([arch.to_string(), bytes.to_string(), format!("{:.2}", bytes as f64 / f64::from(1 << 20))]);
    }
    println!("{table}");
    Ok(())
}
