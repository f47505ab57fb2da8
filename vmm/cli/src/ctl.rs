//! `skep ctl`: talks with a machine that runs, by its control socket.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::{Args, Subcommand, ValueHint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use skep_config::{Disk, Net, Size, full_path};
use skep_vmm::ctl::protocol::{
    Activity, BalloonTarget, ConsoleResize, DeviceList, DeviceRemove, DiskAdd, DiskResize, Migrate, Migrated,
    MigrationStatus, NetAdd, Nothing, Pressed, Removed, Renewed, Resized, Save, Saved, Stats, Status,
};
use skep_vmm::ctl::{Client, ClientError};
use skep_vmm::machine::{BalloonInfo, DeviceInfo, DeviceState, Plugged};
use skep_vmm::migrate::Address;

use crate::exit::{Exit, Failure};
use crate::image::progress::Progress;
use crate::pages;

#[cfg(test)]
#[path = "ctl_test.rs"]
mod test;

pub(crate) const EXAMPLES: &str = "\
Examples:
  skep run --config vm.toml --pci-ports 4 --control vm.sock
          a machine with four free slots, and a socket to talk with it
  skep ctl vm.sock device list
  skep ctl vm.sock disk add data.img,format=raw,id=data
          a disk that the guest finds while it runs; device=virtio-blk for the other kind
  skep ctl vm.sock device remove data
          ask the guest to let it go, and wait until the file is free
  skep ctl vm.sock net add tap=vmtap0,id=lan
  truncate -s 20G data.img && skep ctl vm.sock disk resize data
  skep ctl vm.sock balloon 256M
          ask the guest to give memory back
  skep ctl vm.sock save before-upgrade --quit
          put the machine away; `skep restore before-upgrade --control vm.sock` brings it back";

#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The machine's socket: what was given to --control
    #[arg(value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    socket: PathBuf,
    /// Print what the machine answers as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// Devices: list them, remove one
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Disks: add one, tell the guest of a new size
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Network cards: add one
    #[command(subcommand)]
    Net(NetCommand),
    /// The balloon: ask the guest for memory, print what it has given and told
    ///
    /// SIZE is how much the guest is to give back in all; 0B lets it have everything again. What it tells of its memory is asked for anew each
    /// time, and printed the next.
    Balloon {
        /// How much
        size: Option<Size>,
    },
    /// The terminal of `--device console`: tell the guest its size
    #[command(subcommand)]
    Console(ConsoleCommand),
    /// Print exits by kind and times so far; the guest stands still for a moment
    Stats,
    /// Print what the machine is doing: running, paused, being saved, or on its way to another host
    Status,
    /// Let the machine stand still: CPUs, and what its devices had begun is done first
    ///
    /// While a host takes long for that, `resume` gives it up.
    Pause,
    /// Let it go on
    Resume,
    /// Save the machine into a new folder, from which `skep restore` lets it go on
    ///
    /// The guest stands still while its memory is written, and goes on then. Disks are not copied: either copy them while the machine is paused, or end
    /// the machine with --quit, so that they stay what they are. What fails leaves the guest running, and no folder.
    Save {
        /// The snapshot, which is not there yet
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
        /// End the machine when it is saved, without letting the guest go on
        #[arg(long)]
        quit: bool,
        /// Follow what the guest changes from here on, so that `--diff` can save that alone
        #[arg(long)]
        track: bool,
        /// Save of memory only what differs from the last snapshot by --track or --diff, which is needed to restore this one
        #[arg(long)]
        diff: bool,
    },
    /// Give up a save that goes on: the guest goes on, and no folder stays
    SaveCancel,
    /// Let the machine go to a skep that waits by `skep receive`, while its guest runs on
    ///
    /// This process ends when the machine runs there. What fails leaves it running here. Disks are not sent: both sides reach the same images.
    Migrate {
        /// Where it waits
        #[arg(value_name = "unix:PATH|tcp:HOST:PORT")]
        to: Address,
        /// How long the guest may stand still for the last of its memory: the machine goes when that is short enough
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 300)]
        downtime: u64,
    },
    /// Let a machine stay that migrates
    MigrateCancel,
    /// Press the power button: a guest that listens powers off in an orderly way
    ///
    /// Where none listens, what is printed says so (with --json: heard); the exit code is 0 all the same.
    PowerButton,
    /// Give the guest a new generation id, by which it knows that it goes on as a copy of what it was
    ///
    /// Where it has none, for lack of firmware, what is printed says so (with --json: told); the exit code is 0 all the same.
    RenewGeneration,
    /// Reset the machine, as if its guest had asked for it: `--on-reset` says what happens then
    Reset,
    /// End the machine at once, as by pulling its plug
    Quit,
}

