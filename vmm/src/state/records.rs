//! The records of a snapshot, by name.

use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use skep_state::{Record, State, StateError, ensure};

use super::SnapshotError;

/// A record by its name in the machine: `vcpu/0`, `board/i8254`, `device/disk0`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NamedRecord {
    /// The name.
    #[n(0)]
    pub name: String,
    /// The record.
    #[n(1)]
    pub record: Record,
    /// A reader that does not know it may pass over it.
    #[n(2)]
    #[cbor(default)]
    pub optional: bool,
}

impl NamedRecord {
    /// One that a reader must know.
    pub fn new(name: impl Into<String>, record: Record) -> Self {
        Self { name: name.into(), record, optional: false }
    }
}

/// All of a snapshot's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Records {
    /// In the order in which they were saved.
    #[n(0)]
    pub records: Vec<NamedRecord>,
}

impl Records {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let malformed = |reason: String| SnapshotError::Records { reason };
        let mut decoder = minicbor::Decoder::new(bytes);
        let records: Self = decoder.decode().map_err(|e| malformed(e.to_string()))?;
        if decoder.position() != bytes.len() {
            return Err(malformed("something follows their end".to_owned()));
        }
        records.are_apart()?;
        Ok(records)
    }

    /// Refuses two of one name.
    pub(crate) fn are_apart(&self) -> Result<(), SnapshotError> {
        let mut names: Vec<_> = self.records.iter().map(|record| &record.name).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(SnapshotError::Records { reason: format!("`{}` is there twice", pair[0]) }),
            None => Ok(()),
        }
    }

    /// Encoded.
    pub fn bytes(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("a Vec takes all that is written to it")
    }

    /// The record of that name.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`].
    pub fn get(&self, name: &str) -> Result<&Record, SnapshotError> {
        let found = self.records.iter().find(|record| record.name == name);
        found.map(|found| &found.record).ok_or_else(|| SnapshotError::Missing { name: name.to_owned() })
    }

    /// The state of that name.
    ///
    /// # Errors
    /// [`SnapshotError::Missing`], and [`SnapshotError::Record`] for one that does not hold.
    pub fn open<S: State>(&self, name: &str) -> Result<S, SnapshotError> {
        self.get(name)?.open().map_err(refused(name))
    }

    /// Refuses a required record that is none of `known`, by its name.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`].
    pub fn all_known(&self, known: impl Fn(&str) -> bool) -> Result<(), SnapshotError> {
        match self.records.iter().find(|record| !record.optional && !known(&record.name)) {
            Some(NamedRecord { name, record, .. }) => {
                Err(SnapshotError::Unknown { name: name.clone(), id: record.id.clone() })
            }
            None => Ok(()),
        }
    }
}

/// Names the record that is refused.
pub(crate) fn refused(name: &str) -> impl FnOnce(StateError) -> SnapshotError {
    let name = name.to_owned();
    move |source| SnapshotError::Record { name, source }
}

/// The record's name of what the machine as a whole is.
pub(crate) const MACHINE: &str = "machine";
/// The record's name of the disks.
pub(crate) const DISKS: &str = "disks";
/// The record's name of what the CPUs are.
pub(crate) const CPUS: &str = "cpus";
/// The record's name of the backend's own interrupt controllers.
pub(crate) const INTERRUPTS: &str = "interrupts";

/// The record's name of the firmware.
pub(crate) const FIRMWARE: &str = "firmware";

/// The record's name of a vCPU.
pub(crate) fn vcpu(index: usize) -> String {
    format!("vcpu/{index}")
}

/// A number by a name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NamedNumber {
    /// Whose.
    #[n(0)]
    pub name: String,
    /// The number.
    #[n(1)]
    pub number: u32,
}

/// What the machine as a whole is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MachineState {
    /// Its config, in TOML, with what was plugged in while it ran.
    #[n(0)]
    pub config: String,
    /// Guest time, in nanoseconds since the first power-on.
    #[n(1)]
    pub guest_nanos: u64,
    /// The wall clock as the guest's hardware tells it, in nanoseconds since the Unix epoch.
    #[n(2)]
    pub wall_nanos: i64,
    /// The host's clock at that moment, in nanoseconds since the Unix epoch.
    #[n(3)]
    pub host_nanos: i64,
    /// The clock that guests read without an exit: kvmclock's nanoseconds (x86_64), CNTVCT_EL0 (aarch64).
    #[n(4)]
    pub guest_clock: u64,
    /// NVMe namespaces by the names of their disks: their numbers are not those of the config where disks came and went.
    #[n(5)]
    pub namespaces: Vec<NamedNumber>,
    /// Controllers, with the number of the namespace that came last while the guest ran.
    #[n(6)]
    pub last_namespaces: Vec<NamedNumber>,
}

/// Bytes of a config's text at most.
const MOST_CONFIG: usize = 1 << 20;
/// Namespaces that a controller has at most.
const NAMESPACES: u32 = 256;
/// Bytes of a name, and of a path.
const NAME: usize = 255;
const PATH: usize = 4096;
/// No clock has gone on for longer: centuries.
pub(crate) const CENTURIES: u64 = 1 << 62;

