//! What goes over the control socket: requests, responses, errors.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use skep_block::BlockError;
use skep_config::{Conflict, Disk, Net, Size};

use crate::Error;
use crate::machine::{BalloonInfo, DeviceError, DeviceInfo, HotplugError, Plugged};
use crate::state::SnapshotError;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
#[path = "protocol_test.rs"]
pub(crate) mod test;

/// The protocol's version.
pub const VERSION: u32 = 1;
/// Bytes of a request's line at most, its end not counted.
pub const MOST_LINE: usize = 64 << 10;

/// The first line that a client reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// [`VERSION`].
    pub protocol: u32,
    /// skep's own version.
    pub skep: String,
}

/// What a client can ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `device-list`: a [`DeviceList`].
    DeviceList,
    /// `disk-add` of a [`DiskAdd`]: a [`Plugged`].
    DiskAdd(Box<Disk>),
    /// `net-add` of a [`NetAdd`]: a [`Plugged`].
    NetAdd(Net),
    /// `device-remove`: a [`Removed`].
    DeviceRemove(DeviceRemove),
    /// `disk-resize` of a [`DiskResize`]: a [`Resized`].
    DiskResize(DiskResize),
    /// `balloon` of a [`BalloonTarget`]: a [`BalloonInfo`].
    Balloon(BalloonTarget),
    /// `console-resize` of a [`ConsoleResize`]: [`Nothing`].
    ConsoleResize(ConsoleResize),
    /// `stats`: [`Stats`].
    Stats,
    /// `status`: [`Status`].
    Status,
    /// `pause`: [`Nothing`]. When it is answered, nothing moves: neither CPUs nor what devices had begun.
    Pause,
    /// `resume`: [`Nothing`].
    Resume,
    /// `save` of a [`Save`]: a [`Saved`]. The guest stands still while its memory is written.
    Save(Save),
    /// `save-cancel`: [`Nothing`]. The guest goes on, and what was written is removed; who asked for the save is told.
    SaveCancel,
    /// `migrate` of a [`Migrate`]: a [`Migrated`], when the machine has gone; the process ends then.
    Migrate(Migrate),
    /// `migrate-cancel`: [`Nothing`]. The machine stays.
    MigrateCancel,
    /// `power-button`: a [`Pressed`].
    PowerButton,
    /// `renew-generation`: a [`Renewed`].
    RenewGeneration,
    /// `reset`: [`Nothing`]. As if the guest had asked for it.
    Reset,
    /// `quit`: [`Nothing`]. The machine ends at once.
    Quit,
}

/// The commands' names.
const COMMANDS: [&str; 19] = [
    "device-list",
    "disk-add",
    "net-add",
    "device-remove",
    "disk-resize",
    "balloon",
    "console-resize",
    "stats",
    "power-button",
    "renew-generation",
    "status",
    "pause",
    "resume",
    "save",
    "save-cancel",
    "migrate",
    "migrate-cancel",
    "reset",
    "quit",
];

/// Arguments of `disk-add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskAdd {
    /// As in a config file: the flag's text, or a table. A relative path begins at skep's working folder.
    pub disk: Disk,
}

/// Arguments of `net-add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetAdd {
    /// As in a config file: the flag's text, or a table.
    pub net: Net,
}

/// Arguments of `device-remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceRemove {
    /// The device.
    pub id: String,
    /// Answer when it has gone, not when the guest has been asked.
    #[serde(default = "yes")]
    pub wait: bool,
    /// Ask a guest that was asked before and has not heard.
    #[serde(default)]
    pub again: bool,
}

fn yes() -> bool {
    true
}

/// Arguments of `disk-resize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskResize {
    /// The disk.
    pub id: String,
}

/// Arguments of `save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Save {
    /// The snapshot, which is not there yet. A relative path begins at skep's working folder.
    pub folder: PathBuf,
    /// End the machine when it is saved, without letting the guest go on.
    #[serde(default)]
    pub quit: bool,
    /// Follow what the guest changes from here on, so that differences can be saved.
    #[serde(default)]
    pub track: bool,
    /// Save only what differs from the last snapshot that was tracked from, and track from here on.
    #[serde(default)]
    pub diff: bool,
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Saved {
    /// Bytes of the guest's memory.
    pub memory: u64,
    /// Bytes of it that are something else than zeroes, and were written.
    pub data: u64,
    /// How long the guest stood still for it, in microseconds, so far as it goes on.
    pub standstill_us: u64,
    /// How long all of it took, in microseconds.
    pub elapsed_us: u64,
}

/// Arguments of `migrate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Migrate {
    /// Where a skep waits that was started by `skep receive`: `unix:PATH` or `tcp:HOST:PORT`.
    pub to: String,
    /// How long the guest may stand still for the last of its memory, in milliseconds.
    #[serde(default = "downtime")]
    pub downtime_ms: u64,
}

fn downtime() -> u64 {
    300
}

