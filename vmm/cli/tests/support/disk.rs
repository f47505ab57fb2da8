//! Disks that firmware boots.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::firmware;

/// Stands before the lines of GRUB's configuration that a test may write over.
const ROOM: &[u8] = b"# skep: room\n";
const END: &[u8] = b"# skep: end\n";

/// A copy of the disk that firmware boots as `name` in `folder`, on which GRUB does `commands` first.
pub fn boot_disk(folder: &Path, name: &str, commands: &str) -> PathBuf {
    let path = folder.join(name);
    with_commands("boot.img", &path, commands);
    path
}

/// A copy of the program that firmware loads from a network, the same way.
pub fn net_program(path: &Path, commands: &str) {
    with_commands("net.efi", path, commands);
}

fn with_commands(name: &str, path: &Path, commands: &str) {
    let bytes = fs::read(firmware(name)).unwrap();
    let find = |what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let start = find(ROOM).unwrap_or_else(|| panic!("{name} has no configuration of GRUB's")) + ROOM.len();
    let room = find(END).expect("its room has an end") - start;
    let text = format!("{commands}\n");
    assert!(text.len() <= room, "{} bytes of commands have no room in {room}", text.len());
    fs::write(path, bytes).unwrap();
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(text.as_bytes(), start as u64).unwrap();
}

/// GRUB's command by which the guest's init gets these words.
pub fn words(words: &str) -> String {
    format!("set words=\"{words}\"")
}
