//! Each crate's first page: what it does, which specification it follows, what it does not do.

use super::Finding;
use super::source::Source;
use crate::cargo::Metadata;
use crate::paths;
use std::path::Path;

/// Fewer words than this say nothing.
const FEWEST_WORDS: usize = 25;

/// Checks the first file of each crate of the workspace, and of those that stand beside it.
pub(super) fn check(metadata: &Metadata, files: &[Source]) -> Vec<Finding> {
    let root = paths::workspace();
    let members = metadata.packages.iter().filter(|one| metadata.workspace_members.contains(&one.id));
    let targets = members.flat_map(|member| &member.targets).filter(|target| target.is("lib") || target.is("bin"));
    let mut pages: Vec<&Path> =
        targets.map(|target| target.src_path.strip_prefix(&root).unwrap_or(&target.src_path)).collect();
    pages.push(Path::new("guests/bare/src/lib.rs"));
    files.iter().filter(|file| pages.contains(&file.path.as_path())).filter_map(check_one).collect()
}

fn check_one(file: &Source) -> Option<Finding> {
    let words = file.text.lines().map_while(|line| line.strip_prefix("//!")).flat_map(str::split_whitespace).count();
    (words < FEWEST_WORDS).then(|| {
        Finding::line(&file.path, 1, "the crate has no first page: begin with //! and say what it does, by which specification, and what it does not do")
    })
}

#[cfg(test)]
#[path = "first_page_test.rs"]
mod test;