/// A machine that has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Migrated {
    /// Bytes of the guest's memory.
    pub memory: u64,
    /// Bytes of it that were sent, some of them again and again.
    pub sent: u64,
    /// How often memory was gone through while the guest ran.
    pub rounds: u32,
    /// How long the guest stood still, in microseconds.
    pub standstill_us: u64,
    /// How long all of it took, in microseconds.
    pub elapsed_us: u64,
}

/// How far a migration has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationStatus {
    /// How often memory has been gone through.
    pub rounds: u32,
    /// Bytes of memory that have been sent.
    pub sent: u64,
    /// Bytes of memory that have been sent in a second, since the first was.
    #[serde(default)]
    pub rate: u64,
    /// The other side has been told that the machine is its own, and does not answer: the machine stands still until somebody decides.
    pub unknown: bool,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// The guest runs.
    Running,
    /// It is to stand still, and its devices wait for what they have in flight.
    Pausing,
    /// It stands still until it is resumed.
    Paused,
    /// It stands still while its memory is written.
    Saving,
    /// It runs, while its memory is sent to another host; or stands, for the last of it.
    Migrating,
    /// Something of a later version.
    #[serde(other)]
    Other,
}

/// What a machine is doing, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub activity: Activity,
    /// Bytes of memory that have been written or passed over by the save that goes on.
    pub done: u64,
    /// Bytes that there are for it.
    pub of: u64,
    /// Of a machine that migrates: `done` and `of` are those of this time that memory is gone through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationStatus>,
    /// What it is to stand still for waits until its devices have done what they have in flight.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_devices: bool,
}

/// Arguments of `balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonTarget {
    /// How much the guest is to give back, as in a config: `"256M"`. Where it is missing, nothing changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// Arguments of `console-resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleResize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// No arguments, or nothing to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

/// The devices on PCI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// In the order in which they came.
    pub devices: Vec<DeviceInfo>,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// The device has gone, and what it used on the host is free. Else the guest has been asked.
    pub gone: bool,
}

/// A disk's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// Bytes, now.
    pub size: u64,
}

/// What became of a press of the power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressed {
    /// The guest listens to the button, as far as can be told. What it does then is its own affair.
    pub heard: bool,
}

/// What became of a new generation id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// The guest has one: its firmware has put it into its place.
    pub told: bool,
}

/// What has happened so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stats {
    /// Since skep began, in microseconds.
    pub elapsed_us: u64,
    /// From skep's beginning to the guest's first instruction, in microseconds.
    pub first_instruction_us: Option<u64>,
    /// How often the machine was restarted.
    pub restarts: u32,
    /// How often vCPUs have left guest code, by kind.
    pub exits: BTreeMap<String, u64>,
}

/// What a response tells of success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The devices.
    DeviceList(DeviceList),
    /// What was plugged.
    Plugged(Plugged),
    /// What became of a removal.
    Removed(Removed),
    /// A disk's size.
    Resized(Resized),
    /// A balloon.
    Balloon(BalloonInfo),
    /// Figures.
    Stats(Stats),
    /// What it is doing.
    Status(Status),
    /// What was saved.
    Saved(Saved),
    /// The machine has gone.
    Migrated(Migrated),
    /// The power button was pressed.
    Pressed(Pressed),
    /// The generation id is a new one.
    Renewed(Renewed),
    /// It is done.
    Nothing(Nothing),
}

/// What kind of error it is, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The line is no request.
    BadRequest,
    /// There is no such command.
    UnknownCommand,
    /// The command's arguments are wrong.
    BadArguments,
    /// The config does not allow it.
    Conflict,
    /// Another device has the name.
    IdTaken,
    /// Another device has the place.
    PlaceTaken,
    /// No root port is free.
    NoFreePort,
    /// There is no device of that name.
    UnknownId,
    /// The device is on bus 0.
    NotRemovable,
    /// The guest has been asked already.
    AlreadyAsked,
    /// The machine was restarted before the guest let go.
    Restarted,
    /// The image is in use by somebody else.
    FileLocked,
    /// The device can't be made, or the host refuses.
    Failed,
    /// The machine is being stopped.
    Busy,
    /// The machine has ended.
    Ended,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