#[derive(Debug, Subcommand)]
enum DeviceCommand {
    /// List the devices on PCI, with places and states
    #[command(override_usage = "skep ctl <SOCKET> device list [OPTIONS]")]
    List,
    /// Ask the guest to let a device go, and wait until it has gone
    ///
    /// What is behind a root port (`port:NUMBER`) can leave, and a disk that shares its controller with others. Linux takes 5 seconds for the first.
    #[command(override_usage = "skep ctl <SOCKET> device remove [OPTIONS] <ID>")]
    Remove {
        /// The device's name
        id: String,
        /// Return when the guest has been asked
        #[arg(long, conflicts_with = "timeout")]
        no_wait: bool,
        /// Wait so long at most; the device may still go after that
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
        /// Ask a guest that was asked before and has not heard
        #[arg(long)]
        again: bool,
    },
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    /// Plug in a disk: what `skep run --disk` takes, but for vhost-user= and bootindex=
    ///
    /// It comes to the first free root port, or to the one of `place=port:NUMBER`. With `controller=ID` it joins a controller that was given this
    /// name, as a further namespace, and needs no port.
    #[command(override_usage = "skep ctl <SOCKET> disk add [OPTIONS] <FILE,format=raw[,...]>")]
    Add {
        /// The disk
        #[arg(value_name = "FILE,format=raw[,...]")]
        disk: Disk,
    },
    /// Look at the size of a disk's file again, and tell the guest
    #[command(override_usage = "skep ctl <SOCKET> disk resize [OPTIONS] <ID>")]
    Resize {
        /// The disk's name
        id: String,
    },
}

#[derive(Debug, Subcommand)]
enum ConsoleCommand {
    /// Tell the guest a size in characters
    #[command(override_usage = "skep ctl <SOCKET> console resize [OPTIONS] <COLUMNS> <ROWS>")]
    Resize {
        /// Characters of a line
        columns: u16,
        /// Lines
        rows: u16,
    },
}

#[derive(Debug, Subcommand)]
enum NetCommand {
    /// Plug in a network card: what `skep run --net` takes, but for vhost-user= and bootindex=
    #[command(override_usage = "skep ctl <SOCKET> net add [OPTIONS] <tap=NAME|user[,...]>")]
    Add {
        /// The card
        #[arg(value_name = "tap=NAME|user[,...]")]
        net: Net,
    },
}

/// A machine, and how its answers are printed.
struct Asker {
    client: Client,
    json: bool,
}

impl Asker {
    fn ask<T: Serialize + DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &impl Serialize,
        patience: Option<Duration>,
        text: impl FnOnce(T) -> String,
    ) -> Result<(), Failure> {
        let answer: T = self.client.call(command, arguments, patience)?;
        let text = if self.json { json(&answer) } else { text(answer) };
        pages::print(text.as_bytes())
    }
}

fn json(answer: &impl Serialize) -> String {
    serde_json::to_string(answer).map(|text| text + "\n").unwrap_or_default()
}

