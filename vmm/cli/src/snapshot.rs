//! `skep restore` and `skep snapshot`.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use skep_block::image::{self, Backing, CreateOptions, ImageFormat, NewImage};
use skep_config::{Config, DiskSource, Format, LogLevel, Serial};
use skep_vmm::console::refuse_inputs;
use skep_vmm::firmware::make_saved;
use skep_vmm::machine::{ClockPolicy, check_disks, renew_addresses};
use skep_vmm::monitor::{self, Start};
use skep_vmm::state::{CHANGED, DisksState, HEADER, MEMORY, RECORDS, Snapshot, SnapshotError};
use skep_vmm::{Error, Leftover, state};

use crate::exit::{Exit, Failure};
use crate::{log, pages, run};

#[cfg(test)]
#[path = "snapshot_test.rs"]
mod test;

pub(crate) const EXAMPLES: &str = "\
Examples:
  skep ctl vm.sock save evening --quit && skep restore evening --control vm.sock
          put a machine away, and let it go on
  skep ctl vm.sock pause && skep ctl vm.sock save DIR && cp disk.img DIR/ && skep ctl vm.sock resume
  skep ctl vm.sock save one --track && skep ctl vm.sock save two --diff --quit && skep restore two
          a whole snapshot, and one of what the guest has changed since
  skep restore DIR --disk disk0=DIR/disk.img --clock jump
          a snapshot with a copy of the disk, which can be restored while the first machine runs on
  skep restore DIR --clone --overlay disk0=one.qcow2 --tap net0=tap1
          one of several machines from a snapshot, whose disk stays as it is";

/// What takes the place of what a device had.
#[derive(Debug, Clone)]
pub(crate) struct Instead {
    id: String,
    new: String,
}

impl FromStr for Instead {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('=').filter(|(id, new)| !id.is_empty() && !new.is_empty());
        let (id, new) = parts.ok_or("it is ID=NEW: the device's name, and what takes the place of what it had")?;
        Ok(Self { id: id.to_owned(), new: new.to_owned() })
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Clock {
    /// They go on where they stood when it was saved
    Continue,
    /// They jump by the time that has passed on the host since
    Jump,
}

/// What a machine has here that it had otherwise where it comes from.
#[derive(Debug, Args)]
pub(crate) struct Here {
    /// Listen at this Unix socket for `skep ctl`
    #[arg(long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    control: Option<PathBuf>,
    /// Where the first serial port leads, as for `skep run`
    #[arg(long, value_name = "stdio|file=FILE|pty|socket=PATH|none")]
    serial: Option<Serial>,
    /// Use another image for a disk, which holds what its own held at that moment
    #[arg(long, value_name = "ID=FILE")]
    disk: Vec<Instead>,
    /// Connect a network card to another tap interface
    #[arg(long, value_name = "ID=TAP")]
    tap: Vec<Instead>,
    /// How much is logged
    #[arg(long)]
    log: Option<LogLevel>,
    /// Print exits by kind and the time to the first instruction at the end
    #[arg(long)]
    stats: bool,
}

impl Here {
    pub(crate) fn log(&self) -> LogLevel {
        self.log.unwrap_or_default()
    }

