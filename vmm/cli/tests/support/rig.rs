//! The guest that drives disks, on files in a folder, for tests that interrupt it.

use std::fs;
use std::path::PathBuf;

use skep_guests::{IO_AARCH64, IO_X86_64};

use super::{Builder, Finished, Machine, accesses, is_x86_64, rounds};

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

/// Interrupts guests that drive both disks, [`rounds`] times while they use each of them: what one says in all is what it says when it is left alone, so each command
/// was done, once. `interrupt` lets a machine go on, with what it has said, or answers how it ended if it was done before that: then another one begins.
///
/// # Panics
/// If something differs, or a guest was done before it was ever interrupted.
pub fn interrupted(
    start: impl Fn(&Rig) -> Machine,
    interrupt: impl Fn(&Rig, Machine) -> Result<Machine, Finished>,
    look_at_the_end: impl Fn(&Rig),
) {
    let alone = start(&Rig::new()).finish();
    alone.expect_code(0).expect_console("problems: 0\r\n");
    assert_eq!(facts(&alone.console).len(), 6);
    let mut left = ["nvme", "virtio-blk"].map(|device| (device, rounds()));
    while left.iter().any(|(_, rounds)| *rounds > 0) {
        let before = left;
        let rig = Rig::new();
        let end = interrupt_one(start(&rig), &mut left, |machine| interrupt(&rig, machine));
        end.expect_code(0).expect_console("problems: 0\r\n");
        assert_eq!(facts(&end.console), facts(&alone.console));
        look_at_the_end(&rig);
        assert!(left != before, "a guest was done before it was interrupted");
    }
}

/// Interrupts one as often as is left of each device, or as it takes until it is done.
fn interrupt_one(
    mut machine: Machine,
    left: &mut [(&str, u32)],
    interrupt: impl Fn(Machine) -> Result<Machine, Finished>,
) -> Finished {
    for (device, rounds) in left {
        if *rounds == 0 {
            continue;
        }
        machine.wait_for(&format!("io: device={device} op=write"));
        while *rounds > 0 {
            machine = match interrupt(machine) {
                Ok(next) => next,
                Err(end) => return end,
            };
            if machine.has_said(&format!("io: device={device} op=randwrite")) {
                break;
            }
            *rounds -= 1;
        }
    }
    machine.finish()
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
