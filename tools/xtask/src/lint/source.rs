//! The source files of the work tree.

use crate::paths;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// A Rust file or a Cargo.toml.
pub(super) struct Source {
    /// Its path, seen from the workspace's root.
    pub(super) path: PathBuf,
    /// Its content.
    pub(super) text: String,
}

impl Source {
    /// Whether it is below this directory of the workspace.
    pub(super) fn below(&self, directory: &str) -> bool {
        self.path.starts_with(directory)
    }

    /// Whether it is a Rust file.
    pub(super) fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    /// Whether it holds tests, and what serves them alone.
    pub(super) fn is_test(&self) -> bool {
        let stem = self.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        stem == "test" || stem.ends_with("_test") || self.path.components().any(|part| part.as_os_str() == "tests")
    }

    /// The lines with their numbers, counted from 1, without comments.
    pub(super) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let comment = if self.is_rust() { "//" } else { "#" };
        self.text
            .lines()
            .enumerate()
            .map(move |(index, line)| (index + 1, line.split(comment).next().unwrap_or_default()))
    }
}

/// Every Rust file and Cargo.toml below the workspace's root.
pub(super) fn all() -> Result<Vec<Source>> {
    let root = paths::workspace();
    let mut files = Vec::new();
    collect(&root, &root, &mut files)?;
    if files.is_empty() {
        bail!("there are no source files below {}", root.display());
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(root: &Path, directory: &Path, files: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            // Build directories, and git's.
            if !matches!(name, "target" | "out" | ".git") {
                collect(root, &path, files)?;
            }
        } else if name == "Cargo.toml" || name.ends_with(".rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
            files.push(Source { path, text });
        }
    }
    Ok(())
}
