//! Image locks.
#![allow(unsafe_code)] // Locks of open file descriptions have no safe wrapper.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::BlockError;

/// Locks `file` for as long as it is open: for a writer against all others, for a reader against writers. The lock is one of the open file
/// description (`F_OFD_SETLK`), so that it is not lost when another descriptor of the process is closed.
pub(crate) fn lock(file: &File, path: &Path, exclusive: bool) -> Result<(), BlockError> {
    let Err(source) = set(file, if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }) else { return Ok(()) };
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(BlockError::Locked { path: path.to_owned(), holder: holder(file) }),
        _ => Err(BlockError::Host { what: "lock (try without its lock)", path: path.to_owned(), source }),
    }
}

/// Gives the lock back.
pub(crate) fn unlock(file: &File) {
    // A descriptor that is open can be unlocked; there is nothing that could fail.
    let _ = set(file, libc::F_UNLCK);
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: plain data, for which zeroes are a value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the kernel reads the structure during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Who holds a lock on the same file, as far as this user may know.
fn holder(file: &File) -> String {
    let unknown = || "another process".to_owned();
    let Ok(metadata) = file.metadata() else { return unknown() };
    let Ok(processes) = std::fs::read_dir("/proc") else { return unknown() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for process in numbers {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let same = std::fs::metadata(descriptor.path())
                .is_ok_and(|other| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino()));
            let number = descriptor.file_name();
            let holds = || {
                let told = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{}", number.display()));
                told.is_ok_and(|text| text.lines().any(|line| line.starts_with("lock:")))
            };
            if same && holds() {
                let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
                return format!("process {process} ({})", name.trim());
            }
        }
    }
    unknown()
}
