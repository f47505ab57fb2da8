use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;
use crate::testing::finish;
use crate::{Buffer, IoError, Operation, Request};

const SIZE: usize = 1 << 20;

/// An image of `SIZE` bytes that count up, and its folder.
fn image() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, pattern(0, SIZE)).unwrap();
    (folder, path)
}

fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|n| (n ^ n >> 9) as u8).collect()
}

/// The engines that this host has.
fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Threads];
    engines.extend(uring::probe().is_ok().then_some(Engine::IoUring));
    engines
}

fn open(path: &Path, engine: Engine) -> Arc<FileDisk> {
    FileDisk::open(path, &FileOptions { engine, ..FileOptions::default() }).unwrap()
}

fn buffer(data: &[u8]) -> Buffer {
    let buffer = Buffer::zeroed(data.len());
    buffer.copy_in(0, data);
    buffer
}

fn content(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.copy_out(0, &mut bytes);
    bytes
}

fn run(queue: &mut dyn DiskQueue, operation: Operation, buffer: Buffer) -> (Result<(), IoError>, Vec<u8>) {
    queue.submit(Request { tag: 7, operation, buffer }).unwrap();
    let mut done = finish(queue);
    assert_eq!((done.len(), done[0].tag), (1, 7));
    let done = done.remove(0);
    (done.result, content(&done.buffer))
}

#[test]
fn both_engines_read_write_and_flush() {
    for engine in engines() {
        let (_folder, path) = image();
        let disk = open(&path, engine);
        assert_eq!((disk.engine(), disk.info().size, disk.info().block_size), (engine, SIZE as u64, 512));
        let mut queue = disk.open_queue(8).unwrap();
        let read = run(&mut *queue, Operation::Read { offset: 512 }, Buffer::zeroed(4096));
        assert_eq!(read, (Ok(()), pattern(512, 4096)));
        for fua in [false, true] {
            let write = Operation::Write { offset: 8192, fua };
            assert_eq!(run(&mut *queue, write, buffer(&[7 + u8::from(fua); 1024])).0, Ok(()));
        }
        assert_eq!(run(&mut *queue, Operation::Flush, Buffer::empty()).0, Ok(()));
        assert_eq!(std::fs::read(&path).unwrap()[8192..9216], [8; 1024]);
    }
}

#[test]
fn a_batch_completes_whole_in_any_order() {
    for engine in engines() {
        let (_folder, path) = image();
        let mut queue = open(&path, engine).open_queue(64).unwrap();
        for tag in 0..64 {
            let operation = Operation::Read { offset: tag * 4096 };
            queue.submit(Request { tag, operation, buffer: Buffer::zeroed(4096) }).unwrap();
        }
        assert!(queue.submit(Request { tag: 64, operation: Operation::Flush, buffer: Buffer::empty() }).is_err());
        let mut done = finish(&mut *queue);
        done.sort_by_key(|completion| completion.tag);
        assert_eq!(done.len(), 64);
        for (tag, completion) in done.iter().enumerate() {
            assert_eq!((completion.tag, completion.result), (tag as u64, Ok(())));
            assert_eq!(content(&completion.buffer), pattern(tag * 4096, 4096));
        }
    }
}

#[test]
fn discards_and_zeroes_give_space_back_or_keep_it() {
    for engine in engines() {
        let (_folder, path) = image();
        let disk = open(&path, engine);
        let before = std::fs::metadata(&path).unwrap().blocks();
        let mut queue = disk.open_queue(4).unwrap();
        let zeroes = Operation::WriteZeroes { offset: 0, len: 65536, may_discard: false, fua: true };
        assert_eq!(run(&mut *queue, zeroes, Buffer::empty()).0, Ok(()));
        assert_eq!(std::fs::read(&path).unwrap()[..65536], [0; 65536]);
        assert!(disk.info().discard, "the tests' file system punches holes");
        let discard = Operation::Discard { offset: 65536, len: 65536 };
        assert_eq!(run(&mut *queue, discard, Buffer::empty()).0, Ok(()));
        let zeroes = Operation::WriteZeroes { offset: 131_072, len: 65536, may_discard: true, fua: false };
        assert_eq!(run(&mut *queue, zeroes, Buffer::empty()).0, Ok(()));
        assert_eq!(std::fs::read(&path).unwrap()[65536..196_608], [0; 131_072]);
        let blocks = std::fs::metadata(&path).unwrap().blocks();
        assert!(before - blocks >= 256, "128 KiB less than {before} are not {blocks}");
        assert_eq!(disk.info().size, SIZE as u64);
    }
}

/// By it a snapshot knows whether its disks have been written since.
#[test]
fn an_image_that_is_opened_keeps_the_time_of_its_last_change() {
    let (_folder, path) = image();
    let past = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
    assert!(open(&path, Engine::Threads).info().discard);
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), past);
}