/// Does what is asked of a machine that runs.
pub(crate) fn ctl(args: CtlArgs) -> Result<Exit, Failure> {
    let CtlArgs { socket, json, command } = args;
    let mut it = Asker { client: Client::connect(&socket)?, json };
    match command {
        CtlCommand::Device(DeviceCommand::List) => {
            it.ask("device-list", &Nothing {}, None, |list: DeviceList| table(&list.devices))?;
        }
        CtlCommand::Device(DeviceCommand::Remove { id, no_wait, timeout, again }) => {
            let patience = (!no_wait).then(|| Duration::from_secs(timeout));
            let arguments = DeviceRemove { id: id.clone(), wait: !no_wait, again };
            let text = |removed: Removed| match removed.gone {
                true => format!("{id}: gone\n"),
                false => format!("{id}: the guest has been asked to let it go\n"),
            };
            let asked = it.ask("device-remove", &arguments, patience, text);
            asked.map_err(|failure| match failure {
                Failure::Control(ClientError::Late(_)) => Failure::Kept { id: id.clone(), seconds: timeout, socket },
                other => other,
            })?;
        }
        CtlCommand::Disk(DiskCommand::Add { mut disk }) => {
            // The machine has a working folder of its own.
            let path = disk.source.path_mut();
            *path = full_path(path);
            it.ask("disk-add", &DiskAdd { disk }, None, plugged)?;
        }
        CtlCommand::Disk(DiskCommand::Resize { id }) => {
            let text = |resized: Resized| format!("{id}: {}\n", Size(resized.size));
            it.ask("disk-resize", &DiskResize { id: id.clone() }, None, text)?;
        }
        CtlCommand::Net(NetCommand::Add { mut net }) => {
            net.paths_mut().for_each(|path| *path = full_path(path));
            it.ask("net-add", &NetAdd { net }, None, plugged)?;
        }
        CtlCommand::Balloon { size } => it.ask("balloon", &BalloonTarget { size }, None, |info| balloon(&info))?,
        CtlCommand::Console(ConsoleCommand::Resize { columns, rows }) => {
            it.ask("console-resize", &ConsoleResize { columns, rows }, None, |_: Nothing| String::new())?;
        }
        CtlCommand::Stats => it.ask("stats", &Nothing {}, None, |stats: Stats| figures(&stats))?,
        CtlCommand::Status => it.ask("status", &Nothing {}, None, |status: Status| activity(&status))?,
        CtlCommand::Pause => it.ask("pause", &Nothing {}, None, |_: Nothing| String::new())?,
        CtlCommand::Resume => it.ask("resume", &Nothing {}, None, |_: Nothing| String::new())?,
        CtlCommand::Save { folder, quit, track, diff } => {
            let folder = full_path(&folder);
            let text = |saved: Saved| {
                let Saved { data, memory, standstill_us, elapsed_us } = saved;
                let (data, memory, elapsed) = (Size(data), Size(memory), milliseconds(elapsed_us));
                format!(
                    "saved {data} of {memory} in {elapsed}; the guest stood still for {}\n",
                    milliseconds(standstill_us)
                )
            };
            let watch = Watch::start(socket);
            let done = it.ask("save", &Save { folder, quit, track, diff }, None, text);
            watch.end();
            done?;
        }
        CtlCommand::SaveCancel => it.ask("save-cancel", &Nothing {}, None, |_: Nothing| String::new())?,
        CtlCommand::Migrate { to, downtime } => {
            let to = match to {
                Address::Unix(path) => Address::Unix(full_path(&path)),
                to => to,
            };
            let watch = Watch::start(socket);
            let done = it.ask("migrate", &Migrate { to: to.to_string(), downtime_ms: downtime }, None, moved);
            watch.end();
            done?;
        }
        CtlCommand::MigrateCancel => it.ask("migrate-cancel", &Nothing {}, None, |_: Nothing| String::new())?,
        CtlCommand::PowerButton => {
            let text = |pressed: Pressed| match pressed.heard {
                true => String::new(),
                false => "the guest does not listen to its power button\n".to_owned(),
            };
            it.ask("power-button", &Nothing {}, None, text)?;
        }
        CtlCommand::RenewGeneration => {
            let text = |renewed: Renewed| match renewed.told {
                true => String::new(),
                false => "the guest has no generation id: it needs firmware, which has not put one into its place\n"
                    .to_owned(),
            };
            it.ask("renew-generation", &Nothing {}, None, text)?;
        }
        CtlCommand::Reset => it.ask("reset", &Nothing {}, None, |_: Nothing| String::new())?,
        CtlCommand::Quit => it.ask("quit", &Nothing {}, None, |_: Nothing| String::new())?,
    }
    Ok(Exit::Done)
}

fn plugged(plugged: Plugged) -> String {
    match plugged.namespace {
        Some(number) => format!("{}: namespace {number} of the controller at {}\n", plugged.id, plugged.place),
        None => format!("{}: at {}\n", plugged.id, plugged.place),
    }
}

/// Devices in columns.
fn table(devices: &[DeviceInfo]) -> String {
    let head = ["ID", "KIND", "PLACE", "STATE", "SIZE"].map(str::to_owned);
    let row = |device: &DeviceInfo| {
        let place = match (&device.controller, device.namespace) {
            (Some(controller), Some(number)) => format!("{controller}:{number}"),
            _ => device.place.clone(),
        };
        let size = device.size.map(|size| Size(size).to_string()).unwrap_or_default();
        [device.id.clone(), device.kind.clone(), place, state(device.state).to_owned(), size]
    };
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(devices.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3, 4].map(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::On => "on",
        DeviceState::Off => "off",
        DeviceState::Leaving => "leaving",
        DeviceState::Stopping => "stopping",
        DeviceState::Other => "?",
    }
}

