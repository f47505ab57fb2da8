//! Where a serial port leads.

use std::path::PathBuf;

use serde::Deserialize;
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::group::{Group, group};

#[cfg(test)]
#[path = "serial_test.rs"]
mod test;

/// Where a serial port leads: `stdio|file=FILE|pty[,link=PATH]|socket=PATH|none`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Serial {
    /// To skep's own standard input and output: a terminal in raw mode, or files and pipes.
    #[default]
    Stdio,
    /// To a file, which is created, or emptied if it exists. There is no input.
    File(PathBuf),
    /// To a new pseudo-terminal, whose path skep prints.
    Pty {
        /// A symbolic link to make to it.
        link: Option<PathBuf>,
    },
    /// To a Unix stream socket on which skep listens, for one client at a time.
    Socket(PathBuf),
    /// Nowhere.
    None,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Keys {
    #[serde(default)]
    stdio: bool,
    file: Option<PathBuf>,
    #[serde(default)]
    pty: bool,
    link: Option<PathBuf>,
    socket: Option<PathBuf>,
    #[serde(default)]
    none: bool,
}

impl Group for Serial {
    type Keys = Keys;
    const LEADING: Option<&'static str> = None;

    fn from_keys(keys: Keys) -> Result<Self, String> {
        if keys.link.is_some() && !keys.pty {
            return Err("`link` goes with `pty` only".to_owned());
        }
        let paths = [("file", &keys.file), ("socket", &keys.socket), ("link", &keys.link)];
        if let Some((key, _)) = paths.iter().find(|(_, path)| path.as_ref().is_some_and(|p| p.as_os_str().is_empty())) {
            return Err(format!("`{key}` is empty: a path is needed"));
        }
        let choices = [
            keys.stdio.then_some(Serial::Stdio),
            keys.file.map(Serial::File),
            keys.pty.then_some(Serial::Pty { link: keys.link }),
            keys.socket.map(Serial::Socket),
            keys.none.then_some(Serial::None),
        ];
        let mut choices = choices.into_iter().flatten();
        match (choices.next(), choices.next()) {
            (Some(choice), None) => Ok(choice),
            _ => Err("exactly one of stdio, file=FILE, pty, socket=PATH and none is needed".to_owned()),
        }
    }
}

group!(Serial, "one of \"stdio\", \"file=FILE\", \"pty\", \"socket=PATH\" and \"none\"");

impl Serialize for Serial {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let path = |serializer: S, key, path| {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry(key, path)?;
            map.end()
        };
        match self {
            Serial::Stdio => serializer.serialize_str("stdio"),
            Serial::None => serializer.serialize_str("none"),
            Serial::Pty { link: None } => serializer.serialize_str("pty"),
            Serial::Pty { link: Some(link) } => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("pty", &true)?;
                map.serialize_entry("link", link)?;
                map.end()
            }
            Serial::File(file) => path(serializer, "file", file),
            Serial::Socket(socket) => path(serializer, "socket", socket),
        }
    }
}
