//! `cargo xtask lab`.

use super::{Board, LAB, Lab, Program, Progress};
use crate::arch::Arch;
use crate::images::Images;
use crate::process::show;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Run a program in an emulated host that has a real /dev/kvm, or get a prompt in one
///
/// A PROGRAM that is a file of this machine (a static binary of the lab's architecture, or a script for busybox's sh) is
/// carried in; any other is looked for in the lab, where busybox's programs are. The guests' kernels and initramfs
/// are there as /lab/images. The program's exit code becomes that of this command.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The host's architecture
    #[arg(long)]
    arch: Arch,
    /// The host's board: svm on x86_64; gicv3 (default), gicv2 (no VHE either) or 40bit on aarch64
    #[arg(long)]
    board: Option<Board>,
    /// Make the host's clock count instructions (1 ms = 1 million), on one CPU
    #[arg(long)]
    icount: bool,
    /// The host's CPUs [default: as many as the board bears]
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// The host's memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 3072)]
    memory: u32,
    /// Build skep for the lab and carry it in, to where it is found by its name
    #[arg(long)]
    skep: bool,
    /// Carry a file or directory in, as /lab/NAME (its own name by default)
    #[arg(long, value_name = "PATH[:NAME]")]
    carry: Vec<String>,
    /// Bring back into this directory what is left in /out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seconds after which the lab is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    timeout: u64,
    /// Get a prompt in the lab (leave by exit, or by Ctrl-A X)
    #[arg(long)]
    shell: bool,
    /// The program to run, and its arguments
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// Runs what the arguments say, and gives back the exit code.
pub(crate) fn main(args: &Args) -> Result<i32> {
    let limit = Duration::from_secs(args.timeout);
    let images = Images::get(args.arch)?;
    let board = Board::chosen(args.arch, args.board)?;
    let mut lab = Lab::new(board)
        .icount(args.icount)
        .cpus(args.smp.unwrap_or(board.cpus()))
        .memory_mib(args.memory)
        .limit(limit)
        .carry(images.guest(), "images");
    if args.skep {
        lab = lab.carry(crate::test::skep(args.arch)?, "bin/skep");
    }
    for carried in &args.carry {
        let (path, name) = match carried.rsplit_once(':') {
            Some((path, name)) => (Path::new(path), name),
            None => (Path::new(carried), file_name(Path::new(carried))?),
        };
        lab = lab.carry(path, name);
    }
    if let Some(directory) = &args.out {
        lab = lab.bring_back(directory);
    }
    match &args.program[..] {
        [] if args.shell => lab.shell().map(|()| 0),
        [] => bail!("no program to run in the lab: give one after --, or --shell"),
        _ if args.shell => bail!("--shell takes no program"),
        [program, arguments @ ..] => {
            let mut argv = arguments.to_vec();
            if Path::new(program).is_file() {
                let name = file_name(Path::new(program))?;
                lab = lab.carry(program, name);
                argv.insert(0, format!("{LAB}/{name}"));
            } else {
                argv.insert(0, program.clone());
            }
            let outcomes = lab.run(&[Program::new(argv).limit(limit)], &mut |progress| {
                if let Progress::Output(bytes) = progress {
                    show(bytes);
                }
            })?;
            let outcome = outcomes.first().context("the lab ran no program")?;
            eprintln!("lab: exit code {} after {:.1} s", outcome.code, outcome.time.as_secs_f64());
            Ok(outcome.code)
        }
    }
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no file name", path.display()))
}
