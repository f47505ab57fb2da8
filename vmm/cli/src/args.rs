//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use skep_config::{Flags, MachineFlags, Problem};

use crate::ctl::{self, CtlArgs};
use crate::doctor::DoctorArgs;
use crate::exit::{self, Exit};
use crate::image::ImageCommand;
use crate::later::{self, Below, Later};
use crate::receive::{self, ReceiveArgs};
use crate::snapshot::{self, RestoreArgs, SnapshotCommand};

const EXAMPLES: &str = "\
Examples:
  skep doctor
          what this host can do, and the mend for what is missing
  skep hello
          boot a small guest that is built in, on any /dev/kvm
  skep run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2
          boot a kernel, with its console on this terminal (Ctrl-] q ends it)
  skep run --config vm.toml --serial socket=vm.console
          the machine of a file, with its console on a socket
  skep run --config vm.toml --memory 4G --dump-config > bigger.toml
          write the whole config, with a change
  skep ctl vm.sock disk add data.img,format=raw
          plug a disk into a machine that runs with --control vm.sock
  skep image create disk.qcow2 --format qcow2 --size 20G
          make an empty disk";

const RUN_EXAMPLES: &str = "\
Examples:
  skep run --kernel vmlinuz --initrd initrd.img
          a kernel, with its console on this terminal; Ctrl-] h shows the keys
  skep run --kernel Image --cpus 4,max=8,threads=2 --memory 8G,hugepages=2M
  skep run --kernel bzImage --serial pty,link=vm.console --on-reset exit --log info --stats
  skep run --kernel vmlinuz --initrd initrd.img --disk debian.img,format=raw --net user --cmdline \"console=ttyS0 root=/dev/nvme0n1\"
          on arm64 the console is ttyAMA0
  skep run --config vm.toml --cmdline \"console=ttyS0 debug\"

A config file:
  memory = \"2G\"
  cpus = 4
  [boot]
  kernel = \"vmlinuz\"            # relative to the file's folder
  cmdline = \"console=ttyS0\"
  [on]
  reset = \"exit\"
  [[disk]]
  file = \"debian.img\"
  format = \"raw\"

A comma inside a value is written twice: --serial file=a,,b.log";

/// A portable virtual machine monitor
#[derive(Debug, Parser)]
#[command(name = "skep", version, about, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}", exit::TABLE))]
#[command(max_term_width = 110, subcommand_required = true, arg_required_else_help = true)]
struct Skep {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a machine
    #[command(after_help = "`skep run --help` shows more, with examples", after_long_help = format!("{RUN_EXAMPLES}\n\n{}", exit::TABLE))]
    Run(Later<RunArgs>),
    /// Boot a small guest that is built in, which tells what it found
    ///
    /// It runs on any /dev/kvm, with or without hardware virtualization, in milliseconds: the machine of `skep run` with a guest that counts
    /// its processors and memory, looks at its clocks and devices, and measures what an exit costs. Unlike `skep run` it ends at a reset if --on-reset
    /// does not say otherwise, and has no random number device.
    #[command(after_help = WORDS_HELP)]
    Hello(Later<HelloArgs>),
    /// Talk with a machine that runs: plug in disks and network cards, remove them
    ///
    /// The machine was started with --control SOCKET.
    #[command(after_help = ctl::EXAMPLES)]
    Ctl(Later<CtlArgs>),
    /// Let a machine go on where a snapshot was saved
    ///
    /// The snapshot is what `skep ctl SOCKET save DIR` wrote. It stays as it is, and must not change while the machine runs: memory is mapped from it and
    /// read when it is needed. Disks are where they were when it was saved, and must hold what they held then.
    #[command(after_help = snapshot::EXAMPLES)]
    Restore(Later<RestoreArgs>),
    /// Wait for a machine that migrates, and run it when it has come
    ///
    /// `skep ctl SOCKET migrate ADDRESS` sends it, from this host or another one of the same kind. Its disks are not sent: they are at the same paths, or
    /// where --disk says. Who can connect decides which files this process opens: let nobody else reach the address.
    #[command(after_help = receive::EXAMPLES)]
    Receive(Later<ReceiveArgs>),
    /// Look at a snapshot, or verify it
    Snapshot(Later<Below<SnapshotCommand>>),
    /// Say what this host can do, and how to mend what is missing
    Doctor(Later<DoctorArgs>),
    /// Check a config without running it: keys, the files that it boots, and whether the kernel is one for the machine. Disks and networks are looked at when it runs
    Check(Later<CheckArgs>),
    /// Make, look at, convert and check disk images
    Image(Later<Below<ImageCommand>>),
    /// Write a shell's completions to standard output
    ///
    /// For bash: skep completions bash > ~/.local/share/bash-completion/completions/skep
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a folder
    Man {
        /// The folder, which is made if it is not there
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) flags: Flags,
    /// Print the whole config as TOML, with every value in effect, instead of running it
    #[arg(long, conflicts_with = "print_layout", help_heading = "Reports")]
    pub(crate) dump_config: bool,
    /// Print the guest's memory layout instead of running it
    #[arg(long, help_heading = "Reports")]
    pub(crate) print_layout: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) flags: Flags,
}

#[derive(Debug, Args)]
pub(crate) struct HelloArgs {
    #[command(flatten)]
    pub(crate) machine: MachineFlags,
    /// What the guest does, and how it ends
    #[arg(value_name = "WORD", value_parser = word)]
    pub(crate) words: Vec<String>,
}

/// The words that the guest knows (guests/bare/src/bin/hello/command.rs).
const WORDS: [&str; 13] = [
    "first",
    "cpus",
    "ticks",
    "ticks=slow",
    "echo",
    "echo=poll",
    "end=poweroff",
    "end=reset",
    "end=i8042",
    "end=panic",
    "end=triple",
    "end=halt",
    "end=spin",
];

/// What they mean. Not by clap's own list, whose making costs more system calls than a machine's.
const WORDS_HELP: &str = "\
Words:
  first         say the first line only
  cpus          count processors only
  ticks         take interrupts from every source as well
  ticks=slow    also from those that take a second
  echo          echo lines of input until `bye`, waiting for interrupts meanwhile
  echo=poll     the same, looking again and again
  end=poweroff  end by powering off, as it does by itself
  end=reset     end by a reset
  end=i8042     end by the keyboard controller's reset (x86_64)
  end=panic     end by the report of a kernel's panic
  end=triple    end by a triple fault (x86_64)
  end=halt      don't end: halt with interrupts off
  end=spin      don't end: run for ever";

fn word(text: &str) -> Result<String, Problem> {
    if WORDS.contains(&text) { Ok(text.to_owned()) } else { Err(Problem::unknown_choice(text, &WORDS)) }
}

/// Reads the command line.
pub(crate) fn parse() -> Result<Command, clap::Error> {
    Skep::try_parse().map(|skep| skep.command)
}

/// Prints what clap has to say: help, or what is wrong.
pub(crate) fn explain(refused: &clap::Error) -> ExitCode {
    // Where nobody listens, the exit code still tells.
    drop(refused.print());
    match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    }
    .into()
}

/// The command line as clap knows it, for pages and completions.
pub(crate) fn command() -> clap::Command {
    later::describe_all();
    <Skep as clap::CommandFactory>::command()
}

#[cfg(test)]
#[path = "args_test.rs"]
mod test;
