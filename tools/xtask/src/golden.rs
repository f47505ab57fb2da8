//! `cargo xtask golden`: freezes records of saved state, which every later version must read.

use crate::cargo::cargo;
use anyhow::{Context, Result};

/// Freeze records of this version's saved state, in place of those that are in the repository: only while no version with those has been given out
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn main(_args: &Args) -> Result<i32> {
    let mut cargo = cargo();
    cargo.args(["run", "--quiet", "-p", "skep-vmm", "--example", "golden"]);
    let status = cargo.status().context("cargo can't be started")?;
    Ok(status.code().unwrap_or(1))
}
