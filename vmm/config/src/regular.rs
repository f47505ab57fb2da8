//! Files that are read as a whole.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file to read it. Anything else might never end, or never begin.
///
/// # Errors
///
/// The host's, or one that says what the path names instead.
pub fn open_regular(path: &Path) -> io::Result<File> {
    // A FIFO would wait for its writer.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let kind = match &opened {
        Ok(file) => file.metadata()?.file_type(),
        // A socket can't be opened.
        Err(_) => match fs::metadata(path) {
            Ok(there) => there.file_type(),
            Err(_) => return opened,
        },
    };
    if kind.is_file() {
        return opened;
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {}, and only a regular file will do", name(kind))))
}

fn name(kind: FileType) -> &'static str {
    let kinds = [
        (kind.is_dir(), "a directory"),
        (kind.is_fifo(), "a pipe"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device(), "a character device"),
        (kind.is_block_device(), "a block device"),
    ];
    kinds.into_iter().find(|(is, _)| *is).map_or("a special file", |(_, name)| name)
}
