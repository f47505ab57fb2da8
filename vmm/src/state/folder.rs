//! A snapshot's folder: written whole or not at all, and opened with distrust.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags, mkdir, renameat_with};
use rustix::io::Errno;
use serde::Deserialize;
use skep_block::image::sync_name;
use skep_config::{ArchKind, Config, full_path};
use skep_memory::PAGE_SIZE;
use xxhash_rust::xxh64::xxh64;

use super::changes::{self, Origin, Runs};
use super::header::{self, Base, CONTAINER, Checksum, Header, MAGIC, MemoryFile, REQUIRES_BASE, RamRange, RecordsFile};
use super::records::{MACHINE, MachineState, Records};
use super::{SnapshotError, Wanted, memory};

#[cfg(test)]
#[path = "folder_test.rs"]
mod test;

/// The header: JSON.
pub const HEADER: &str = "header.json";
/// The records: CBOR.
pub const RECORDS: &str = "records.cbor";
/// Guest memory.
pub const MEMORY: &str = "memory";

/// The pages that a difference has.
pub const CHANGED: &str = "changed";

/// Differences in a chain at most. Each costs a look at its pages when a machine is restored, and an open file, of which a process has often 1024.
const MOST_LAYERS: usize = 256;
/// Bytes of the records at most.
const MOST_RECORDS: u64 = 256 << 20;

/// Whether a folder of that name is a draft: `.NAME.PID.part`.
fn is_draft(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let Some(name) = name.strip_suffix(b".part").filter(|name| name.starts_with(b".")) else { return false };
    let number = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    number.len() < name.len() - 1 && !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

fn host(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Host { what, path, source }
}

/// A snapshot that is being written, under a name of its own. What is not finished goes when this is dropped.
pub struct Draft {
    target: PathBuf,
    folder: PathBuf,
    finished: bool,
}

impl Draft {
    /// Makes the folder, beside `target`, at which nothing may be.
    ///
    /// # Errors
    /// [`SnapshotError::Exists`] and [`SnapshotError::Host`].
    pub fn begin(target: &Path) -> Result<Self, SnapshotError> {
        let Some(name) = target.file_name() else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it has no name");
            return Err(host("make", target)(source));
        };
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists { path: target.to_owned() });
        }
        if is_draft(name) {
            let why = "a save that has not ended has such a name";
            return Err(host("make", target)(io::Error::new(io::ErrorKind::InvalidInput, why)));
        }
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            let why = "there is no such folder";
            return Err(host("make a snapshot in", parent)(io::Error::new(io::ErrorKind::NotFound, why)));
        }
        let mut part = OsString::from(".");
        part.push(name);
        part.push(format!(".{}.part", std::process::id()));
        let folder = target.with_file_name(part);
        // What a process of that number has left behind.
        let _ = fs::remove_dir_all(&folder);
        DirBuilder::new().mode(0o700).create(&folder).map_err(host("make", &folder))?;
        Ok(Self { target: target.to_owned(), folder, finished: false })
    }

    /// Where a file of it is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A new file of it.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub fn create(&self, name: &str) -> Result<File, SnapshotError> {
        let path = self.path(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(host("make", &path))
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.create(name)?.write_all(bytes).map_err(host("write", &self.path(name)))
    }

    fn sync(&self, name: &str) -> Result<(), SnapshotError> {
        let path = self.path(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(host("write", &path))
    }

    /// What the header of a difference to `origin` says of it, whose changed pages are written here.
    ///
    /// # Errors
    /// [`SnapshotError::Host`].
    pub(crate) fn base(&self, origin: &Origin, runs: &Runs) -> Result<Base, SnapshotError> {
        let bytes = changes::encode(runs);
        self.write(CHANGED, &bytes)?;
        // Snapshots that lie side by side may be moved together.
        let target = full_path(&self.target);
        let beside = origin.folder.parent() == target.parent();
        let name = origin.folder.file_name().filter(|_| beside);
        let folder = name.map_or_else(|| origin.folder.clone(), |name| Path::new("..").join(name));
        Ok(Base { folder, header: origin.header, changed: RecordsFile::of(&bytes) })
    }

    /// Makes what was written last, then writes the header and gives the folder its name, if it is still `wanted`. Answers what it is known by.
    ///
    /// # Errors
    /// [`SnapshotError::Host`], and [`SnapshotError::Exists`] where something has come to the place meanwhile; why it is not wanted.
    pub(crate) fn finish(mut self, header: &Header, wanted: &Wanted) -> Result<Origin, SnapshotError> {
        self.sync(MEMORY)?;
        self.sync(RECORDS)?;
        if header.base.is_some() {
            self.sync(CHANGED)?;
        }
        let mut text = serde_json::to_vec_pretty(header).expect("a header is made of texts and numbers");
        text.push(b'\n');
        self.write(HEADER, &text)?;
        self.sync(HEADER)?;
        sync_name(&self.path(HEADER)).map_err(host("write", &self.folder))?;
        wanted.pass()?;
        place(&self.folder, &self.target, rename_new).map_err(|errno| match errno {
            Errno::EXIST | Errno::NOTEMPTY => SnapshotError::Exists { path: self.target.clone() },
            errno => host("name", &self.target)(errno.into()),
        })?;
        self.finished = true;
        sync_name(&self.target).map_err(host("write", &self.target))?;
        Ok(Origin { folder: full_path(&self.target), header: Checksum(xxh64(&text, 0)) })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            tracing::warn!("what was begun of a snapshot can't be removed from `{}`: {error}", self.folder.display());
        }
    }
}

