//! Configs as TOML files.

use std::io::{self, Read};
use std::iter;
use std::path::{Path, PathBuf, absolute};

use serde::Deserialize;
use skep_hypervisor::ArchKind;
use toml::de::DeTable;

use crate::Config;
use crate::device::DeviceKind;
use crate::error::{Error, Problem};
use crate::machine::MachineVersion;
use crate::net::Net;
use crate::node::Node;
use crate::regular::open_regular;
use crate::serial::Serial;

/// No config is larger than this.
const SIZE_MAX: u64 = 1 << 20;

impl Config {
    /// Reads a TOML file; its relative paths start at its own folder. `host` decides the machine where the file names none.
    ///
    /// Keys are checked one by one: [`Config::finish`] checks them together, once flags had their say.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] and [`Error::File`].
    pub fn load(file: &Path, host: ArchKind) -> Result<Self, Error> {
        let text = read(file).map_err(|source| Error::Read { file: file.to_owned(), source })?;
        let mut config = Self::from_toml(&text, file, host)?;
        if let Some(folder) = file.parent() {
            config.for_each_path(|path| *path = folder.join(&*path));
        }
        Ok(config)
    }

    /// Reads a TOML text; `file` names it in errors. Paths stay as written.
    ///
    /// # Errors
    ///
    /// [`Error::File`].
    pub fn from_toml(text: &str, file: &Path, host: ArchKind) -> Result<Self, Error> {
        let fail = |at: Option<usize>, problem| {
            let (line, column) = place(text, at.unwrap_or(0));
            Error::File { file: file.to_owned(), line, column, problem }
        };
        let document = DeTable::parse(text)
            .map_err(|error| fail(error.span().map(|span| span.start), Problem::Syntax(error.message().to_owned())))?;
        let mut tree = Node::from_toml(document);
        tree.or_insert("machine", MachineVersion::newest(host).name());
        Config::deserialize(tree).map_err(|error| fail(error.at, error.into_problem()))
    }

    /// The config as TOML, with every value in effect. Paths are made absolute, so that the text means the same anywhere.
    ///
    /// # Errors
    ///
    /// [`Error::Write`], for a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, Error> {
        let mut config = self.clone();
        config.for_each_path(|path| *path = full_path(path));
        toml::to_string(&config).map_err(|error| Error::Write(error.to_string()))
    }

    /// Every path in the config.
    fn for_each_path(&mut self, change: impl FnMut(&mut PathBuf)) {
        let disks = self.disk.iter_mut().map(|disk| disk.source.path_mut());
        let of_nets = self.net.iter_mut().flat_map(Net::paths_mut);
        let sockets = self.device.iter_mut().filter_map(|device| match &mut device.kind {
            DeviceKind::Vsock { socket, .. } | DeviceKind::Console { socket, .. } | DeviceKind::Fs { socket, .. } => {
                Some(socket)
            }
            DeviceKind::Rng { .. } | DeviceKind::Balloon { .. } => None,
        });
        let boot = &mut self.boot;
        let serial = match &mut self.serial {
            Serial::File(path) | Serial::Socket(path) | Serial::Pty { link: Some(path) } => Some(path),
            Serial::Stdio | Serial::Pty { link: None } | Serial::None => None,
        };
        let vars = boot.firmware_vars.iter_mut().flat_map(|vars| iter::once(&mut vars.file).chain(&mut vars.template));
        [&mut boot.kernel, &mut boot.initrd, &mut boot.dtb, &mut boot.firmware]
            .into_iter()
            .flatten()
            .chain(vars)
            .chain(serial)
            .chain(&mut self.control)
            .chain(disks)
            .chain(of_nets)
            .chain(sockets)
            .for_each(change);
    }
}

/// The path from the root of the host's files on. What has none stays as it is, and is refused by name when it is opened.
#[must_use]
pub fn full_path(path: &Path) -> PathBuf {
    absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn read(file: &Path) -> io::Result<String> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut bytes = Vec::new();
    open_regular(file)?.take(SIZE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SIZE_MAX {
        return Err(invalid("it is larger than 1 MiB, which no config is"));
    }
    String::from_utf8(bytes).map_err(|_| invalid("it is not valid UTF-8"))
}

/// Line and column, from 1, of a byte offset.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or(before);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}
