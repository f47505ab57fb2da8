//! `cargo xtask soak`: machines that are put away and that migrate, again and again, with their disks in use.
//!
//! It repeats what the tests do a few times: a guest of our own writes, reads and compares on an NVMe and a virtio disk, and what it says at the end must be what
//! it says when it is left alone.

use crate::arch::Arch;
use crate::test;
use anyhow::Result;

/// Save, restore and migrate machines many times, with their disks in use
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often a machine is saved and restored
    #[arg(long, value_name = "N", default_value_t = 100)]
    rounds: u32,
    /// How often a machine migrates
    #[arg(long, value_name = "N", default_value_t = 20)]
    migrations: u32,
    /// In the labs, on emulated hosts with hardware virtualization, instead of on this machine's /dev/kvm
    #[arg(long)]
    lab: bool,
    /// Only this architecture's lab
    #[arg(long, requires = "lab")]
    arch: Vec<Arch>,
}

/// Runs what the arguments say, and gives back the exit code.
pub(crate) fn main(args: &Args) -> Result<i32> {
    for (file, filter, rounds) in [
        ("native_snapshot", "the_same_when_it_is_put_away_meanwhile", args.rounds),
        ("native_migrate", "the_same_when_it_goes_meanwhile", args.migrations),
    ] {
        println!("soak: {rounds} rounds of {file}");
        let code = test::main(&test::Args::soak(args.arch.clone(), args.lab, file, filter, rounds))?;
        if code != 0 {
            return Ok(code);
        }
    }
    Ok(0)
}