#[test]
fn zeroes_are_written_where_the_file_system_has_no_better_way() {
    let (_folder, path) = image();
    for engine in engines() {
        let disk = open(&path, engine);
        disk.target.no_zero_range.store(true, Ordering::Relaxed);
        let mut queue = disk.open_queue(4).unwrap();
        // More than one call takes.
        let len = SIZE as u64 - 512;
        let zeroes = Operation::WriteZeroes { offset: 512, len, may_discard: false, fua: true };
        assert_eq!(run(&mut *queue, zeroes, Buffer::empty()).0, Ok(()));
        let found = std::fs::read(&path).unwrap();
        assert_eq!(found[..512], pattern(0, 512));
        assert!(found[512..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_can_not_be_done_says_why() {
    for engine in engines() {
        let (_folder, path) = image();
        let options = FileOptions { read_only: true, engine, ..FileOptions::default() };
        let disk = FileDisk::open(&path, &options).unwrap();
        let mut queue = disk.open_queue(4).unwrap();
        let write = Operation::Write { offset: 0, fua: false };
        assert_eq!(run(&mut *queue, write, buffer(&[1; 512])).0, Err(IoError::ReadOnly));
        assert_eq!(run(&mut *queue, Operation::Flush, Buffer::empty()).0, Ok(()));
        let end = SIZE as u64;
        assert_eq!(run(&mut *queue, Operation::Read { offset: end }, Buffer::zeroed(512)).0, Err(IoError::OutOfRange));
        // The file has become shorter, and nobody has been told.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let (result, data) = run(&mut *queue, Operation::Read { offset: 0 }, Buffer::zeroed(8192));
        assert_eq!((result, &data[..4096]), (Err(IoError::OutOfRange), &pattern(0, 4096)[..]));
    }
}

#[test]
fn direct_io_takes_memory_that_is_not_aligned() {
    for engine in engines() {
        // In the target folder, since a tmpfs has no direct I/O to test with.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, pattern(0, SIZE)).unwrap();
        let options = FileOptions { direct: true, engine, ..FileOptions::default() };
        let disk = FileDisk::open(&path, &options).unwrap();
        let block = disk.info().block_size as usize;
        let map = skep_memory::MemoryMap::new();
        let backing = Arc::new(skep_memory::Backing::new(SIZE as u64, &skep_memory::RamOptions::default()).unwrap());
        let kind = skep_memory::RegionKind::Ram;
        map.add(skep_memory::Region::new("ram", kind, 0, SIZE as u64, backing, 0).unwrap()).unwrap();
        let unaligned = || {
            let mut buffer = Buffer::guest(map.ram());
            buffer.push(3, 100).unwrap();
            // More than goes through aligned memory at once.
            buffer.push(0x1001, 127 * 4096 + block - 100).unwrap();
            buffer
        };
        let mut queue = disk.open_queue(4).unwrap();
        let len = 127 * 4096 + block;
        let read = run(&mut *queue, Operation::Read { offset: 4096 }, unaligned());
        assert!(read == (Ok(()), pattern(4096, len)), "{engine:?}");
        let from = unaligned();
        from.copy_in(0, &pattern(77, len));
        assert_eq!(run(&mut *queue, Operation::Write { offset: 0, fua: true }, from).0, Ok(()));
        assert!(std::fs::read(&path).unwrap()[..len] == pattern(77, len));
    }
}

#[test]
fn one_writer_or_many_readers() {
    let (_folder, path) = image();
    let read_only = FileOptions { read_only: true, ..FileOptions::default() };
    let readers = (FileDisk::open(&path, &read_only).unwrap(), FileDisk::open(&path, &read_only).unwrap());
    let refused = FileDisk::open(&path, &FileOptions::default()).err().unwrap().to_string();
    let me = format!("process {} (", std::process::id());
    assert!(refused.contains("disk.img` is in use by ") && refused.contains(&me), "{refused}");
    drop(readers);
    let writer = FileDisk::open(&path, &FileOptions::default()).unwrap();
    assert!(matches!(FileDisk::open(&path, &read_only), Err(BlockError::Locked { .. })));
    let unlocked = FileOptions { lock: Locking::Never, ..FileOptions::default() };
    assert!(FileDisk::open(&path, &unlocked).is_ok());
    drop(writer);
    assert!(FileDisk::open(&path, &read_only).is_ok());
}

#[test]
fn a_lock_goes_from_one_to_another() {
    let (_folder, path) = image();
    let one = FileDisk::open(&path, &FileOptions::default()).unwrap();
    let other = FileDisk::open(&path, &FileOptions { lock: Locking::Later, ..FileOptions::default() }).unwrap();
    let is_locked = |result: Result<(), BlockError>| matches!(result, Err(BlockError::Locked { .. }));
    assert!(is_locked(other.hold(true)));
    one.hold(true).unwrap();
    one.hold(false).unwrap();
    other.hold(true).unwrap();
    assert!(is_locked(one.hold(true)));
    // Who has given it away does not take it from the other by going.
    drop(one);
    assert!(is_locked(FileDisk::open(&path, &FileOptions::default()).map(drop)));
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |path: &Path| FileDisk::open(path, &FileOptions { read_only: true, ..FileOptions::default() });
    let text = refusal(folder.path()).err().unwrap().to_string();
    assert!(text.ends_with("it is neither a file nor a block device"), "{text}");
    let missing = folder.path().join("none");
    let text = refusal(&missing).err().unwrap().to_string();
    assert!(text.starts_with("can't open for reading `") && text.contains("none`: "), "{text}");
}

#[test]
fn a_new_size_is_told_until_nobody_listens() {
    let (_folder, path) = image();
    let disk = open(&path, Engine::Threads);
    let (sender, told) = std::sync::mpsc::channel();
    let listening = disk.on_resize(Arc::new(move |size| sender.send(size).unwrap()));
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(2 * SIZE as u64 + 100).unwrap();
    assert_eq!((disk.refresh().unwrap(), disk.refresh().unwrap()), (2 * SIZE as u64, 2 * SIZE as u64));
    drop(listening);
    file.set_len(SIZE as u64).unwrap();
    assert_eq!(disk.refresh().unwrap(), SIZE as u64);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [2 * SIZE as u64], "once for each change, in whole blocks");
}

#[test]
fn a_queue_that_is_dropped_waits_for_what_is_in_flight() {
    for engine in engines() {
        let (_folder, path) = image();
        let mut queue = open(&path, engine).open_queue(32).unwrap();
        for tag in 0..32 {
            let operation = Operation::Write { offset: tag * 4096, fua: true };
            queue.submit(Request { tag, operation, buffer: buffer(&[tag as u8 + 1; 4096]) }).unwrap();
        }
        queue.kick();
        queue.cancel(31);
        drop(queue);
        let found = std::fs::read(&path).unwrap();
        for tag in 0..31 {
            assert_eq!(found[tag * 4096..(tag + 1) * 4096], [tag as u8 + 1; 4096]);
        }
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write(usize, usize, u8, bool),
    Zero(usize, usize, bool),
    Discard(usize, usize),
    Read(usize, usize),
    Flush,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let range = || (0usize..128, 1usize..64);
    let act = prop_oneof![
        (range(), any::<(u8, bool)>()).prop_map(|((at, len), (byte, fua))| Act::Write(at, len, byte, fua)),
        (range(), any::<bool>()).prop_map(|((at, len), may)| Act::Zero(at, len, may)),
        range().prop_map(|(at, len)| Act::Discard(at, len)),
        range().prop_map(|(at, len)| Act::Read(at, len)),
        Just(Act::Flush),
    ];
    proptest::collection::vec(act, 1..10)
}

proptest! {
    /// Both engines do what a vector does.
    #[test]
    fn fuzz_engines_against_a_vector(acts in acts()) {
        for engine in engines() {
            let (_folder, path) = image();
            let mut queue = open(&path, engine).open_queue(2).unwrap();
            let mut model = pattern(0, SIZE);
            for act in &acts {
                let bytes = |at: usize, len: usize| at * 512..(at + len) * 512;
                match *act {
                    Act::Write(at, len, byte, fua) => {
                        model[bytes(at, len)].fill(byte);
                        let write = Operation::Write { offset: at as u64 * 512, fua };
                        prop_assert_eq!(run(&mut *queue, write, buffer(&vec![byte; len * 512])).0, Ok(()));
                    }
                    Act::Zero(at, len, may_discard) => {
                        model[bytes(at, len)].fill(0);
                        let (offset, len) = (at as u64 * 512, len as u64 * 512);
                        let zeroes = Operation::WriteZeroes { offset, len, may_discard, fua: false };
                        prop_assert_eq!(run(&mut *queue, zeroes, Buffer::empty()).0, Ok(()));
                    }
                    Act::Discard(at, len) => {
                        model[bytes(at, len)].fill(0);
                        let discard = Operation::Discard { offset: at as u64 * 512, len: len as u64 * 512 };
                        prop_assert_eq!(run(&mut *queue, discard, Buffer::empty()).0, Ok(()));
                    }
                    Act::Read(at, len) => {
                        let read = Operation::Read { offset: at as u64 * 512 };
                        let (result, data) = run(&mut *queue, read, Buffer::zeroed(len * 512));
                        prop_assert_eq!(result, Ok(()));
                        prop_assert!(data == model[bytes(at, len)]);
                    }
                    Act::Flush => prop_assert_eq!(run(&mut *queue, Operation::Flush, Buffer::empty()).0, Ok(())),
                }
            }
            prop_assert!(std::fs::read(&path).unwrap() == model);
        }
    }
}

#[test]
fn an_image_is_anothers_to_use_when_it_was_told_so() {
    for engine in engines() {
        let (_folder, path) = image();
        let disk = open(&path, engine);
        let mut queue = disk.open_queue(8).unwrap();
        let (told, released) = std::sync::mpsc::channel();
        let again = path.clone();
        let open = move || FileDisk::open(&again, &FileOptions::default());
        disk.on_release(Box::new(move || told.send(open().is_ok()).unwrap()));
        queue
            .submit(Request { tag: 1, operation: Operation::Read { offset: 0 }, buffer: Buffer::zeroed(4096) })
            .unwrap();
        queue.kick();
        drop(disk);
        assert!(released.try_recv().is_err(), "a queue still uses it");
        assert!(FileDisk::open(&path, &FileOptions::default()).is_err());
        drop(queue);
        assert!(released.recv().unwrap());
    }
}