/// Shows on a terminal how far a save has come, by a connection of its own.
struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(socket: PathBuf) -> Self {
        let over = Arc::<AtomicBool>::default();
        let seen = over.clone();
        // Who reads a file has no use for it.
        let shown = std::io::stderr().is_terminal();
        let thread = shown.then(|| {
            std::thread::spawn(move || {
                let mut progress = Progress::new();
                watch(&socket, &seen, Some(STEP * 10), |done, of, rate| progress.show(done, of, rate));
                progress.end();
            })
        });
        Self { over, thread }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread {
            thread.thread().unpark();
            // What is shown is of no further use.
            let _ = thread.join();
        }
    }
}

/// How often it is asked how far it has come.
const STEP: Duration = Duration::from_millis(100);

/// Asks how far it has come, again and again, until it is over, or until nobody answers for so long.
fn watch(socket: &Path, over: &AtomicBool, patience: Option<Duration>, mut show: impl FnMut(u64, u64, Option<u64>)) {
    let Ok(mut client) = Client::connect(socket) else { return };
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(STEP);
        let Ok(status) = client.call::<Status>("status", &Nothing {}, patience) else { break };
        if matches!(status.activity, Activity::Saving | Activity::Migrating) {
            show(status.done, status.of, status.migration.map(|migration| migration.rate));
        }
    }
}

fn activity(status: &Status) -> String {
    const WAITS: &str = "its devices wait for what they have in flight\n";
    match status.activity {
        Activity::Running => "running\n".to_owned(),
        Activity::Pausing => format!("pausing: {WAITS}"),
        Activity::Paused => "paused\n".to_owned(),
        Activity::Saving if status.waits_for_devices => format!("saving: {WAITS}"),
        Activity::Saving => format!("saving: {} of {}\n", Size(status.done), Size(status.of)),
        Activity::Migrating => {
            let MigrationStatus { rounds, sent, rate, unknown } = status.migration.unwrap_or_default();
            let what = match (unknown, status.waits_for_devices) {
                (true, _) => {
                    "nobody says whether it runs there: `resume` takes it back, `quit` gives it up\n".to_owned()
                }
                (false, true) => WAITS.to_owned(),
                (false, false) => format!("{} of {}, round {}\n", Size(status.done), Size(status.of), rounds + 1),
            };
            format!("migrating: {} sent, {} MiB/s: {what}", Size(sent), rate >> 20)
        }
        Activity::Other => "?\n".to_owned(),
    }
}

fn moved(moved: Migrated) -> String {
    let Migrated { memory, sent, rounds, standstill_us, elapsed_us } = moved;
    let rate = (u128::from(sent) * 1_000_000 / u128::from(elapsed_us.max(1))) >> 20;
    format!(
        "gone: {} sent of {} in {rounds} rounds, {}, {rate} MiB/s; the guest stood still for {}\n",
        Size(sent),
        Size(memory),
        milliseconds(elapsed_us),
        milliseconds(standstill_us)
    )
}

fn balloon(info: &BalloonInfo) -> String {
    let mut text = format!("target: {}\nactual: {}\n", Size(info.target), Size(info.actual));
    for (name, value) in &info.guest {
        let is_count = name.ends_with("faults");
        let value = if is_count { value.to_string() } else { Size(*value).to_string() };
        let _ = writeln!(text, "  {name:<12} {value:>12}");
    }
    text
}

fn figures(stats: &Stats) -> String {
    let first = stats.first_instruction_us.map_or("never".to_owned(), milliseconds);
    let mut text = format!(
        "first instruction: {first}\nrunning for: {}\nrestarts: {}\nexits: {}\n",
        milliseconds(stats.elapsed_us),
        stats.restarts,
        stats.exits.values().sum::<u64>()
    );
    let mut rows: Vec<_> = stats.exits.iter().collect();
    rows.sort_unstable_by_key(|(kind, count)| (std::cmp::Reverse(**count), *kind));
    for (kind, count) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {kind:<18} {count:>12}");
    }
    text
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}
