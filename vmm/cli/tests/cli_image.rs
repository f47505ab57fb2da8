//! `skep image`, as a user and a script see it.
#![allow(clippy::unwrap_used)] // Helpers of tests.

mod support;

use std::fs;
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Folder(TempDir);

struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Runs `skep image` in the folder.
    fn image(&self, line: &str) -> Said {
        let mut command = Command::new(support::skep());
        let output = command.arg("image").args(line.split(' ')).current_dir(self.0.path()).stdin(Stdio::null());
        let output = output.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Said { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> String {
        let said = self.image(line);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{line}");
        said.stdout
    }

    #[track_caller]
    fn refuses(&self, code: i32, line: &str, text: &str) {
        let said = self.image(line);
        assert_eq!(said.code, code, "{line}: {}", said.stderr);
        assert!(said.stderr.contains(text), "{line}: {}", said.stderr);
        assert!(!said.stderr.contains("panicked"), "{}", said.stderr);
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn images_are_made_described_converted_and_checked() {
    let folder = Folder::new();
    assert_eq!(folder.succeeds("create base.raw --format raw --size 3M"), "");
    fs::write(folder.0.path().join("base.raw"), vec![7; 3 << 20]).unwrap();
    folder.succeeds("create top.qcow2 --format qcow2 --backing base.raw --backing-format raw --cluster-size 4K");
    let told = folder.succeeds("info top.qcow2 --format qcow2");
    assert!(told.contains("virtual size: 3M (3145728 bytes)\n"), "{told}");
    assert!(told.contains("backing file: base.raw (raw)\n\nfile:         base.raw\nformat:       raw\n"), "{told}");
    let json = folder.succeeds("info top.qcow2 --format qcow2 --json");
    assert!(
        json.contains("\"cluster-size\": 4096,") && json.matches("\"virtual-size\": 3145728").count() == 2,
        "{json}"
    );
    let said = folder.image("convert top.qcow2 --from qcow2 whole.qcow2 --to qcow2");
    assert_eq!((said.code, said.stdout.as_str()), (0, ""), "{}", said.stderr);
    let lines: Vec<_> = said.stderr.lines().collect();
    assert_eq!(lines.last(), Some(&"skep: 100% of 3145728 bytes"), "{lines:?}");
    let checked = folder.succeeds("check whole.qcow2 --format qcow2");
    assert!(checked.starts_with("no errors; "), "{checked}");
    assert_eq!(folder.image("convert whole.qcow2 --from qcow2 copy.raw --to raw").code, 0);
    assert!(fs::read(folder.0.path().join("copy.raw")).unwrap() == vec![7; 3 << 20]);
    assert_eq!(folder.names(), ["base.raw", "copy.raw", "top.qcow2", "whole.qcow2"]);
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing_behind() {
    let folder = Folder::new();
    folder.succeeds("create there.raw --format raw --size 1M");
    let before = folder.names();
    for (code, line, text) in [
        (2, "create a --size 1G", "--format"),
        (2, "create a --format vmdk --size 1G", "[possible values: raw, qcow2]"),
        (2, "create a --format raw", "--size"),
        (2, "create a --format raw --size 10", "size `10` has no unit"),
        (2, "create a --format qcow2 --size 1G --backing there.raw", "--backing-format"),
        (2, "info there.raw", "--format"),
        (2, "check there.raw --format raw", "a raw image has no tables to check"),
        (1, "create a --format raw --size 1M --backing there.raw --backing-format raw", "has nothing behind it"),
        (1, "create a --format qcow2 --size 1000B", "a disk of 1000 bytes: it is made of blocks of 512 bytes"),
        (1, "create a --format qcow2 --size 1M --cluster-size 3K", "a power of two from 512B to 2M"),
        (1, "create a --format qcow2 --size 1P --cluster-size 512B", "they hold 137438953472 at most"),
        (1, "create a --format qcow2 --backing none.raw --backing-format raw", "none.raw`: No such file"),
        (1, "create there.raw --format raw --size 1M", "it is there already: `--force`"),
        (1, "create no/where --format raw --size 1M", "No such file"),
        (1, "create . --format raw --size 1M --force", "it has no name"),
        (1, "convert there.raw --from qcow2 b --to raw", "it is no qcow2 image: is its format raw?"),
        (1, "convert there.raw --from raw there.raw --to qcow2", "it is there already"),
        // Nobody may write to what is read.
        (1, "convert there.raw --from raw there.raw --to qcow2 --force", "is in use by"),
        (1, "check there.raw --format qcow2", "it is no qcow2 image"),
        (1, "info none.raw --format raw", "No such file"),
    ] {
        folder.refuses(code, line, text);
        assert_eq!(folder.names(), before, "{line}");
    }
    folder.succeeds("create there.raw --format qcow2 --size 1M --force");
    folder.succeeds("check there.raw --format qcow2");
}

#[test]
fn exit_codes_tell_errors_from_lost_clusters() {
    let folder = Folder::new();
    folder.succeeds("create a.qcow2 --format qcow2 --size 1M");
    let path = folder.0.path().join("a.qcow2");
    let good = fs::read(&path).unwrap();
    // The block of counts is the third cluster: one of them is too large, and then one is too small.
    let block = 2 << 16;
    let spoilt = |cluster: usize, count: u8| {
        let mut bytes = good.clone();
        bytes[block + cluster * 2 + 1] = count;
        fs::write(&path, bytes).unwrap();
    };
    spoilt(9, 1);
    let said = folder.image("check a.qcow2 --format qcow2");
    assert_eq!(said.code, 21);
    assert!(said.stdout.contains("0 errors, 1 lost clusters (64K)") && said.stdout.contains("`--repair`"));
    spoilt(3, 0);
    let said = folder.image("check a.qcow2 --format qcow2");
    assert_eq!(said.code, 20);
    assert!(said.stdout.starts_with("error: cluster 0x3 is used 1 times, and its count is 0\n"), "{}", said.stdout);
    let said = folder.image("check a.qcow2 --format qcow2 --repair");
    assert_eq!(said.code, 0);
    assert!(said.stdout.ends_with("after mending: no errors\n"), "{}", said.stdout);
    assert!(fs::read(&path).unwrap() == good);
}
