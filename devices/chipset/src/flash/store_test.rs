use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use skep_memory::RamOptions;

use super::flash_test::{SIZE, content, file_of, flash, put_word, word};
use super::*;

/// A file that fails once, and takes half of what it fails to write.
struct Failing {
    file: File,
    /// Writes, syncs and cuts so far.
    count: Arc<AtomicUsize>,
    fails_at: usize,
}

impl Failing {
    fn fails(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) == self.fails_at
    }
}

fn no_room() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Media for Failing {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if self.fails() {
            return self.file.write_all_at(&bytes[..bytes.len() / 2], at).and(Err(no_room()));
        }
        self.file.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        if self.fails() { Err(no_room()) } else { Ok(()) }
    }

    fn cut(&self, size: u64) -> io::Result<()> {
        if self.fails() { Err(no_room()) } else { self.file.set_len(size) }
    }
}

struct Rig {
    flash: Arc<Flash>,
    file: File,
    count: Arc<AtomicUsize>,
    geometry: Geometry,
}

impl Rig {
    fn new(geometry: Geometry, fails_at: usize) -> Self {
        let file = file_of(&flash(geometry, None));
        let count = Arc::new(AtomicUsize::new(0));
        let media = Failing { file: file.try_clone().unwrap(), count: count.clone(), fails_at };
        let ram = Arc::new(Backing::new(SIZE, &RamOptions::default()).unwrap());
        let clock = Clock::manual(0);
        let config = FlashConfig { name: "flash", base: 0x1000, content: ram, geometry, file: None, clock };
        let flash = Flash::on(config, Some(Box::new(media))).unwrap();
        flash.store(0, &content(&file));
        Self { flash, file, count, geometry }
    }

    fn operations(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn put(&self, offset: u64, value: u8) {
        match self.geometry.width {
            1 => _ = self.flash.write(0, offset, &[value]),
            _ => _ = put_word(&self.flash, offset, u32::from(value) * 0x1_0001),
        }
    }

    fn program(&self, offset: u64, value: u8) {
        self.put(offset, 0x40);
        self.put(offset, value);
    }

    fn erase(&self, offset: u64) {
        self.put(offset, 0x20);
        self.put(offset, 0xd0);
    }

    fn status(&self) -> u8 {
        self.put(0, 0x70);
        word(&self.flash, 0) as u8
    }
}

/// A variable as OVMF sets it: its data, and the state by which it counts, of neither of which it asks how that went.
fn set_variable(rig: &Rig) {
    let step = u64::from(rig.geometry.width);
    (0..8).for_each(|at| rig.program(0x2000 + at * step, 0x11));
    rig.put(0, 0xff);
    rig.program(0x1000, 0x3f);
    rig.put(0, 0xff);
}

#[test]
fn a_variable_whose_data_the_host_refuses_never_counts() {
    for geometry in [Geometry::PC, Geometry::VIRT] {
        let whole = Rig::new(geometry, usize::MAX);
        set_variable(&whole);
        let operations = whole.operations();
        assert_eq!((operations, whole.status()), (4, status::READY), "two writes, each with its sync");
        for fails_at in 0..operations {
            let rig = Rig::new(geometry, fails_at);
            let (before, width) = (content(&rig.file), geometry.width as usize);
            set_variable(&rig);
            let refused = status::READY | status::SEQUENCE;
            assert_eq!(rig.status() & refused, refused, "{fails_at}");
            let after = content(&rig.file);
            let counts = after[0x1000] != before[0x1000];
            let has_data = after[0x2000..0x2000 + 8 * width] == content(&whole.file)[0x2000..0x2000 + 8 * width];
            assert!(has_data || !counts, "{fails_at}: a variable without its data");
            // The host is well again, and the guest does not mind.
            rig.put(0, 0x50);
            rig.program(0x3000, 0);
            assert_eq!(rig.status(), status::READY | status::PROGRAM_FAILED);
            rig.put(0, 0x50);
            rig.erase(0x2000);
            assert_eq!(rig.status(), status::READY | status::ERASE_FAILED);
            rig.flash.reset();
            set_variable(&rig);
            assert!(content(&rig.file) == after, "{fails_at}: it stays as it was");
            assert_eq!(word(&rig.flash, 0x3000), u32::MAX, "what has failed has not been done");
        }
    }
}

#[test]
fn a_sync_that_fails_is_not_forgotten() {
    let rig = Rig::new(Geometry::PC, 1);
    rig.program(0x1000, 0);
    rig.put(0, 0xff);
    let is_unsynced = || rig.flash.lock().store.as_ref().unwrap().is_unsynced();
    assert!(is_unsynced() && rig.operations() == 2);
    assert_eq!(rig.status(), status::READY | status::SEQUENCE);
    // Linux would say that all is well, once it has told of what is lost.
    rig.put(0, 0xff);
    assert!(is_unsynced() && rig.operations() == 2);
}

#[test]
fn a_block_that_is_written_anew_is_whole_or_as_it_was_whatever_the_host_refuses() {
    let rewrite = |rig: &Rig| {
        rig.erase(0);
        for offset in (0..1024).step_by(128) {
            rig.put(offset, 0xe8);
            rig.put(offset, 31);
            (offset..offset + 128).step_by(4).for_each(|at| _ = put_word(&rig.flash, at, at as u32));
            rig.put(offset, 0xd0);
            rig.put(offset, 0xff);
        }
        rig.put(0, 0x90);
        rig.put(0, 0xff);
    };
    let whole = Rig::new(Geometry::VIRT, usize::MAX);
    let before = content(&whole.file);
    rewrite(&whole);
    let after = content(&whole.file);
    assert_eq!(whole.operations(), 6, "journal and block, each with its sync, the cut, and its sync");
    for fails_at in 0..whole.operations() {
        let rig = Rig::new(Geometry::VIRT, fails_at);
        rewrite(&rig);
        assert_eq!(rig.status(), status::READY | status::SEQUENCE, "{fails_at}");
        set_variable(&rig);
        // What the next start of a machine does.
        let has_journal = (2..5).contains(&fails_at);
        assert_eq!(mend(&rig.file, SIZE, Geometry::VIRT).unwrap(), has_journal, "{fails_at}");
        let wanted = if fails_at < 2 { &before } else { &after };
        assert!(content(&rig.file) == *wanted, "{fails_at}");
    }
}

/// A disk that is full, as the host says it.
#[test]
fn a_full_disk_is_a_failed_operation() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let flash = flash(Geometry::PC, Some(full));
    for (offset, value) in [(0x2000, 0x40), (0x2000, 1), (0, 0x70)] {
        let _ = flash.write(0, offset, &[value]);
    }
    assert_eq!(word(&flash, 0) as u8, status::READY | status::SEQUENCE);
}
