//! Where things are: the work tree, and the cache of what was fetched.

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The root of the work tree.
pub(crate) fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).ancestors().nth(2).expect("xtask lies two levels below the workspace").to_owned()
}

/// The directory for what is fetched and made once per machine: `$SKEP_CACHE`, else `$XDG_CACHE_HOME/skep`, else
/// `~/.cache/skep`. It is outside the work tree, so that a clean clone need not fetch again.
pub(crate) fn cache() -> Result<PathBuf> {
    let dir = if let Some(dir) = non_empty("SKEP_CACHE") {
        dir
    } else if let Some(dir) = non_empty("XDG_CACHE_HOME") {
        dir.join("skep")
    } else {
        non_empty("HOME")
            .context("neither SKEP_CACHE, XDG_CACHE_HOME nor HOME says where to keep the cache")?
            .join(".cache/skep")
    };
    std::path::absolute(&dir).with_context(|| format!("{} is no usable cache directory", dir.display()))
}

/// A directory for the scratch files of one run. It goes when this is dropped; what a killed run has left behind goes when the next
/// one begins.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
    /// Held for as long as the directory is in use.
    _lock: File,
}

/// The file in a scratch directory that its user holds a lock on.
const LOCK: &str = "lock";

impl Scratch {
    /// Makes one. Disk images are large and sparse, so it is in the cache rather than in `/tmp`, which may be in memory.
    pub(crate) fn new() -> Result<Scratch> {
        Scratch::below(&cache()?.join("scratch"))
    }

    fn below(parent: &Path) -> Result<Scratch> {
        let failed = || format!("cannot make a scratch directory in {}", parent.display());
        fs::create_dir_all(parent).with_context(failed)?;
        // One run at a time cleans up and makes its own, so that none takes another's for a leftover before it is locked.
        let all = File::create(parent.join(LOCK)).with_context(failed)?;
        flock(&all, FlockOperation::LockExclusive).with_context(failed)?;
        for entry in fs::read_dir(parent).with_context(failed)?.flatten().filter(|entry| entry.path().is_dir()) {
            let unused = match File::open(entry.path().join(LOCK)) {
                Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
                Err(_) => true,
            };
            if unused {
                // Another user's, perhaps; then it is not ours to remove.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let directory = tempfile::tempdir_in(parent).with_context(failed)?;
        let lock = File::create(directory.path().join(LOCK)).with_context(failed)?;
        flock(&lock, FlockOperation::LockExclusive).with_context(failed)?;
        Ok(Scratch { directory, _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
#[path = "paths_test.rs"]
mod test;
