//! Disks that can't be used are refused by name, before a guest runs.

mod support;

use std::fs;
use std::path::Path;

use support::Builder;

fn refused(flags: &[String], texts: &[&str]) {
    let mut builder = Builder::debian();
    for flag in flags {
        builder = builder.args(&["--disk", flag]);
    }
    let end = builder.finish();
    assert_ne!(end.code, Some(0));
    for text in texts {
        end.expect_log(text);
    }
}

fn flag(path: &Path) -> String {
    format!("{},format=raw", path.display())
}

#[test]
fn a_disk_that_is_not_there_says_how_it_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none.img");
    let name = format!("`{}`", path.display());
    refused(
        &[flag(&path)],
        &[
            "device `disk0` can't be made",
            &name,
            "try: make an empty disk, by `skep image create FILE --format FORMAT --size 10G`",
        ],
    );
}

#[test]
fn a_disk_has_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shared.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    refused(
        &[flag(&path), flag(&path)],
        &["device `disk1` can't be made", "is in use by process", "try: a copy of the file"],
    );
}

#[test]
fn a_disk_is_made_of_whole_blocks() {
    let directory = tempfile::tempdir().unwrap();
    for (size, more, blocks) in
        [(0, "", 512), (1000, "", 512), (2560, ",block-size=4096", 4096), (700, ",device=virtio-blk", 512)]
    {
        let path = directory.path().join("odd.img");
        fs::write(&path, vec![0; size]).unwrap();
        let said = format!("it has {size} bytes, and a disk is made of blocks of {blocks}");
        refused(&[flag(&path) + more], &[&said, "try: another size, by `truncate"]);
    }
}
