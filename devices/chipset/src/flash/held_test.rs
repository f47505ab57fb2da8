use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use skep_clock::Clock;
use skep_memory::RamOptions;

use super::flash_test::{SIZE, content, file_of, flash, flash_at, put_word, word};
use super::*;

impl Flash {
    fn wait_for_the_disk(&self) {
        let thread = self.waits.lock().unwrap().take();
        thread.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

/// A driver's write of a whole block: erased, and programmed by buffers of 128 bytes.
fn rewrite(flash: &Flash, block: u64, mut between: impl FnMut(u64)) {
    let size = u64::from(Geometry::VIRT.block);
    let _ = put_word(flash, block, 0x0020_0020);
    let _ = put_word(flash, block, 0x00d0_00d0);
    for offset in (block..block + size).step_by(128) {
        between(offset);
        let _ = put_word(flash, offset, 0x00e8_00e8);
        let _ = put_word(flash, offset, 0x001f_001f);
        // The end of it is empty.
        let value = if offset < block + 1024 { offset as u32 } else { u32::MAX };
        (offset..offset + 128).step_by(4).for_each(|at| _ = put_word(flash, at, value));
        let _ = put_word(flash, offset, 0x00d0_00d0);
        let _ = put_word(flash, offset, 0x00ff_00ff);
    }
}

#[test]
fn its_file_has_a_block_that_is_written_anew_as_it_was_until_it_is_whole() {
    let (file, clock) = (file_of(&flash(Geometry::VIRT, None)), Clock::manual(0));
    let flash = flash_at(Geometry::VIRT, Some(file.try_clone().unwrap()), clock.clone());
    let before = content(&file);
    rewrite(&flash, 0, |_| assert!(content(&file) == before));
    // No more comes, which shows when something else does.
    assert!(content(&file) == before);
    let _ = put_word(&flash, 0, 0x0090_0090);
    let whole = content(&file);
    assert!(whole == flash.content_of(0..SIZE) && whole != before);
    assert_eq!((whole[1020..1024].to_vec(), whole[1024]), (vec![0x80, 3, 0, 0], 0xff));
    let _ = put_word(&flash, 0, 0x00ff_00ff);
    assert!(!flash.lock().store.as_ref().unwrap().is_unsynced());
    // Killed before its end, it is what it was; saved there, it goes on.
    let words =
        [(0, 0x0020_0020), (0, 0x00d0_00d0), (0, 0x00e8_00e8), (0, 0), (0, 5), (0, 0x00d0_00d0), (0, 0x00ff_00ff)];
    words.iter().for_each(|(offset, value)| _ = put_word(&flash, *offset, *value));
    assert!(content(&file) == whole && word(&flash, 0) == 5);
    let state = flash.save();
    drop(flash);
    assert!(content(&file) == whole, "who has been saved leaves the file alone");
    let flash = flash_at(Geometry::VIRT, Some(file.try_clone().unwrap()), clock.clone());
    flash.store(0, &whole);
    flash.restore(&state).unwrap();
    assert!(flash.save() == state && content(&file) == whole && word(&flash, 0) == 5);
    // While it stood still, its guest could not go on, and the file may be another's. Left alone, the block is taken for what it is; so it is where another
    // is changed.
    clock.advance(10 * held::PATIENCE_WITH_LESS);
    flash.wait_for_the_disk();
    assert!(content(&file) == whole);
    flash.resumed();
    let buffered = |offset: u64, value: u32| {
        let words = [0x00e8_00e8, 0, value, 0x00d0_00d0];
        words.iter().for_each(|value| _ = put_word(&flash, offset, *value));
    };
    buffered(8, 6);
    clock.advance(held::PATIENCE_WITH_LESS / 2);
    flash.wait_for_the_disk();
    assert!(content(&file) == whole);
    clock.advance(held::PATIENCE_WITH_LESS);
    flash.wait_for_the_disk();
    assert_eq!(content(&file)[..9], [5, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 6]);
    let erase = |block: u64| [0x0020_0020, 0x00d0_00d0].map(|value| _ = put_word(&flash, block, value));
    erase(0);
    assert_eq!(content(&file)[0], 5);
    erase(0x4_0000);
    assert_eq!(content(&file)[0], 0xff);
    // What goes on with it goes upwards, and its last byte is the end of it.
    buffered(0x4_0000, 5);
    let _ = put_word(&flash, 0, 0x0098_0098);
    assert_eq!(content(&file)[0x4_0000], 5);
    erase(0x4_0000);
    buffered(0x4_0000, 4);
    erase(0x4_0000);
    buffered(0x4_0004, 7);
    buffered(0x4_0008, 8);
    assert_eq!([0, 8].map(|at| content(&file)[0x4_0000 + at]), [5, 0xff], "erased twice, it is what it was before");
    buffered(0x4_0000, 6);
    assert_eq!([0, 4, 8].map(|at| content(&file)[0x4_0000 + at]), [6, 7, 8]);
    erase(0x4_0000);
    buffered(0x7_fffc, 9);
    assert_eq!([0, 0x3_fffc].map(|at| content(&file)[0x4_0000 + at]), [0xff, 9]);
    erase(0x4_0000);
    buffered(0x4_0000, 7);
    drop(flash);
    assert_eq!(content(&file)[0x4_0000], 0xff, "a process that ends is no better than one that is killed");
}

#[test]
fn a_machine_that_ends_keeps_what_its_guest_has_set() {
    let set = |by_guest: Option<bool>, length: u64| {
        let (file, clock) = (file_of(&flash(Geometry::VIRT, None)), Clock::manual(0));
        file.write_all_at(&[1; 512], 0).unwrap();
        let flash = flash_at(Geometry::VIRT, Some(file.try_clone().unwrap()), clock);
        flash.store(0, &content(&file));
        let _ = put_word(&flash, 0, 0x0020_0020);
        let _ = put_word(&flash, 0, 0x00d0_00d0);
        for offset in (0..length).step_by(128) {
            let _ = put_word(&flash, offset, 0x00e8_00e8);
            let _ = put_word(&flash, offset, 0x001f_001f);
            (offset..offset + 128).step_by(4).for_each(|at| _ = put_word(&flash, at, 0x0505_0505));
            let _ = put_word(&flash, offset, 0x00d0_00d0);
            let _ = put_word(&flash, offset, 0x00ff_00ff);
        }
        match by_guest {
            Some(by_guest) => {
                let (tell, told) = mpsc::channel();
                flash.settle(by_guest, move || tell.send(()).unwrap());
                told.recv().unwrap();
                assert!(!flash.lock().store.as_ref().unwrap().is_unsynced());
            }
            None => {
                let _ = flash.save();
                flash.settle(true, || ());
                flash.wait_for_the_disk();
            }
        }
        drop(flash);
        let content = content(&file);
        (content[0], content[length as usize - 1])
    };
    // One that the guest has powered off, and one that is ended with a block that holds as much as it did.
    assert_eq!([set(Some(true), 1024), set(Some(false), 1024), set(Some(false), 512)], [(5, 5); 3]);
    // Half of it: what the guest itself ends is what it is; else all that is missing was there.
    assert_eq!([set(Some(true), 256), set(Some(false), 256)], [(5, 5), (1, 1)]);
    // Another process may have the file.
    assert_eq!(set(None, 512), (1, 1));
}

/// A machine that is saved, or restored, goes on or does not: who has the file is who does.
#[test]
fn a_block_that_was_held_is_written_once_its_machine_goes_on() {
    let begun = || {
        let (file, clock) = (file_of(&flash(Geometry::VIRT, None)), Clock::manual(0));
        let flash = flash_at(Geometry::VIRT, Some(file.try_clone().unwrap()), clock.clone());
        let words = [0x0020_0020, 0x00d0_00d0, 0x00e8_00e8, 0, 5, 0x00d0_00d0, 0x00ff_00ff];
        words.iter().for_each(|value| _ = put_word(&flash, 0, *value));
        assert_eq!((content(&file)[0], word(&flash, 0)), (b'c', 5));
        (flash, file, clock)
    };
    let pass = |flash: &Flash, clock: &Clock, nanos: u64| {
        clock.advance(nanos);
        flash.wait_for_the_disk();
    };
    let settled = |flash: &Arc<Flash>, by_guest| {
        let (tell, told) = mpsc::channel();
        flash.settle(by_guest, move || tell.send(()).unwrap());
        told.recv().unwrap();
    };
    // Its timer may fire before it goes on, or not.
    for stands in [0, 10 * held::PATIENCE_WITH_LESS] {
        let (flash, file, clock) = begun();
        let state = flash.save();
        pass(&flash, &clock, stands);
        assert_eq!(content(&file)[0], b'c');
        flash.resumed();
        pass(&flash, &clock, held::PATIENCE_WITH_LESS - 1);
        assert_eq!(content(&file)[0], b'c', "its guest has had no time before");
        pass(&flash, &clock, 1);
        assert_eq!(content(&file)[..5], [5, 0, 0, 0, 0xff]);

        let (_, file, clock) = begun();
        let heir = flash_at(Geometry::VIRT, Some(file.try_clone().unwrap()), clock.clone());
        heir.restore(&state).unwrap();
        pass(&heir, &clock, stands);
        assert_eq!((content(&file)[0], word(&heir, 0)), (b'c', 5));
        heir.resumed();
        pass(&heir, &clock, held::PATIENCE_WITH_LESS - 1);
        assert_eq!(content(&file)[0], b'c');
        pass(&heir, &clock, 1);
        assert_eq!(content(&file)[..5], [5, 0, 0, 0, 0xff]);
    }
    // It stands still, and its clock follows the host's.
    let (flash, file, clock) = begun();
    clock.set(10 * held::PATIENCE_WITH_LESS);
    flash.resumed();
    pass(&flash, &clock, 0);
    assert_eq!(content(&file)[0], b'c');
    pass(&flash, &clock, held::PATIENCE_WITH_LESS);
    assert_eq!(content(&file)[0], 5);
    // What holds as much as it did is whole sooner.
    let words = [0x0020_0020, 0x00d0_00d0, 0x00e8_00e8, 0, 7, 0x00d0_00d0, 0x00ff_00ff];
    words.iter().for_each(|value| _ = put_word(&flash, 0, *value));
    pass(&flash, &clock, held::PATIENCE - 1);
    assert_eq!(content(&file)[0], 5);
    pass(&flash, &clock, 1);
    assert_eq!(content(&file)[0], 7);
    // Saved again, it has been given away again.
    let (flash, file, clock) = begun();
    let _ = flash.save();
    flash.resumed();
    let _ = flash.save();
    pass(&flash, &clock, 10 * held::PATIENCE_WITH_LESS);
    settled(&flash, true);
    assert_eq!(content(&file)[0], b'c');
    // It ends, after it has gone on.
    flash.resumed();
    settled(&flash, true);
    assert_eq!(content(&file)[0], 5);
    // Begun anew, it has gone on as well.
    let (flash, file, _) = begun();
    let _ = flash.save();
    flash.reset();
    assert!(content(&file)[0] == 5 && !flash.is_saved());
}

/// A disk that hangs keeps neither console nor clock.
#[test]
fn nobody_but_the_guest_waits_for_the_disk() {
    struct Hanging(File, mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);
    impl Media for Hanging {
        fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
            self.0.write_all_at(bytes, at)
        }
        fn sync(&self) -> io::Result<()> {
            self.1.send(()).unwrap();
            self.2.lock().unwrap().recv().map_err(io::Error::other)
        }
        fn cut(&self, size: u64) -> io::Result<()> {
            self.0.set_len(size)
        }
    }
    let (file, clock) = (file_of(&flash(Geometry::VIRT, None)), Clock::manual(0));
    let ((end, hangs), (tell, told)) = (mpsc::channel(), mpsc::channel());
    let media = Hanging(file.try_clone().unwrap(), tell, Mutex::new(hangs));
    let ram = Arc::new(Backing::new(SIZE, &RamOptions::default()).unwrap());
    let config = FlashConfig {
        name: "flash",
        base: 0x1000,
        content: ram,
        geometry: Geometry::VIRT,
        file: None,
        clock: clock.clone(),
    };
    let flash = Flash::on(config, Some(Box::new(media))).unwrap();
    flash.store(0, &content(&file));
    let words = [0x0020_0020, 0x00d0_00d0, 0x00e8_00e8, 0, 5, 0x00d0_00d0];
    words.iter().for_each(|value| _ = put_word(&flash, 0, *value));
    clock.advance(2 * held::PATIENCE_WITH_LESS);
    told.recv().unwrap();
    // Nor one that was paused.
    flash.resumed();
    (0..2).for_each(|_| end.send(()).unwrap());
    flash.wait_for_the_disk();
    assert_eq!(content(&file)[0], 5);
}

/// The file as a process leaves it that is killed while it writes a block.
#[test]
fn a_file_is_mended_whose_process_ended_as_it_wrote_a_block() {
    let (size, block) = (SIZE, vec![7; Geometry::VIRT.block as usize]);
    let make = |behind: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; size as usize]).and_then(|()| file.write_all(behind)).unwrap();
        file
    };
    let mut done = vec![1; size as usize];
    done[0x4_0000..].fill(7);
    let mut behind = held::journal(0x4_0000, &block);
    let file = make(&behind);
    assert!(mend(&file, size, Geometry::VIRT).unwrap() && content(&file) == done);
    assert!(!mend(&file, size, Geometry::VIRT).unwrap());
    // Not all of it is there: it has not been begun to be written where it belongs.
    for length in [8, 32, 4096, behind.len() - 1] {
        let file = make(&behind[..length]);
        assert!(mend(&file, size, Geometry::VIRT).unwrap() && content(&file) == vec![1; size as usize], "{length}");
    }
    let file = make(&vec![0; behind.len()]);
    assert!(mend(&file, size, Geometry::VIRT).unwrap() && content(&file).len() as u64 == size);
    // What is none of ours stays.
    for strange in [&b"skep"[..], &vec![0; behind.len() + 1], &vec![0; behind.len() - 1], &[0; 4096], &[1; 100]] {
        let file = make(strange);
        assert!(!mend(&file, size, Geometry::VIRT).unwrap() && content(&file).len() as u64 > size);
    }
    // One that belongs beyond the end is not put there.
    behind = held::journal(size - 1, &block);
    let file = make(&behind);
    assert!(mend(&file, size, Geometry::VIRT).unwrap() && content(&file) == vec![1; size as usize]);
    // As it is written by itself.
    let file = make(&[]);
    held::write(&file, size, 0x4_0000, &block).unwrap();
    assert!(content(&file) == done);
}