type Rename = fn(&Path, &Path) -> Result<(), Errno>;

fn rename_new(from: &Path, to: &Path) -> Result<(), Errno> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
}

/// Gives a folder its name, which is nobody's, by `rename`. Some file systems (NFS) know no such request: there an empty folder claims the name first. That is no
/// snapshot to anybody, and the rename takes its place at once.
fn place(from: &Path, to: &Path, rename: Rename) -> Result<(), Errno> {
    match rename(from, to) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        done => return done,
    }
    mkdir(to, Mode::RWXU)?;
    rustix::fs::rename(from, to).inspect_err(|_| {
        // What somebody has put into it is theirs, and stays.
        let _ = rustix::fs::rmdir(to);
    })
}

/// What every version's header has.
#[derive(Deserialize)]
struct Front {
    magic: String,
    container: u32,
    #[serde(default)]
    skep: String,
}

/// Guest memory, or what of it differs from the layer below.
#[derive(Debug)]
pub(crate) struct Layer {
    /// The snapshot that it is of.
    folder: PathBuf,
    expected: MemoryFile,
    /// The memory file.
    pub(crate) file: File,
    /// Of a difference, the pages that the file has.
    pub(crate) changed: Option<Runs>,
}

impl Layer {
    fn open(folder: &Path, header: &Header) -> Result<Self, SnapshotError> {
        let (expected, path) = (&header.memory, folder.join(MEMORY));
        let file = open(&path)?;
        let size = length(&file, &path)?;
        let mut ends = expected.ram.iter().map(|ram| (ram.address | ram.size, ram.address.checked_add(ram.size)));
        let whole = ends.all(|(bits, end)| bits.is_multiple_of(PAGE_SIZE) && end.is_some());
        let sum = expected.ram.iter().try_fold(0_u64, |sum, ram| sum.checked_add(ram.size));
        if size != expected.size || size == 0 {
            return Err(damaged(MEMORY, format!("it has {size} bytes, and the header says {}", expected.size)));
        }
        if sum != Some(size) || !whole {
            return Err(damaged(HEADER, format!("its pieces of RAM are not those of {size} bytes of memory")));
        }
        let pages = size / PAGE_SIZE;
        let changed = header.base.as_ref().map(|base| {
            let bytes = read_checked(folder, CHANGED, &base.changed, pages.saturating_mul(16))?;
            changes::decode(&bytes, pages).map_err(|reason| damaged(CHANGED, reason))
        });
        Ok(Self { folder: folder.to_owned(), expected: expected.clone(), file, changed: changed.transpose()? })
    }
}

