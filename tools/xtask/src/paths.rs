//! Where things are: the work tree, and the cache of what was fetched.

use anyhow::{Context, Result};
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

/// A directory for scratch files of one run, which goes when the value is dropped. Disk images are large and sparse,
/// so it is in the cache rather than in `/tmp`, which may be in memory.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    let parent = cache()?.join("scratch");
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    tempfile::tempdir_in(&parent).with_context(|| format!("cannot make a directory in {}", parent.display()))
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}
