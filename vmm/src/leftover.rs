//! Names on the host that go when those who made them do, or with the process at the latest.

use std::ffi::{CStr, CString};
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, lstat, readlinkat_raw, unlink};
use rustix::io::Errno;

use crate::emergency;

#[cfg(test)]
#[path = "leftover_test.rs"]
mod test;

/// All that there are. A signal's handler only tries the lock.
static ALL: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

struct Entry {
    id: u64,
    path: CString,
    mark: Mark,
}

/// By what a name is known to be still ours.
enum Mark {
    /// A symbolic link, by what it leads to.
    Link(CString),
    /// A file, by its device and number.
    File(u64, u64),
}

/// A name that is removed when this is dropped, unless somebody else has put something of theirs there.
#[derive(Debug)]
#[must_use]
pub struct Leftover {
    id: u64,
    path: PathBuf,
}

impl Leftover {
    /// A symbolic link, which has just been made to `target`.
    pub(crate) fn link(path: &Path, target: &Path) -> io::Result<Self> {
        Self::new(path, Mark::Link(c_string(target)?))
    }

    /// A file, which has just been made.
    ///
    /// # Errors
    /// Where it is not there.
    pub fn file(path: &Path) -> io::Result<Self> {
        let (device, number) = identity(&c_string(path)?)?;
        Self::new(path, Mark::File(device, number))
    }

    fn new(path: &Path, mark: Mark) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        emergency::arm();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        all().push(Entry { id, path: c_string(path)?, mark });
        Ok(Leftover { id, path: path.to_owned() })
    }

    /// Lets the name stay.
    pub fn keep(self) {
        all().retain(|entry| entry.id != self.id);
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let mut all = all();
        let Some(index) = all.iter().position(|entry| entry.id == self.id) else { return };
        let entry = all.swap_remove(index);
        drop(all);
        if let Err(error) = entry.remove()
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("{} can't be removed: {error}", self.path.display());
        }
    }
}

impl Entry {
    /// Removes it. A signal's handler may do it: there are system calls only.
    fn remove(&self) -> io::Result<()> {
        let ours = match &self.mark {
            Mark::Link(target) => leads_to(&self.path, target),
            Mark::File(device, number) => identity(&self.path) == Ok((*device, *number)),
        };
        if ours {
            unlink(&*self.path)?;
        }
        Ok(())
    }
}

/// Removes all, as the process ends. Safe to call at any moment, from a signal handler too.
pub(crate) fn remove_all() {
    // Who holds it is making or removing one just now.
    if let Ok(all) = ALL.try_lock() {
        for entry in &*all {
            // There is nobody left to tell.
            let _ = entry.remove();
        }
    }
}

fn all() -> MutexGuard<'static, Vec<Entry>> {
    // Its entries are whole at any moment.
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn identity(path: &CStr) -> Result<(u64, u64), Errno> {
    let stat = lstat(path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Whether the link at `path` leads to `target`. Names of ptys are short.
fn leads_to(path: &CStr, target: &CStr) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 64];
    readlinkat_raw(CWD, path, &mut buffer).is_ok_and(|(found, _)| *found == *target.to_bytes())
}