fn damaged(file: &'static str, reason: String) -> SnapshotError {
    SnapshotError::Damaged { file, reason }
}

fn length(file: &File, path: &Path) -> Result<u64, SnapshotError> {
    file.metadata().map(|data| data.len()).map_err(host("read", path))
}

/// All of a file that a header speaks of.
fn read_checked(
    folder: &Path,
    name: &'static str,
    expected: &RecordsFile,
    most: u64,
) -> Result<Vec<u8>, SnapshotError> {
    let path = folder.join(name);
    let mut file = open(&path)?;
    let size = length(&file, &path)?;
    if size != expected.size || size > most {
        return Err(damaged(name, format!("it has {size} bytes, and the header says {}", expected.size)));
    }
    // Zeroes are no pages, so that a copy has no hole either; and a file of nothing else could ask for more memory than the host has. A file system that can't
    // tell has none.
    let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0));
    file.rewind().map_err(host("read", &path))?;
    if name == CHANGED && hole.is_ok_and(|hole| hole < size) {
        return Err(damaged(name, "a part of it is a hole".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(host("read", &path))?;
    if xxh64(&bytes, 0) != expected.xxh64.0 {
        return Err(damaged(name, "its checksum is not the header's".to_owned()));
    }
    Ok(bytes)
}

/// A snapshot whose header and records hold together, with those that it is the difference to. Memory is not looked at before it is used.
#[derive(Debug)]
pub struct Snapshot {
    /// The header.
    pub header: Header,
    /// The records.
    pub records: Records,
    /// Guest memory: whole, and what differs, one after the other.
    pub(crate) layers: Vec<Layer>,
    /// XXH64 of the header.
    pub(crate) known_by: Checksum,
    /// Where it is.
    pub path: PathBuf,
}

impl Snapshot {
    /// Opens the snapshot at `path`.
    ///
    /// # Errors
    /// [`SnapshotError`], for what is none, is damaged, or is of a later version.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let (header, known_by) = read_header(path)?;
        let bytes = read_checked(path, RECORDS, &header.records, MOST_RECORDS)?;
        let records = Records::read(&bytes)?;
        let mut layers = vec![Layer::open(path, &header)?];
        if let Some(base) = &header.base {
            below(path.join(&base.folder), base.header, &header.memory.ram, &mut |layer| layers.push(layer))?;
        }
        layers.reverse();
        Ok(Self { header, records, layers, known_by, path: path.to_owned() })
    }

    /// What the machine as a whole is.
    ///
    /// # Errors
    /// Those of [`Records::open`].
    pub fn machine(&self) -> Result<MachineState, SnapshotError> {
        self.records.open(MACHINE)
    }

    /// The machine's config.
    ///
    /// # Errors
    /// [`SnapshotError::Records`] for what is none of this version's.
    pub fn config(&self) -> Result<Config, SnapshotError> {
        let text = self.machine()?.config;
        let reason = |e: skep_config::Error| SnapshotError::Records { reason: format!("its config: {e}") };
        let arch = self.header.architecture.parse::<ArchKind>();
        let arch = arch.map_err(|reason| SnapshotError::Records { reason })?;
        let config = Config::from_toml(&text, &self.path.join("config"), arch).map_err(reason)?;
        let other = config.machine.to_string() != self.header.machine || config.arch() != arch;
        if other {
            let Header { machine, architecture, .. } = &self.header;
            let (own, its) = (config.arch(), config.machine);
            let reason = format!("its config is of {its} on {own}, and its header says {machine} on {architecture}");
            return Err(SnapshotError::Records { reason });
        }
        Ok(config)
    }

    /// What later differences are to.
    pub(crate) fn origin(&self) -> Origin {
        Origin { folder: full_path(&self.path), header: self.known_by }
    }

    /// Reads all of the memory, and compares it with the headers.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`] and [`SnapshotError::Host`]; [`SnapshotError::Base`] around those of one that this is the difference to.
    pub fn verify_memory(&self) -> Result<(), SnapshotError> {
        for layer in &self.layers {
            let (data, xxh64) = memory::sum(&layer.file).map_err(host("read", &layer.folder.join(MEMORY)))?;
            if (data, xxh64) != (layer.expected.data, layer.expected.xxh64.0) {
                let error = damaged(MEMORY, "its checksum is not the header's".to_owned());
                if layer.folder == self.path {
                    return Err(error);
                }
                return Err(SnapshotError::Base { path: layer.folder.clone(), reason: error.to_string() });
            }
        }
        Ok(())
    }
}

/// Opens what a difference is to, the snapshot at `folder` that is known by `known_by`, and all below it; each must have these pieces of RAM.
fn below(
    mut folder: PathBuf,
    mut known_by: Checksum,
    ram: &[RamRange],
    each: &mut dyn FnMut(Layer),
) -> Result<(), SnapshotError> {
    for count in 1.. {
        let refused = |reason: String| SnapshotError::Base { path: folder.clone(), reason };
        if count > MOST_LAYERS {
            return Err(refused(format!("there are more than {MOST_LAYERS} in the chain")));
        }
        let (header, found) = read_header(&folder).map_err(|error| refused(error.to_string()))?;
        if found != known_by {
            return Err(refused("that is another snapshot now".to_owned()));
        }
        if header.memory.ram != ram {
            return Err(refused("that has other memory".to_owned()));
        }
        each(Layer::open(&folder, &header).map_err(|error| refused(error.to_string()))?);
        let Some(base) = header.base else { break };
        (folder, known_by) = (folder.join(base.folder), base.header);
    }
    Ok(())
}

impl Origin {
    /// Refuses one to which a difference could not be restored: that is no more what it was, or has too many below it. `ram` is the machine's.
    ///
    /// # Errors
    /// [`SnapshotError::NoBase`].
    pub(crate) fn check(&self, ram: &[RamRange]) -> Result<(), SnapshotError> {
        below(self.folder.clone(), self.header, ram, &mut drop)
            .map_err(|error| SnapshotError::NoBase { reason: error.to_string() })
    }
}

/// Opens a file, which is none of another kind that would wait for somebody.
fn open(path: &Path) -> Result<File, SnapshotError> {
    skep_config::open_regular(path).map_err(host("read", path))
}

/// A header, and what it is known by.
fn read_header(path: &Path) -> Result<(Header, Checksum), SnapshotError> {
    let not_one = |reason: String| SnapshotError::NotOne { path: path.to_owned(), reason };
    // Its header may be there, and may be all that has reached the medium.
    if path.canonicalize().is_ok_and(|path| path.file_name().is_some_and(is_draft)) {
        return Err(not_one(
            "it is what a save that did not end has left, of which nothing can be restored".to_owned(),
        ));
    }
    let header = path.join(HEADER);
    let file = skep_config::open_regular(&header).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if path.is_dir() => {
            not_one(format!("it has no {HEADER}; of a save that did not end nothing can be restored"))
        }
        io::ErrorKind::NotFound if path.exists() => not_one("a snapshot is a folder".to_owned()),
        io::ErrorKind::NotADirectory => not_one("a snapshot is a folder".to_owned()),
        _ => host("read", &header)(error),
    })?;
    let mut text = Vec::new();
    file.take(header::MOST + 1).read_to_end(&mut text).map_err(host("read", &header))?;
    if text.len() as u64 > header::MOST {
        return Err(not_one(format!("its {HEADER} is larger than any")));
    }
    let front: Front = serde_json::from_slice(&text).map_err(|e| not_one(format!("its {HEADER}: {e}")))?;
    if front.magic != MAGIC {
        return Err(not_one(format!("its {HEADER} is of something else")));
    }
    if front.container > CONTAINER {
        return Err(SnapshotError::Container { found: front.container, newest: CONTAINER, skep: front.skep });
    }
    let header: Header = serde_json::from_slice(&text).map_err(|e| not_one(format!("its {HEADER}: {e}")))?;
    if let Some(name) = header.requires.iter().find(|name| *name != REQUIRES_BASE) {
        return Err(SnapshotError::Requires { name: name.clone(), skep: front.skep });
    }
    Ok((header, Checksum(xxh64(&text, 0))))
}
