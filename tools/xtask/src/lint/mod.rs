//! `cargo xtask lint`: the rules of the house that clippy cannot hold.

mod first_page;
mod floors;
mod source;
mod text;
mod versions;

use crate::{cargo, state};
use anyhow::Result;
use std::fmt;
use std::path::{Path, PathBuf};

/// Check the rules of the house that clippy cannot hold
#[derive(clap::Args)]
pub(crate) struct Args {}

/// A rule that is broken somewhere.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file, seen from the workspace's root.
    file: PathBuf,
    /// The line, counted from 1, if it is one line's fault.
    line: Option<usize>,
    /// What is wrong, and what would mend it.
    message: String,
}

impl Finding {
    fn file(file: &Path, message: impl Into<String>) -> Finding {
        Finding { file: file.to_owned(), line: None, message: message.into() }
    }

    fn line(file: &Path, line: usize, message: impl Into<String>) -> Finding {
        Finding { file: file.to_owned(), line: Some(line), message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.message),
            None => write!(f, "{}: {}", self.file.display(), self.message),
        }
    }
}

/// Checks everything, and gives back the exit code.
pub(crate) fn main(_: &Args) -> Result<i32> {
    let files = source::all()?;
    let metadata = cargo::metadata(true)?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(text::check(file));
    }
    findings.extend(floors::check(&metadata));
    findings.extend(versions::check(&metadata));
    findings.extend(first_page::check(&metadata, &files));
    if !state::is_up_to_date()? {
        let message = "it is not what the types of saved state say: run `cargo xtask state`";
        findings.push(Finding::file(Path::new(state::PAGE), message));
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    println!("lint: {} files, {} findings", files.len(), findings.len());
    Ok(i32::from(!findings.is_empty()))
}
