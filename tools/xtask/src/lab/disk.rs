//! The lab's disks: the one that carries files in, and the one that brings files back.

use crate::process;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room that programs in the lab have besides what was carried in.
const SPARE: u64 = 1 << 30;
/// Room for what is brought back.
const BACK: u64 = 4 << 30;

/// Puts `source`, a file or a directory, into the directory `staging` as `name`, without copying where possible.
pub(super) fn stage(source: &Path, staging: &Path, name: &str) -> Result<()> {
    let target = staging.join(name);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let kind = fs::metadata(source).with_context(|| format!("cannot carry {} into the lab", source.display()))?;
    if kind.is_dir() {
        fs::create_dir_all(&target)?;
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            let Some(file_name) = entry.file_name().to_str().map(str::to_owned) else {
                bail!("{}: a name that is not UTF-8 cannot be carried into the lab", entry.path().display());
            };
            stage(&entry.path(), &target, &file_name)?;
        }
        return Ok(());
    }
    if fs::symlink_metadata(&target).is_ok() {
        bail!("cannot carry {} into the lab: there is a {name} already; choose another name", source.display());
    }
    // A link fails across file systems, and for a file of another user.
    if fs::hard_link(source, &target).is_err() {
        fs::copy(source, &target).with_context(|| format!("cannot carry {} into the lab", source.display()))?;
    }
    Ok(())
}

/// Makes a file system with the content of `staging`.
pub(super) fn carry_in(staging: &Path, image: &Path) -> Result<()> {
    let size = (size(staging)? + SPARE).next_multiple_of(1 << 20);
    fs::File::create(image)?.set_len(size).with_context(|| format!("cannot make {}", image.display()))?;
    // No journal: this file system lives for one boot.
    process::output(
        Command::new(process::find("mke2fs")?)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-E",
                "lazy_itable_init=1,nodiscard",
                "-d",
            ])
            .args([staging, image]),
    )?;
    Ok(())
}

/// Makes an empty disk that an archive is written to.
pub(super) fn empty(image: &Path) -> Result<()> {
    fs::File::create(image)?.set_len(BACK).with_context(|| format!("cannot make {}", image.display()))
}

/// Unpacks the archive on the disk `image` into the directory `into`.
pub(super) fn bring_back(image: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    process::output(Command::new("tar").arg("-xf").arg(image).arg("--no-same-owner").arg("-C").arg(into))?;
    Ok(())
}

/// Room that the files below `dir` take, block by block.
fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    let mut todo: Vec<PathBuf> = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                todo.push(entry.path());
            }
            sum += metadata.len().next_multiple_of(4096) + 4096;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod test {
    use super::stage;
    use std::fs;

    #[test]
    fn no_file_is_carried_over_another() {
        let dir = tempfile::tempdir().unwrap();
        let (source, staging) = (dir.path().join("source"), dir.path().join("staging"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("kernel"), "other").unwrap();
        let first = dir.path().join("first");
        fs::write(&first, "first").unwrap();
        stage(&first, &staging, "images/kernel").unwrap();
        let error = stage(&source, &staging, "images").unwrap_err().to_string();
        assert!(error.contains("there is a kernel already"), "{error}");
        assert_eq!(fs::read_to_string(&first).unwrap(), "first");
    }
}