/// Why a request was not granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", mend.as_ref().map(|mend| format!("\n  try: {mend}")).unwrap_or_default())]
pub struct Failure {
    /// Of which kind it is.
    pub kind: ErrorKind,
    /// What failed, on what.
    pub message: String,
    /// What would mend it.
    #[serde(rename = "try", default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Failure {
    /// Of that kind; lines of `text` that begin with `try:` are the mend.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let text = text.into();
        let (message, mend) = match text.split_once("\n  try: ") {
            Some((message, mend)) => (message.to_owned(), Some(mend.to_owned())),
            None => (text, None),
        };
        Self { kind, message, mend }
    }

    /// From an error and its causes.
    pub(crate) fn of(kind: ErrorKind, error: &(dyn StdError + 'static)) -> Self {
        let mut failure = Self::new(kind, error.to_string());
        let mut next = error.source();
        while let Some(cause) = next {
            let cause_said = Self::new(kind, cause.to_string());
            if !failure.message.contains(&cause_said.message) {
                failure.message = format!("{}: {}", failure.message, cause_said.message);
            }
            failure.mend = failure.mend.or(cause_said.mend);
            next = cause.source();
        }
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Config(Conflict::SameId { .. }) => ErrorKind::IdTaken,
            Error::Config(Conflict::PlaceTaken { .. }) => ErrorKind::PlaceTaken,
            Error::Config(Conflict::NoFreePort { .. }) => ErrorKind::NoFreePort,
            Error::Config(_) => ErrorKind::Conflict,
            Error::Device { source, .. } => match &**source {
                DeviceError::Disk { source: BlockError::Locked { .. }, .. } => ErrorKind::FileLocked,
                _ => ErrorKind::Failed,
            },
            _ => ErrorKind::Failed,
        };
        Self::of(kind, &error)
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        let kind = match &error {
            SnapshotError::Busy(_) => ErrorKind::Busy,
            SnapshotError::Ended => ErrorKind::Ended,
            _ => ErrorKind::Failed,
        };
        Self::of(kind, &error)
    }
}

impl From<HotplugError> for Failure {
    fn from(error: HotplugError) -> Self {
        let kind = match &error {
            HotplugError::UnknownId { .. } | HotplugError::NoDevice { .. } => ErrorKind::UnknownId,
            HotplugError::NotRemovable { .. } | HotplugError::LastNamespace { .. } => ErrorKind::NotRemovable,
            HotplugError::AlreadyAsked { .. } => ErrorKind::AlreadyAsked,
            HotplugError::NoDisk { .. } => ErrorKind::BadArguments,
            HotplugError::Restarted { .. } => ErrorKind::Restarted,
            HotplugError::Pci(_) | HotplugError::Disk(_) => ErrorKind::Failed,
        };
        Self::of(kind, &error)
    }
}

/// A request as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form<'a> {
    id: Option<u64>,
    command: String,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The client's number for it.
    pub id: Option<u64>,
    /// What it wants, or why that can't be told.
    pub command: Result<Command, Failure>,
}

impl Request {
    /// Reads a line.
    pub fn read(line: &[u8]) -> Self {
        match serde_json::from_slice::<Form<'_>>(line) {
            Ok(form) => Self { id: form.id, command: Command::read(&form.command, form.arguments) },
            Err(error) => {
                let text = format!(
                    "this is no request: {error}\n  try: {{\"id\":1,\"command\":\"device-list\"}}, one such object to a line"
                );
                Self { id: None, command: Err(Failure::new(ErrorKind::BadRequest, text)) }
            }
        }
    }
}

impl Command {
    fn read(name: &str, arguments: Option<&RawValue>) -> Result<Self, Failure> {
        let text = arguments.map_or("{}", RawValue::get);
        Ok(match name {
            "device-list" => Self::DeviceList,
            "disk-add" => Self::DiskAdd(Box::new(read::<DiskAdd>(name, text)?.disk)),
            "net-add" => Self::NetAdd(read::<NetAdd>(name, text)?.net),
            "device-remove" => Self::DeviceRemove(read(name, text)?),
            "disk-resize" => Self::DiskResize(read(name, text)?),
            "balloon" => Self::Balloon(read(name, text)?),
            "console-resize" => Self::ConsoleResize(read(name, text)?),
            "stats" => Self::Stats,
            "status" => Self::Status,
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "save" => Self::Save(read(name, text)?),
            "save-cancel" => Self::SaveCancel,
            "migrate" => Self::Migrate(read(name, text)?),
            "migrate-cancel" => Self::MigrateCancel,
            "power-button" => Self::PowerButton,
            "renew-generation" => Self::RenewGeneration,
            "reset" => Self::Reset,
            "quit" => Self::Quit,
            _ => {
                let text = format!("there is no command `{name}`\n  try: one of {}", COMMANDS.join(", "));
                return Err(Failure::new(ErrorKind::UnknownCommand, text));
            }
        })
    }
}

fn read<T: DeserializeOwned>(name: &str, arguments: &str) -> Result<T, Failure> {
    let wrong = |error: serde_json::Error| {
        // Its place in the line is of no use to a person.
        let text = error.to_string();
        let text = text.split_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        Failure::new(ErrorKind::BadArguments, format!("{name}: {text}"))
    };
    serde_json::from_str(arguments).map_err(wrong)
}

#[derive(Serialize)]
struct Response<'a> {
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
}

/// A response's line, its end included.
pub(super) fn response(id: Option<u64>, outcome: &Result<Answer, Failure>) -> Vec<u8> {
    line(&Response { id, result: outcome.as_ref().ok(), error: outcome.as_ref().err() })
}

/// An object's line, its end included.
pub(super) fn line(object: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(object).expect("what goes to a client is made of texts and numbers");
    line.push(b'\n');
    line
}