    /// Lets the config have it, and says whose images have changed.
    pub(crate) fn apply(&self, config: &mut Config) -> Result<Vec<String>, SnapshotError> {
        config.control.clone_from(&self.control);
        config.serial = self.serial.clone().unwrap_or_default();
        config.log = self.log();
        config.stats = self.stats;
        connect(config, &self.tap)?;
        replace(config, &self.disk)
    }
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The snapshot
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    #[command(flatten)]
    here: Here,
    /// Take disks whose images have been written since, and block devices, of which that can't be told: they must hold what they held when the snapshot was saved, or the guest's files are lost
    #[arg(long)]
    trust_disks: bool,
    /// Make a qcow2 image for a disk, behind which its own stays as it is, for any number of machines that are restored so
    #[arg(long, value_name = "ID=FILE")]
    overlay: Vec<Instead>,
    /// Make a file for the firmware's variables, with what they were when the snapshot was saved
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    firmware_vars: Option<PathBuf>,
    /// One of several: a new generation id, of which a guest with firmware hears, and for each network card a new address, which a guest finds when its
    /// driver begins anew (on Linux: unbind and bind in /sys/bus/virtio/drivers/virtio_net)
    #[arg(long)]
    clone: bool,
    /// What the guest's clocks do
    #[arg(long, value_enum, default_value_t = Clock::Continue)]
    clock: Clock,
    /// Don't let the guest go on before `skep ctl SOCKET resume` (with --control)
    #[arg(long, requires = "control")]
    paused: bool,
    /// Follow what the guest changes from here on, so that `skep ctl SOCKET save --diff` can save that alone (with --control)
    #[arg(long, requires = "control")]
    track: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Print what is in a snapshot: its header and every record
    Inspect {
        /// The snapshot
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// Print JSON, with fields by their numbers (docs/state.md)
        #[arg(long)]
        json: bool,
    },
    /// Read all of a snapshot, and compare it with its checksums and each record with its rules
    Verify {
        /// The snapshot
        #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
}

fn of(path: &Path) -> impl FnOnce(SnapshotError) -> Failure {
    let path = path.to_owned();
    move |source| Failure::Snapshot { path, source: Box::new(source) }
}

/// Lets the machine of a snapshot go on.
pub(crate) fn restore(args: RestoreArgs, started: Instant) -> Result<Exit, Failure> {
    let failed = || of(&args.folder);
    let snapshot = Snapshot::open(&args.folder).map_err(failed())?;
    let mut config = snapshot.config().map_err(failed())?;
    let replaced = args.here.apply(&mut config).map_err(failed())?;
    if args.clone {
        renew_addresses(&mut config)?;
    }
    if args.firmware_vars.is_some() || !args.overlay.is_empty() {
        run::host()?;
        // Before there is anything of it.
        monitor::could_restore(&config, &skep_kvm::open()?, &snapshot)?;
    }
    let mut made = Vec::new();
    if let Some(file) = &args.firmware_vars {
        keep_variables(&mut config, file).map_err(failed())?;
        made.push(make_saved(file, &snapshot)?);
    }
    config.finish()?;
    log::start(config.log, started);
    let files = [HEADER, RECORDS, MEMORY, CHANGED].map(|name| args.folder.join(name));
    let inputs = files.iter().map(|file| ("a file of the snapshot", file.as_path()));
    refuse_inputs(&config.serial, inputs).map_err(Error::Console)?;
    let disks: DisksState = snapshot.records.open("disks").map_err(failed())?;
    check_disks(&config, &disks, &replaced, args.trust_disks).map_err(failed())?;
    for Instead { id, new } in &args.overlay {
        made.extend(overlay(disk(&mut config, id).map_err(failed())?, new.into())?);
    }
    let clock = match args.clock {
        Clock::Continue => ClockPolicy::Continue,
        Clock::Jump => ClockPolicy::Jump,
    };
    run::host()?;
    run::begin(
        &config,
        Start::Snapshot {
            snapshot: Box::new(snapshot),
            clock,
            paused: args.paused,
            track: args.track,
            clone: args.clone,
            made,
        },
        started,
    )
}

/// The firmware's variables are in another file here.
pub(crate) fn keep_variables(config: &mut Config, file: &Path) -> Result<(), SnapshotError> {
    let vars = config.boot.firmware_vars.as_mut().ok_or(SnapshotError::NoVariables)?;
    vars.file = file.to_owned();
    Ok(())
}

/// The one of that name.
fn named<T>(kind: &'static str, id: &str, all: impl Iterator<Item = (String, T)>) -> Result<T, SnapshotError> {
    let mut names = Vec::new();
    for (name, one) in all {
        if name == id {
            return Ok(one);
        }
        names.push(name);
    }
    Err(SnapshotError::NoDevice { kind, id: id.to_owned(), names })
}

fn disk<'a>(config: &'a mut Config, id: &str) -> Result<&'a mut DiskSource, SnapshotError> {
    named("disk", id, config.disk.iter_mut().filter_map(|disk| Some((disk.id.clone()?, &mut disk.source))))
}

/// Connects network cards to other tap interfaces.
fn connect(config: &mut Config, instead: &[Instead]) -> Result<(), SnapshotError> {
    for tap in instead {
        let cards = config.net.iter_mut().filter(|net| net.tap.is_some());
        let cards = cards.filter_map(|net| Some((net.id.clone()?, &mut net.tap)));
        *named("network card on a tap interface", &tap.id, cards)? = Some(tap.new.clone());
    }
    Ok(())
}

/// Lets disks have other images, and says whose have changed.
fn replace(config: &mut Config, instead: &[Instead]) -> Result<Vec<String>, SnapshotError> {
    for Instead { id, new } in instead {
        *disk(config, id)?.path_mut() = new.into();
    }
    Ok(instead.iter().map(|instead| instead.id.clone()).collect())
}

/// Makes an image before the one that a disk has.
fn overlay(disk: &mut DiskSource, new: PathBuf) -> Result<Option<Leftover>, Failure> {
    let DiskSource::Image { file, format } = disk else { return Ok(None) };
    let name = match format {
        Format::Raw => ImageFormat::Raw,
        Format::Qcow2 => ImageFormat::Qcow2,
    };
    if new.symlink_metadata().is_ok() {
        let source =
            io::Error::new(io::ErrorKind::AlreadyExists, "it is there already; try another name, one for each disk");
        return Err(Error::File { role: "a disk's new image", path: new, source }.into());
    }
    let behind = std::path::absolute(&*file).unwrap_or_else(|_| file.clone());
    let backing = Some(Backing { file: behind, format: Some(name.name().to_owned()) });
    let options = CreateOptions { backing, ..CreateOptions::default() };
    image::create(&new, ImageFormat::Qcow2, None, &NewImage { qcow2: options, force: false })?;
    let failed = |source| Error::File { role: "a disk's new image", path: new.clone(), source };
    let made = Leftover::file(&new).map_err(failed)?;
    (*file, *format) = (new, Format::Qcow2);
    Ok(Some(made))
}

/// Looks at a snapshot.
pub(crate) fn snapshot(command: SnapshotCommand) -> Result<Exit, Failure> {
    match command {
        SnapshotCommand::Inspect { folder, json } => {
            let snapshot = Snapshot::open(&folder).map_err(of(&folder))?;
            let text = if json { state::inspect::json(&snapshot) } else { state::inspect::text(&snapshot) };
            pages::print(text.as_bytes())?;
        }
        SnapshotCommand::Verify { folder } => {
            let snapshot = Snapshot::open(&folder).map_err(of(&folder))?;
            snapshot.config().map_err(of(&folder))?;
            state::inspect::check(&snapshot).map_err(of(&folder))?;
            snapshot.verify_memory().map_err(of(&folder))?;
            pages::print(
                format!(
                    "{}: {} records, {} bytes of memory: all as they were saved\n",
                    folder.display(),
                    snapshot.records.records.len(),
                    snapshot.header.memory.size
                )
                .as_bytes(),
            )?;
        }
    }
    Ok(Exit::Done)
}
