//! The guest that drives disks, on files in a folder, for tests that interrupt it.

use std::fs;
use std::path::PathBuf;

use skep_guests::{IO_AARCH64, IO_X86_64};

use super::{Builder, Finished, Machine, accesses, is_x86_64};

/// Bytes of a disk.
pub const SIZE: u64 = 16 << 20;

/// A folder with the guest, `io`, and the images of two disks, `nvme` and `virtio`.
pub struct Rig {
    pub folder: tempfile::TempDir,
}

impl Rig {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("io"), if is_x86_64() { IO_X86_64 } else { IO_AARCH64 }).unwrap();
        for name in ["nvme", "virtio"] {
            fs::File::create(folder.path().join(name)).unwrap().set_len(SIZE).unwrap();
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Asks the machine at the control socket `socket`.
    pub fn ctl_at(&self, socket: &str, words: &[&str]) -> Finished {
        Builder::command(&[&["ctl", &self.text(socket)], words].concat()).finish()
    }

    /// The guest that drives both disks, the second one in an image of `format`, with its control socket at `socket`.
    pub fn drive(&self, socket: &str, format: &str, cmdline: &str) -> Machine {
        let (kernel, socket) = (self.text("io"), self.text(socket));
        let nvme = format!("{},format=raw", self.text("nvme"));
        let virtio = format!("{},format={format},device=virtio-blk,id=other", self.text("virtio"));
        let words = ["run", "--kernel", &kernel, "--memory", "64M", "--disk", &nvme, "--disk", &virtio, "--control"];
        Builder::command(&[&words[..], &[&socket, "--cmdline", cmdline]].concat()).start()
    }
}

/// Fills a disk, writes it anew anywhere, and reads all of it.
pub fn load(device: &str) -> String {
    let words = "bs=4096 verify=1 op=write depth=32 count=4096 run op=randwrite";
    format!("device={device} seed=7 ms=600000 {words} count={} run op=read count=4096 run ", accesses())
}

/// What the guest says of its runs that does not depend on time.
pub fn facts(console: &str) -> Vec<[String; 6]> {
    let runs = console.lines().filter(|line| line.starts_with("io: "));
    let keys = ["device", "op", "ops", "errors", "wrong", "checksum"];
    runs.map(|line| keys.map(|key| number(line, key))).collect()
}

fn number(line: &str, key: &str) -> String {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no `{key}` in {line}")).to_owned()
}