fn each_once<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let mut known = BTreeSet::new();
    names.into_iter().all(|name| known.insert(name))
}

impl State for MachineState {
    const ID: &'static str = "skep-machine";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let id = Self::ID;
        ensure(self.config.len() <= MOST_CONFIG, id, "config", self.config.len(), "no config has more than 1 MiB")?;
        let clock = self.guest_nanos;
        ensure(clock <= CENTURIES, id, "guest_nanos", clock, "no clock has gone on for centuries")?;
        let clock = self.guest_clock;
        ensure(clock <= CENTURIES, id, "guest_clock", clock, "no clock has gone on for centuries")?;
        ensure(self.wall_nanos >= 0, id, "wall_nanos", self.wall_nanos, "clocks begin in 1970")?;
        ensure(self.host_nanos >= 0, id, "host_nanos", self.host_nanos, "clocks begin in 1970")?;
        let own = each_once(self.namespaces.iter().map(|namespace| namespace.name.as_str()));
        ensure(own, id, "namespaces", self.namespaces.len(), "each disk is there once")?;
        let own = each_once(self.last_namespaces.iter().map(|last| last.name.as_str()));
        ensure(own, id, "last_namespaces", self.last_namespaces.len(), "each controller is there once")?;
        for namespace in &self.namespaces {
            let number = namespace.number;
            ensure(
                (1..=NAMESPACES).contains(&number),
                id,
                "namespaces.number",
                number,
                "namespaces' numbers are 1 to 256",
            )?;
            let length = namespace.name.len();
            ensure((1..=NAME).contains(&length), id, "namespaces.name", length, "a name has 1 to 255 bytes")?;
        }
        for last in &self.last_namespaces {
            let number = last.number;
            ensure(number <= NAMESPACES, id, "last_namespaces.number", number, "namespaces' numbers end at 256")?;
            let length = last.name.len();
            ensure((1..=NAME).contains(&length), id, "last_namespaces.name", length, "a name has 1 to 255 bytes")?;
        }
        Ok(())
    }
}

/// Images behind one another at most.
pub(crate) const MOST_BEHIND: usize = 64;

/// A disk's image on the host, at the moment of saving.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DiskReference {
    /// The disk's name.
    #[n(0)]
    pub id: String,
    /// The image's path.
    #[n(1)]
    pub path: String,
    /// How its content is stored: `raw` or `qcow2`.
    #[n(2)]
    pub format: String,
    /// The disk's size in bytes.
    #[n(3)]
    pub size: u64,
    /// When the image was last changed: nanoseconds since the Unix epoch. Absent where that can't be known, of a block device. Any value.
    #[n(4)]
    pub changed_nanos: Option<i64>,
    /// What is behind the image, one after the other. Absent where nobody has looked.
    #[n(5)]
    pub behind: Option<Vec<BackingReference>>,
}

/// An image behind a disk's on the host, at the moment of saving.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BackingReference {
    /// Its path.
    #[n(0)]
    pub path: String,
    /// When it was last changed, as the image itself. Any value.
    #[n(1)]
    pub changed_nanos: Option<i64>,
}

/// The disks' images, which a snapshot refers to and does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct DisksState {
    /// In the order of the config.
    #[n(0)]
    pub disks: Vec<DiskReference>,
}

impl State for DisksState {
    const ID: &'static str = "skep-disks";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        let own = each_once(self.disks.iter().map(|disk| disk.id.as_str()));
        ensure(own, Self::ID, "disks", self.disks.len(), "each disk is there once")?;
        for disk in &self.disks {
            let length = disk.id.len();
            ensure((1..=NAME).contains(&length), Self::ID, "disks.id", length, "a name has 1 to 255 bytes")?;
            let length = disk.path.len();
            ensure((1..=PATH).contains(&length), Self::ID, "disks.path", length, "a path has 1 to 4096 bytes")?;
            let known = ["raw", "qcow2"].contains(&disk.format.as_str());
            ensure(known, Self::ID, "disks.format", &disk.format, "it is `raw` or `qcow2`")?;
            ensure(disk.size > 0, Self::ID, "disks.size", disk.size, "no disk is empty")?;
            let behind = disk.behind.as_ref().map_or(0, Vec::len);
            ensure(behind <= MOST_BEHIND, Self::ID, "disks.behind", behind, "no disk has more than 64 images")?;
            for length in disk.behind.iter().flatten().map(|image| image.path.len()) {
                ensure(
                    (1..=PATH).contains(&length),
                    Self::ID,
                    "disks.behind.path",
                    length,
                    "a path has 1 to 4096 bytes",
                )?;
            }
        }
        Ok(())
    }
}

/// The firmware's code, which a snapshot refers to and does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct FirmwareState {
    /// Bytes.
    #[n(0)]
    pub size: u64,
    /// The sum, modulo 2^64, of the XXH64 of each page that is no zeroes, with its number as the seed. Any value.
    #[n(1)]
    pub xxh64: u64,
}

impl State for FirmwareState {
    const ID: &'static str = "skep-firmware";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        ensure(self.size > 0, Self::ID, "size", self.size, "no firmware is empty")
    }
}
