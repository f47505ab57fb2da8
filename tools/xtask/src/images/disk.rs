//! The small disk that guests of the tests mount.

use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What stands in the one file on it.
const GREETING: &str = "a file on a disk of the host\n";
/// Bytes.
const SIZE: u64 = 8 << 20;

/// Makes the disk `image`: ext4, with a file `greeting` on it.
pub(super) fn make(image: &Path) -> Result<()> {
    let content = tempfile::tempdir()?;
    fs::write(content.path().join("greeting"), GREETING)?;
    fs::File::create(image)?.set_len(SIZE).with_context(|| format!("cannot make {}", image.display()))?;
    process::output(
        Command::new(process::find("mke2fs")?)
            .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1", "-d"])
            .args([content.path(), image]),
    )?;
    Ok(())
}
