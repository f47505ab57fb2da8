//! qcow2 images, compared with `qemu-img`: what it makes is read right, and what is made or written here is sound and the same to it.
#![allow(clippy::unwrap_used)] // Helpers of tests.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use skep_block::image::{self, Backing, CreateOptions, ImageFormat, NewImage};
use skep_block::testing::finish;
use skep_block::{
    BlockError, Buffer, Disk, DiskQueue, FileDisk, FileOptions, ImageDisk, IoError, Operation, Qcow2Disk, Request,
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
const SIZE: usize = 4 * MIB;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn output(&self, program: &str, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.0.path());
        command.output().unwrap_or_else(|error| panic!("{program}: {error}: run tools/setup"))
    }

    /// Runs `qemu-img`, which succeeds.
    #[track_caller]
    fn qemu_img(&self, line: &str) -> String {
        let output = self.output("qemu-img", &line.split(' ').collect::<Vec<_>>());
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "qemu-img {line}: {text}");
        text
    }

    /// Runs a command of `qemu-io` on an image.
    #[track_caller]
    fn qemu_io(&self, image: &str, command: &str) {
        let output = self.output("qemu-io", &["-f", "qcow2", "-c", command, image]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// To `qemu-img` the image is sound, without lost clusters, and holds `bytes`.
    #[track_caller]
    fn is_sound(&self, image: &str, bytes: &[u8]) {
        self.qemu_img(&format!("check -q -f qcow2 {image}"));
        self.write("expected.raw", bytes);
        self.qemu_img(&format!("compare -f qcow2 -F raw {image} expected.raw"));
    }
}

/// Data that compresses a little, with holes.
fn pattern(len: usize) -> Vec<u8> {
    let mut random = 7_u32;
    let mut bytes = vec![0; len];
    for (index, part) in bytes.chunks_mut(24 << 10).enumerate() {
        if index % 3 == 0 {
            continue;
        }
        for byte in part {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (random >> 29) as u8;
        }
    }
    bytes
}

fn buffer(bytes: &[u8]) -> Buffer {
    let buffer = Buffer::zeroed(bytes.len());
    buffer.copy_in(0, bytes);
    buffer
}

#[track_caller]
fn run(queue: &mut dyn DiskQueue, operation: Operation, buffer: Buffer) -> Vec<u8> {
    queue.submit(Request { tag: 7, operation, buffer }).unwrap();
    let done = finish(queue).remove(0);
    assert_eq!(done.result, Ok(()), "{operation:?}");
    let mut bytes = vec![0; done.buffer.len()];
    done.buffer.copy_out(0, &mut bytes);
    bytes
}

fn read_only() -> FileOptions {
    FileOptions { read_only: true, ..FileOptions::default() }
}

fn content(path: &Path) -> Vec<u8> {
    let disk = Qcow2Disk::open(path, &read_only()).unwrap();
    let len = disk.info().size as usize;
    run(&mut *disk.open_queue(1).unwrap(), Operation::Read { offset: 0 }, Buffer::zeroed(len))
}

fn open(path: &Path) -> Arc<Qcow2Disk> {
    Qcow2Disk::open(path, &FileOptions::default()).unwrap()
}

#[track_caller]
fn refused(path: &Path) -> String {
    match Qcow2Disk::open(path, &FileOptions::default()) {
        Err(error @ BlockError::Unusable { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it is opened"),
    }
}

fn create(path: &Path, size: usize, qcow2: CreateOptions) {
    image::create(path, ImageFormat::Qcow2, Some(size as u64), &NewImage { qcow2, force: false }).unwrap();
}

/// Versions, clusters and counts of every kind.
const KINDS: [&str; 8] = [
    "compat=0.10",
    "compat=1.1",
    "compat=1.1,cluster_size=512",
    "compat=0.10,cluster_size=4096",
    "compat=1.1,cluster_size=2097152",
    "compat=1.1,lazy_refcounts=on",
    "compat=1.1,refcount_bits=1",
    "compat=1.1,refcount_bits=64,cluster_size=4096",
];

#[test]
fn what_qemu_img_makes_is_read_and_written() {
    let folder = Folder::new();
    let bytes = pattern(SIZE);
    folder.write("source.raw", &bytes);
    for kind in KINDS {
        for compress in ["", "-c "] {
            let path = folder.path("image.qcow2");
            folder.qemu_img(&format!("convert -f raw -O qcow2 {compress}-o {kind} source.raw image.qcow2"));
            assert!(content(&path) == bytes, "{kind} {compress}");
            let disk = open(&path);
            let mut queue = disk.open_queue(4).unwrap();
            let mut expected = bytes.clone();
            for (offset, len) in [(512, 512), (70_000 / 512 * 512, 200 * 1024), (SIZE - 4096, 4096), (0, 4096)] {
                expected[offset..offset + len].fill(0xaa);
                let write = Operation::Write { offset: offset as u64, fua: offset == 0 };
                run(&mut *queue, write, buffer(&vec![0xaa; len]));
            }
            for (offset, len, may_discard) in [(MIB + 512, 300 << 10, false), (2 * MIB, MIB, true)] {
                expected[offset..offset + len].fill(0);
                let offset = offset as u64;
                let zeroes = Operation::WriteZeroes { offset, len: len as u64, may_discard, fua: false };
                run(&mut *queue, zeroes, Buffer::empty());
            }
            run(&mut *queue, Operation::Flush, Buffer::empty());
            let found = run(&mut *queue, Operation::Read { offset: 0 }, Buffer::zeroed(SIZE));
            assert!(found == expected, "{kind} {compress}");
            drop((queue, disk));
            folder.is_sound("image.qcow2", &expected);
            let (report, _) = image::check(&path, false).unwrap();
            assert_eq!((report.errors, report.leaks, &report.messages), (0, 0, &Vec::new()), "{kind} {compress}");
        }
    }
}

#[test]
fn images_with_backing_files_show_and_keep_them() {
    let folder = Folder::new();
    let bytes = pattern(SIZE / 2);
    folder.write("base.raw", &bytes);
    // A raw image under two of the other kind, the last of which is larger.
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw middle.qcow2");
    folder.qemu_io("middle.qcow2", "write -P 9 100k 64k");
    folder.qemu_img("create -q -f qcow2 -o compat=0.10 -b middle.qcow2 -F qcow2 old.qcow2 4M");
    folder.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2 4M");
    let middle = fs::read(folder.path("middle.qcow2")).unwrap();
    for top in ["old.qcow2", "top.qcow2"] {
        let mut expected = bytes.clone();
        expected.resize(SIZE, 0);
        expected[100 << 10..164 << 10].fill(9);
        assert!(content(&folder.path(top)) == expected);
        let disk = open(&folder.path(top));
        let mut queue = disk.open_queue(4).unwrap();
        expected[110 << 10..111 << 10].fill(3);
        run(&mut *queue, Operation::Write { offset: 110 << 10, fua: false }, buffer(&[3; 1024]));
        expected[512..1 << 20].fill(0);
        let zeroes = Operation::WriteZeroes { offset: 512, len: (1 << 20) - 512, may_discard: true, fua: false };
        run(&mut *queue, zeroes, Buffer::empty());
        drop((queue, disk));
        assert!(content(&folder.path(top)) == expected);
        folder.is_sound(top, &expected);
    }
    assert!(fs::read(folder.path("base.raw")).unwrap() == bytes);
    assert!(fs::read(folder.path("middle.qcow2")).unwrap() == middle);
}

#[test]
fn internal_snapshots_stay_what_they_are() {
    let folder = Folder::new();
    for (kind, compress) in [("cluster_size=4096", ""), ("compat=0.10", ""), ("cluster_size=65536", "-c ")] {
        let bytes = pattern(SIZE);
        folder.write("source.raw", &bytes);
        folder.qemu_img(&format!("convert -f raw -O qcow2 {compress}-o {kind} source.raw image.qcow2"));
        folder.qemu_img("snapshot -c before image.qcow2");
        let path = folder.path("image.qcow2");
        let told = image::info(&path, ImageFormat::Qcow2).unwrap();
        assert_eq!(told.qcow2.unwrap().snapshots, ["before"]);
        let disk = open(&path);
        let mut queue = disk.open_queue(4).unwrap();
        let mut expected = bytes.clone();
        for offset in (0..SIZE).step_by(96 << 10) {
            expected[offset..offset + 1024].fill(5);
            run(&mut *queue, Operation::Write { offset: offset as u64, fua: false }, buffer(&[5; 1024]));
        }
        expected[2 * MIB..3 * MIB].fill(0);
        run(&mut *queue, Operation::Discard { offset: 2 << 20, len: 1 << 20 }, Buffer::empty());
        drop((queue, disk));
        folder.is_sound("image.qcow2", &expected);
        let (report, _) = image::check(&path, false).unwrap();
        assert_eq!((report.errors, report.leaks, report.messages), (0, 0, Vec::new()), "{kind}");
        folder.qemu_img("snapshot -a before image.qcow2");
        folder.is_sound("image.qcow2", &bytes);
        assert!(content(&path) == bytes);
    }
}

#[test]
fn what_is_made_here_is_sound_to_qemu() {
    let folder = Folder::new();
    let expected = pattern(SIZE);
    for (index, cluster_size) in [512, 4096, 65536, 2 << 20].into_iter().enumerate() {
        let name = format!("new{index}.qcow2");
        let path = folder.path(&name);
        create(&path, SIZE, CreateOptions { cluster_size, backing: None });
        folder.is_sound(&name, &vec![0; SIZE]);
        let disk = open(&path);
        // Two queues write at once, each every other piece.
        let mut queues = [disk.open_queue(64).unwrap(), disk.open_queue(64).unwrap()];
        for (tag, piece) in expected.chunks(20 << 10).enumerate() {
            let queue = &mut queues[tag % 2];
            let operation = Operation::Write { offset: (tag * (20 << 10)) as u64, fua: false };
            let request = Request { tag: tag as u64, operation, buffer: buffer(piece) };
            if let Err(request) = queue.submit(request) {
                finish(&mut **queue).iter().for_each(|done| assert_eq!(done.result, Ok(())));
                queue.submit(request).unwrap();
            }
            queue.kick();
        }
        for queue in &mut queues {
            finish(&mut **queue).iter().for_each(|done| assert_eq!(done.result, Ok(())));
        }
        run(&mut *queues[0], Operation::Flush, Buffer::empty());
        drop((queues, disk));
        folder.is_sound(&name, &expected);
        assert!(content(&path) == expected);
    }
}

#[test]
fn backing_files_are_made_and_found_beside_the_image() {
    let folder = Folder::new();
    folder.write("base.raw", &pattern(SIZE));
    let backing = Backing { file: "base.raw".into(), format: Some("raw".to_owned()) };
    let new = NewImage { qcow2: CreateOptions { backing: Some(backing), ..CreateOptions::default() }, force: false };
    let size = image::create(&folder.path("top.qcow2"), ImageFormat::Qcow2, None, &new).unwrap();
    assert_eq!(size, SIZE as u64, "as large as what is behind it");
    assert!(folder.qemu_img("info top.qcow2").contains("backing file format: raw"));
    folder.is_sound("top.qcow2", &pattern(SIZE));
    let told = image::info(&folder.path("top.qcow2"), ImageFormat::Qcow2).unwrap();
    let behind = image::behind(&told).unwrap().unwrap();
    assert_eq!((behind.file, behind.format, behind.size), (folder.path("base.raw"), ImageFormat::Raw, SIZE as u64));
}

#[test]
fn every_image_of_a_chain_is_locked() {
    let folder = Folder::new();
    folder.write("base.raw", &pattern(SIZE));
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw one.qcow2");
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw two.qcow2");
    let (one, _two) = (open(&folder.path("one.qcow2")), open(&folder.path("two.qcow2")));
    let locked = |result: Result<(), BlockError>| matches!(result, Err(BlockError::Locked { .. }));
    assert!(locked(FileDisk::open(&folder.path("base.raw"), &FileOptions::default()).map(drop)), "others read it");
    assert!(FileDisk::open(&folder.path("base.raw"), &read_only()).is_ok());
    assert!(locked(Qcow2Disk::open(&folder.path("one.qcow2"), &read_only()).map(drop)));
    assert!(locked(image::check(&folder.path("one.qcow2"), false).map(drop)));
    one.hold(false).unwrap();
    let heir = Qcow2Disk::open(&folder.path("one.qcow2"), &FileOptions::default()).unwrap();
    assert!(locked(one.hold(true)) && heir.hold(true).is_ok());
    let there = NewImage { force: true, ..NewImage::default() };
    assert!(locked(image::create(&folder.path("one.qcow2"), ImageFormat::Raw, Some(512), &there).map(drop)));
}

#[test]
fn what_is_not_here_is_refused_by_name() {
    let folder = Folder::new();
    folder.write("base.raw", &pattern(MIB));
    for (made, reason) in [
        ("create -q -f qcow2 -o data_file=data.raw image.qcow2 1M", "does not have: external data file"),
        ("create -q -f qcow2 -o extended_l2=on image.qcow2 1M", "does not have: extended level 2 entries"),
        (
            "convert -f raw -O qcow2 -c -o compression_type=zstd base.raw image.qcow2",
            "its clusters are compressed by zstd: convert it by `qemu-img convert -O qcow2 -o compression_type=zlib`",
        ),
        ("convert -f raw -O raw base.raw image.qcow2", "it is no qcow2 image: is its format raw?"),
    ] {
        folder.qemu_img(made);
        let text = refused(&folder.path("image.qcow2"));
        assert!(text.contains(reason), "{text}");
    }
    // `qemu-img` times its own processor before it encrypts, and gives up where that clock is coarse: the header
    // is made here (`crypt_method`, bytes 32 to 35).
    for (method, reason) in [(1, "it is encrypted (AES)"), (2, "it is encrypted (LUKS)")] {
        folder.qemu_img("create -q -f qcow2 image.qcow2 1M");
        let mut bytes = fs::read(folder.path("image.qcow2")).unwrap();
        bytes[35] = method;
        let text = refused(&folder.write("image.qcow2", &bytes));
        assert!(text.contains(reason), "{text}");
    }
    // A feature that nobody knows, with and without a name for it.
    folder.qemu_img("create -q -f qcow2 image.qcow2 1M");
    let mut bytes = fs::read(folder.path("image.qcow2")).unwrap();
    bytes[72] = 0x80;
    assert!(refused(&folder.write("image.qcow2", &bytes)).contains("does not have: number 63"));
    let names = bytes.windows(8).position(|name| name == b"dirty bi").unwrap();
    bytes[names - 1] = 63;
    assert!(refused(&folder.write("image.qcow2", &bytes)).contains("does not have: dirty bit"));
}

#[test]
fn marks_keep_guests_from_writing_until_it_is_mended() {
    let folder = Folder::new();
    for (mark, reason) in
        [(1, "it was not closed, and its reference counts may be wrong"), (2, "it is marked as damaged")]
    {
        folder.qemu_img("create -q -f qcow2 image.qcow2 1M");
        folder.qemu_io("image.qcow2", "write -P 9 100k 64k");
        let mut bytes = fs::read(folder.path("image.qcow2")).unwrap();
        bytes[79] = mark;
        let path = folder.write("image.qcow2", &bytes);
        let text = refused(&path);
        assert!(text.contains(reason) && text.contains("`skep image check --format qcow2 --repair "), "{text}");
        assert!(content(&path)[100 << 10..164 << 10].iter().all(|byte| *byte == 9), "it can be read");
        let (_, after) = image::check(&path, true).unwrap();
        assert_eq!(after.map(|report| (report.errors, report.leaks)), Some((0, 0)));
        assert_eq!(fs::read(&path).unwrap()[79], 0);
        drop(open(&path));
    }
}

#[test]
fn what_qemu_finds_wrong_is_found_and_mended_here() {
    let folder = Folder::new();
    folder.write("source.raw", &pattern(SIZE));
    folder.qemu_img("convert -f raw -O qcow2 -o cluster_size=4096 source.raw image.qcow2");
    let mut bytes = fs::read(folder.path("image.qcow2")).unwrap();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    let (twice, missing) = (300, 301);
    bytes[block + twice * 2 + 1] = 2;
    bytes[block + missing * 2 + 1] = 0;
    let path = folder.write("image.qcow2", &bytes);
    let theirs = folder.output("qemu-img", &["check", "-f", "qcow2", "image.qcow2"]);
    assert_eq!(theirs.status.code(), Some(2), "{}", String::from_utf8_lossy(&theirs.stdout));
    let (before, after) = image::check(&path, true).unwrap();
    assert_eq!((before.errors, before.leaks), (1, 1), "{before:?}");
    assert_eq!(after.map(|report| (report.errors, report.leaks)), Some((0, 0)));
    folder.is_sound("image.qcow2", &pattern(SIZE));
}

#[test]
fn a_backing_file_has_a_named_format_and_is_not_its_own() {
    let folder = Folder::new();
    folder.write("base.raw", &pattern(MIB));
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw image.qcow2");
    // The extension with the format, made one that nobody knows.
    let mut bytes = fs::read(folder.path("image.qcow2")).unwrap();
    let at = bytes.windows(4).position(|kind| kind == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at] = 1;
    let path = folder.write("unnamed.qcow2", &bytes);
    let text = refused(&path);
    assert!(
        text.contains("it does not name the format of its backing file `base.raw`, which is never guessed"),
        "{text}"
    );
    // What the message says mends it.
    folder.qemu_img("rebase -u -f qcow2 -b base.raw -F raw unnamed.qcow2");
    drop(open(&path));
    folder.qemu_img("create -q -f qcow2 one.qcow2 1M");
    folder.qemu_img("create -q -f qcow2 -b one.qcow2 -F qcow2 two.qcow2");
    folder.qemu_img("rebase -u -f qcow2 -b two.qcow2 -F qcow2 one.qcow2");
    let text = Qcow2Disk::open(&folder.path("two.qcow2"), &read_only()).err().unwrap().to_string();
    assert!(text.contains("it is, through its backing files, behind itself"), "{text}");
    folder.qemu_img("rebase -u -f qcow2 -b json:{} -F qcow2 one.qcow2");
    assert!(refused(&folder.path("one.qcow2")).contains("is not named as a file of the host"));
    let mut last = "base.raw -F raw".to_owned();
    for depth in 0..65 {
        let backing = last.clone();
        let (file, format) = backing.split_once(" -F ").unwrap();
        let options = CreateOptions {
            backing: Some(Backing { file: file.into(), format: Some(format.to_owned()) }),
            cluster_size: 4096,
        };
        let new = NewImage { qcow2: options, force: false };
        let name = format!("deep{depth}.qcow2");
        let made = image::create(&folder.path(&name), ImageFormat::Qcow2, None, &new);
        assert_eq!(made.is_ok(), depth < 64, "{depth}");
        last = format!("{name} -F qcow2");
    }
    let text = refused(&folder.path("deep63.qcow2"));
    assert!(text.contains("more than 64 images are behind one another"), "{text}");
}

#[test]
fn who_waits_for_an_image_is_told_when_it_is_whole_and_free() {
    let folder = Folder::new();
    folder.write("base.raw", &pattern(MIB));
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw image.qcow2");
    let (path, base) = (folder.path("image.qcow2"), folder.path("base.raw"));
    let disk = open(&path);
    let mut queue = disk.open_queue(1).unwrap();
    run(&mut *queue, Operation::Write { offset: 0, fua: false }, buffer(&[7; 512]));
    let (sender, told) = std::sync::mpsc::channel();
    let released = path.clone();
    disk.on_release(Box::new(move || {
        let free = FileDisk::open(&base, &FileOptions::default()).is_ok();
        sender.send((free, content(&released)[..512] == [7; 512])).unwrap();
    }));
    assert_eq!(disk.refresh().unwrap(), MIB as u64);
    drop(disk);
    assert!(told.try_recv().is_err(), "a queue is left");
    drop(queue);
    assert_eq!(told.recv().unwrap(), (true, true));
}

/// CVE-2026-27211: a guest writes the header of another format into its raw disk, which is raw all the same.
#[test]
fn a_raw_disk_that_is_rewritten_as_qcow2_is_raw() {
    let folder = Folder::new();
    folder.write("secret", &[0x5e; 4096]);
    folder.qemu_img("create -q -f qcow2 -b secret -F raw evil.qcow2 1M");
    let mut evil = fs::read(folder.path("evil.qcow2")).unwrap();
    evil.resize(evil.len().next_multiple_of(512), 0);
    let path = folder.write("disk.raw", &vec![0; MIB]);
    let disk = FileDisk::open(&path, &FileOptions::default()).unwrap();
    let write = Operation::Write { offset: 0, fua: true };
    run(&mut *disk.open_queue(1).unwrap(), write, buffer(&evil));
    drop(disk);
    let disk = FileDisk::open(&path, &FileOptions::default()).unwrap();
    assert_eq!(disk.info().size, MIB as u64);
    let found = run(&mut *disk.open_queue(1).unwrap(), Operation::Read { offset: 0 }, Buffer::zeroed(evil.len()));
    assert!(found == evil);
    drop(disk);
    // As the backing file of another image too, and for all that is done with it.
    folder.qemu_img("create -q -f qcow2 -b disk.raw -F raw top.qcow2");
    assert!(content(&folder.path("top.qcow2")).starts_with(&evil));
    assert_eq!(image::info(&path, ImageFormat::Raw).unwrap().size, MIB as u64);
    let (from, to) = ((&*path, ImageFormat::Raw), folder.path("copy.raw"));
    image::convert(from, (&to, ImageFormat::Raw), &NewImage::default(), &mut |_, _| {}).unwrap();
    assert!(fs::read(&to).unwrap().starts_with(&evil));
}

#[test]
fn conversions_keep_content_and_leave_zeroes_out() {
    let folder = Folder::new();
    let mut bytes = pattern(SIZE);
    bytes[MIB..3 * MIB].fill(0);
    let raw = folder.write("source.raw", &bytes);
    let new = NewImage { qcow2: CreateOptions { cluster_size: 4096, backing: None }, force: false };
    let (one, two, three) = (folder.path("one.qcow2"), folder.path("two.qcow2"), folder.path("three.raw"));
    let mut steps = Vec::new();
    let formats = (ImageFormat::Raw, ImageFormat::Qcow2);
    image::convert((&raw, formats.0), (&one, formats.1), &new, &mut |done, of| steps.push((done, of))).unwrap();
    assert_eq!((steps.first(), steps.last()), (Some(&(0, SIZE as u64)), Some(&(SIZE as u64, SIZE as u64))));
    folder.is_sound("one.qcow2", &bytes);
    image::convert((&one, formats.1), (&two, formats.1), &NewImage::default(), &mut |_, _| {}).unwrap();
    folder.is_sound("two.qcow2", &bytes);
    image::convert((&two, formats.1), (&three, formats.0), &NewImage::default(), &mut |_, _| {}).unwrap();
    assert!(fs::read(&three).unwrap() == bytes);
    for path in [&one, &two, &three] {
        let allocated = image::info(path, ImageFormat::Raw).unwrap().allocated;
        assert!(allocated < 2 * MIB as u64, "{}: {allocated}", path.display());
    }
    let there = image::convert((&raw, formats.0), (&one, formats.1), &new, &mut |_, _| {});
    assert!(there.unwrap_err().to_string().contains("it is there already: `--force` puts the new image in its place"));
    let missing = folder.path("missing.raw");
    assert!(image::convert((&missing, formats.0), (&folder.path("x"), formats.0), &new, &mut |_, _| {}).is_err());
    let hidden: Vec<_> = fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!hidden.iter().any(|name| name.as_encoded_bytes().ends_with(b".part") || name == OsStr::new("x")));
}

#[test]
fn direct_io_and_write_through_do_as_raw_images_do() {
    // In this folder, since a tmpfs may have no direct I/O to test with.
    let folder = Folder(tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap());
    let bytes = pattern(SIZE);
    folder.write("base.raw", &bytes);
    folder.qemu_img("convert -f raw -O qcow2 -c base.raw middle.qcow2");
    folder.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 image.qcow2");
    let options = FileOptions { direct: true, write_through: true, ..FileOptions::default() };
    let disk = Qcow2Disk::open(&folder.path("image.qcow2"), &options).unwrap();
    let (info, block) = (disk.info(), disk.info().block_size as usize);
    assert!(!info.write_cache);
    let mut queue = disk.open_queue(4).unwrap();
    assert!(run(&mut *queue, Operation::Read { offset: 0 }, Buffer::zeroed(SIZE)) == bytes);
    let mut expected = bytes;
    expected[2 * block..5 * block].fill(7);
    run(&mut *queue, Operation::Write { offset: 2 * block as u64, fua: false }, buffer(&vec![7; 3 * block]));
    // What has completed is in the file, by no flush.
    let copies = Folder::new();
    for name in ["base.raw", "middle.qcow2", "image.qcow2"] {
        fs::copy(folder.path(name), copies.path(name)).unwrap();
    }
    copies.is_sound("image.qcow2", &expected);
    drop((queue, disk));
    folder.is_sound("image.qcow2", &expected);
    create(&folder.path("small.qcow2"), MIB, CreateOptions { cluster_size: 512, backing: None });
    let opened = Qcow2Disk::open(&folder.path("small.qcow2"), &options);
    if block > 512 {
        assert!(opened.err().unwrap().to_string().contains("leave `direct` out"));
    }
}

#[test]
fn what_a_disk_could_never_do_fails_as_for_raw_images() {
    let folder = Folder::new();
    let path = folder.path("image.qcow2");
    create(&path, MIB, CreateOptions::default());
    let disk = Qcow2Disk::open(&path, &read_only()).unwrap();
    let mut queue = disk.open_queue(2).unwrap();
    let mut fails = |operation, len| {
        queue.submit(Request { tag: 1, operation, buffer: Buffer::zeroed(len) }).unwrap();
        finish(&mut *queue).remove(0).result
    };
    assert_eq!(fails(Operation::Write { offset: 0, fua: false }, 512), Err(IoError::ReadOnly));
    assert_eq!(fails(Operation::Read { offset: MIB as u64 }, 512), Err(IoError::OutOfRange));
    assert_eq!(fails(Operation::Read { offset: 1 }, 512), Err(IoError::Unsupported));
    assert_eq!(fails(Operation::Flush, 0), Ok(()));
    assert_eq!(fails(Operation::Read { offset: 0 }, 0), Ok(()));
}
