//! Errors, and the nearest name for one that was mistyped.

use std::io;
use std::path::PathBuf;

use skep_hypervisor::ArchKind;

use crate::machine::MachineVersion;
use crate::place::Place;

#[cfg(test)]
#[path = "error_test.rs"]
mod test;

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("config file `{}` can't be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is wrong at one place.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong there.
        problem: Problem,
    },
    /// Keys contradict each other, or the machine.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The config can't be written as TOML.
    #[error("the config can't be written as TOML: {0}")]
    Write(String),
}

/// What is wrong with a key or a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not TOML.
    #[error("{0}")]
    Syntax(String),
    /// The problem lies under a key.
    #[error("`{key}`: {problem}")]
    In {
        /// The keys that lead to it, joined by dots.
        key: String,
        /// The problem.
        problem: Box<Problem>,
    },
    /// No such key.
    #[error("unknown key `{key}`: {hint}")]
    UnknownKey {
        /// The key as written.
        key: String,
        /// What was probably meant, or what there is.
        hint: String,
    },
    /// No such choice.
    #[error("`{choice}` is not one of the choices: {hint}")]
    UnknownChoice {
        /// The value as written.
        choice: String,
        /// What was probably meant, or what there is.
        hint: String,
    },
    /// A key that must be there is not.
    #[error("key `{0}` is missing")]
    MissingKey(&'static str),
    /// A key twice.
    #[error("key `{0}` is given twice")]
    DuplicateKey(&'static str),
    /// A value of another kind.
    #[error("found {found}, expected {expected}")]
    Mismatch {
        /// What was written.
        found: String,
        /// What would do.
        expected: String,
    },
    /// Anything else, in full.
    #[error("{0}")]
    Other(String),
}

impl Problem {
    pub(crate) fn unknown_key(key: &str, known: &[&'static str]) -> Self {
        let outermost = known.contains(&"boot");
        let nested = if outermost { &NESTED[..] } else { &[] };
        let hint = match nearest(key, known.iter().chain(nested)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the keys here are {}", known.join(", ")),
        };
        Problem::UnknownKey { key: key.to_owned(), hint }
    }

    /// That `choice` is none of the `known` ones, and which was probably meant.
    pub fn unknown_choice(choice: &str, known: &[&'static str]) -> Self {
        let hint = match nearest(choice, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("they are {}", known.join(", ")),
        };
        Problem::UnknownChoice { choice: choice.to_owned(), hint }
    }
}

/// Keys inside tables, which are easily written outside of them.
const NESTED: [&str; 10] = [
    "boot.kernel",
    "boot.initrd",
    "boot.cmdline",
    "boot.dtb",
    "boot.firmware",
    "boot.firmware-vars",
    "on.power-off",
    "on.reset",
    "on.panic",
    "on.triple-fault",
];

/// The name that a mistyped one is most like, with or without its table: at most a third of its letters wrong, added, left out or
/// swapped.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a &'static str>) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let distance = |candidate: &str| strsim::damerau_levenshtein(&name, candidate);
    let either = |candidate: &str| {
        let inner = candidate.split_once('.').map(|(_, inner)| distance(inner));
        inner.into_iter().chain([distance(candidate)]).min()
    };
    let (distance, near) = known.into_iter().map(|candidate| (either(candidate), *candidate)).min()?;
    (distance? * 3 <= name.chars().count()).then_some(near)
}

/// Keys that contradict each other, or the machine. Keys are named as in the file; the flag of `boot.kernel` is `--kernel`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// There is neither a kernel nor firmware.
    #[error(
        "there is nothing to boot\n  try: a kernel, by `--kernel FILE`; firmware, by `--firmware FILE`; or `skep hello`, for a guest that is built in"
    )]
    NothingToBoot,
    /// Both a device tree and firmware.
    #[error("both `boot.dtb` and `boot.firmware` are given\n  try: without `boot.dtb`: firmware describes the machine")]
    DtbAndFirmware,
    /// A key that means something only beside another one.
    #[error("`{key}` is given without `{needs}`\n  try: give `{needs}` too, or leave `{key}` out")]
    Without {
        /// The key that is there.
        key: &'static str,
        /// The key that it needs.
        needs: &'static str,
    },
    /// More CPUs than an interrupt controller can have.
    #[error("{cpus} CPUs are more than a GICv2 can have, {limit}\n  try: `--irqchip gicv3`, or at most {limit} CPUs")]
    Gicv2Cpus {
        /// The most that there may be.
        cpus: u32,
        /// How many the controller takes.
        limit: u32,
    },
    /// A key that machines of another architecture have.
    #[error("`{key}` is for {needs} guests, and machine {machine} is {}\n  try: leave `{key}` out", machine.arch())]
    OtherArch {
        /// The key.
        key: &'static str,
        /// The architecture that has it.
        needs: ArchKind,
        /// The machine of this config.
        machine: MachineVersion,
    },
    /// A path that is none.
    #[error("`{key}` is empty: a path is needed")]
    EmptyPath {
        /// The key.
        key: &'static str,
    },
    /// Console and control at one socket.
    #[error("`serial` and `control` are both at {}\n  try: another path for one of them", path.display())]
    SameSocket {
        /// The path.
        path: PathBuf,
    },
    /// Two devices of one name.
    #[error("two devices are called `{id}`\n  try: another `id` for one of them")]
    SameId {
        /// The name.
        id: String,
    },
    /// Two devices in one place.
    #[error("`{first}` and `{second}` are both at {place}\n  try: another `place` for one of them, or none")]
    PlaceTaken {
        /// The place.
        place: Place,
        /// The device that the config names first.
        first: String,
        /// The other one.
        second: String,
    },
    /// A place that the machine does not have.
    #[error(
        "`{id}` is at {place}, which is no free place of machine {machine} with {ports} root ports\n  \
         try: root:1 to root:15, or port:NUMBER with `pci-ports` above NUMBER"
    )]
    NoPlace {
        /// The device.
        id: String,
        /// The place that it is given.
        place: Place,
        /// The machine.
        machine: MachineVersion,
        /// Its root ports.
        ports: u8,
    },
    /// More devices than places.
    #[error(
        "bus 0 has no place left for `{id}`\n  try: root ports, by `pci-ports`; or disks that share a `controller`"
    )]
    NoPlaceLeft {
        /// The device.
        id: String,
    },
    /// A device that is to be plugged has no root port.
    #[error("no root port is free{taken}\n  try: {mend}")]
    NoFreePort {
        /// What is in those that there are, or that there are none.
        taken: String,
        /// What would help.
        mend: &'static str,
    },
    /// A device that is to be plugged is to be where nothing can be.
    #[error(
        "place {place} takes no device while the guest runs\n  try: place=port:NUMBER, or no place, for the first free port"
    )]
    NotPluggable {
        /// The place.
        place: Place,
    },
    /// A device with a vhost-user backend is to be plugged.
    #[error(
        "a device with a vhost-user backend can't come while the guest runs\n  \
         try: give it when the machine starts, with place=port:NUMBER if it is to leave"
    )]
    PluggedBackend,
    /// Two devices of which firmware can't tell which is first.
    #[error(
        "`{first}` and `{second}` both have bootindex {index}\n  try: another `bootindex` for one of them, or none"
    )]
    SameBootIndex {
        /// The index.
        index: u16,
        /// The device that the config names first.
        first: String,
        /// The other one.
        second: String,
    },
    /// Where a device that is to be plugged stands among those that firmware boots.
    #[error("`bootindex` is what firmware is told when the machine starts\n  try: without it")]
    LateBootIndex,
    /// Too many root ports.
    #[error("`pci-ports` is {ports}\n  try: {most} at most")]
    Ports {
        /// How many were asked for.
        ports: u8,
        /// How many there can be.
        most: u8,
    },
    /// Too many disks on one controller.
    #[error("controller `{controller}` has more than {most} disks\n  try: another `controller` for some of them")]
    Namespaces {
        /// The controller.
        controller: String,
        /// How many it can have.
        most: usize,
    },
    /// What the controller has is given for a disk that is not its first.
    #[error("`{id}`: `{key}` is that of controller `{controller}`\n  try: give it with the controller's first disk")]
    ControllersOwn {
        /// The disk.
        id: String,
        /// The key.
        key: &'static str,
        /// The controller.
        controller: String,
    },
}
