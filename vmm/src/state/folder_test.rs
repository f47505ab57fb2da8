use std::os::unix::fs::PermissionsExt;

use super::super::{Checksum, MemoryFile, RamRange, RecordsFile, Why};
use super::*;

fn header(records: &[u8]) -> Header {
    let ram = vec![RamRange { address: 0, size: PAGE_SIZE }];
    Header {
        magic: MAGIC.to_owned(),
        container: CONTAINER,
        skep: "0.0.9".to_owned(),
        machine: "q35-1".to_owned(),
        architecture: "x86_64".to_owned(),
        saved: 1,
        requires: Vec::new(),
        base: None,
        records: RecordsFile::of(records),
        memory: MemoryFile { size: PAGE_SIZE, data: 0, xxh64: Checksum(0), ram },
    }
}

/// A snapshot without records.
fn written(folder: &Path) -> PathBuf {
    let target = folder.join("snapshot");
    let draft = Draft::begin(&target).unwrap();
    let records = Records::default().bytes();
    draft.write(RECORDS, &records).unwrap();
    draft.create(MEMORY).unwrap().set_len(PAGE_SIZE).unwrap();
    assert!(!target.exists());
    draft.finish(&header(&records), &Wanted::default()).unwrap();
    target
}

/// A difference to `origin` of which no page differs.
fn difference(folder: &Path, name: &str, origin: &Origin) -> Result<Origin, SnapshotError> {
    let draft = Draft::begin(&folder.join(name)).unwrap();
    let records = Records::default().bytes();
    draft.write(RECORDS, &records).unwrap();
    draft.create(MEMORY).unwrap().set_len(PAGE_SIZE).unwrap();
    let base = Some(draft.base(origin, &Runs::new()).unwrap());
    draft.finish(&Header { requires: vec![REQUIRES_BASE.to_owned()], base, ..header(&records) }, &Wanted::default())
}

fn refusal(path: &Path) -> String {
    Snapshot::open(path).unwrap_err().to_string()
}

#[test]
fn it_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("snapshot");
    let draft = Draft::begin(&target).unwrap();
    draft.write(RECORDS, b"half").unwrap();
    let part = draft.path("");
    assert!(refusal(&part).contains("a save that did not end"));
    drop(draft);
    assert!(!part.exists() && !target.exists());

    written(folder.path());
    let snapshot = Snapshot::open(&target).unwrap();
    assert_eq!(snapshot.header, header(&Records::default().bytes()));
    snapshot.verify_memory().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&target), mode(&target.join(MEMORY)), mode(&target.join(HEADER))), (0o700, 0o600, 0o600));
    assert!(matches!(Draft::begin(&target), Err(SnapshotError::Exists { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // It is not wanted any more.
    let wanted = Wanted::default();
    assert!(wanted.give_up(Why::Cancelled));
    let draft = Draft::begin(&folder.path().join("cancelled")).unwrap();
    draft.write(RECORDS, b"").unwrap();
    draft.write(MEMORY, b"").unwrap();
    assert!(matches!(draft.finish(&header(b""), &wanted), Err(SnapshotError::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // Something comes to the place while it is written.
    let target = folder.path().join("other");
    let draft = Draft::begin(&target).unwrap();
    draft.write(RECORDS, b"").unwrap();
    draft.write(MEMORY, b"").unwrap();
    fs::create_dir(&target).unwrap();
    assert!(matches!(draft.finish(&header(b""), &Wanted::default()), Err(SnapshotError::Exists { .. })));
}

/// Whatever of a save is there when its process is killed.
#[test]
fn a_save_that_did_not_end_is_none_at_any_step() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("snapshot");
    let records = Records::default().bytes();
    let text = serde_json::to_vec_pretty(&header(&records)).unwrap();
    for steps in 0..=5 {
        let draft = Draft::begin(&target).unwrap();
        let write = |step: usize, name: &str, bytes: &[u8]| {
            if steps >= step {
                fs::write(draft.path(name), bytes).unwrap();
            }
        };
        write(1, RECORDS, &records);
        write(2, MEMORY, &[]);
        write(3, MEMORY, &[0; PAGE_SIZE as usize]);
        write(4, HEADER, &text[..text.len() / 2]);
        write(5, HEADER, &text);
        let part = draft.path("");
        std::mem::forget(draft);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&part, &link).unwrap();
        for path in [&part, &part.join("."), &link] {
            assert!(refusal(path).contains("it is what a save that did not end has left"), "{}", refusal(path));
        }
        fs::remove_file(link).unwrap();
        assert!(!target.exists());
        // It is not in the way of the next, of which it would be the name.
        drop(Draft::begin(&target).unwrap());
        assert!(!part.exists());
        let error = Draft::begin(&part).err().unwrap().to_string();
        assert!(error.contains("a save that has not ended has such a name"), "{error}");
    }
    for (name, draft) in
        [(".a.7.part", true), ("a.7.part", false), (".7.part", false), (".a.b.part", false), (".a.7", false)]
    {
        assert_eq!(is_draft(name.as_ref()), draft, "{name}");
    }
}

#[test]
fn what_is_no_snapshot_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let target = written(folder.path());
    let file = target.join(HEADER);
    let text = fs::read_to_string(&file).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).unwrap();
        refusal(&target)
    };
    assert!(with(MAGIC, "other").ends_with("its header.json is of something else"));
    let newer = with("\"container\": 1", "\"container\": 2");
    assert!(newer.contains("version 2") && newer.contains("try: the skep that wrote it (0.0.9)"), "{newer}");
    assert!(with("\"requires\": []", "\"requires\": [\"parent\"]").starts_with("it requires `parent`"));
    assert!(with("\"size\": 4096", "\"size\": 8192").contains("memory` is damaged: it has 4096 bytes"));
    assert!(with("\"address\": 0", "\"address\": 18446744073709547520").contains("memory"));
    assert!(with("\"xxh64\": \"", "\"xxh64\": \"0").contains("a checksum is 16 hexadecimal digits"));
    assert!(with("{", "[").contains("header.json"));
    fs::write(&file, vec![b' '; 1 << 20]).unwrap();
    assert!(refusal(&target).ends_with("is larger than any"));
    fs::write(&file, &text).unwrap();
    fs::write(target.join(RECORDS), [0xa1, 0x00, 0x81]).unwrap();
    assert!(refusal(&target).contains("its checksum is not the header's"));
    fs::write(target.join(RECORDS), [0; 100]).unwrap();
    assert!(refusal(&target).contains("it has 100 bytes, and the header says 3"));
    assert!(refusal(&file).ends_with("a snapshot is a folder"));
    assert!(refusal(&folder.path().join("none")).contains("No such file"));
}

/// Of a file with nothing in it, which takes no room, that many bytes are not read.
#[test]
fn changes_that_are_a_hole_are_refused() {
    const SIZE: u64 = 1 << 40;
    let folder = tempfile::tempdir().unwrap();
    let whole = Snapshot::open(&written(folder.path())).unwrap();
    let target = difference(folder.path(), "first", &whole.origin()).unwrap().folder;
    let sparse = |name: &str, size: u64| File::create(target.join(name)).unwrap().set_len(size).unwrap();
    sparse(CHANGED, SIZE / 256);
    sparse(MEMORY, SIZE);
    let text = fs::read_to_string(target.join(HEADER)).unwrap();
    let mut header: Header = serde_json::from_str(&text).unwrap();
    (header.memory.size, header.memory.ram[0].size) = (SIZE, SIZE);
    header.base.as_mut().unwrap().changed.size = SIZE / 256;
    fs::write(target.join(HEADER), serde_json::to_vec(&header).unwrap()).unwrap();
    assert!(refusal(&target).contains("`changed` is damaged: a part of it is a hole"), "{}", refusal(&target));
}

#[test]
fn memory_that_has_changed_is_found_by_its_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let target = written(folder.path());
    let mut page = vec![0; PAGE_SIZE as usize];
    page[7] = 1;
    fs::write(target.join(MEMORY), page).unwrap();
    let error = Snapshot::open(&target).unwrap().verify_memory().unwrap_err();
    assert!(error.to_string().starts_with("its file `memory` is damaged: its checksum"), "{error}");
}

/// Such a file system says EINVAL to a rename that must replace nothing, as NFS does.
#[test]
fn a_folder_gets_its_name_where_a_rename_can_not_be_exclusive() {
    let folder = tempfile::tempdir().unwrap();
    let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
    let fill = || {
        fs::create_dir(&from).unwrap();
        fs::write(from.join(HEADER), "x").unwrap();
    };
    let refusals: [Rename; 3] = [|_, _| Err(Errno::INVAL), |_, _| Err(Errno::NOSYS), |_, _| Err(Errno::OPNOTSUPP)];
    for refuses in refusals {
        fill();
        place(&from, &to, refuses).unwrap();
        assert!(!from.exists() && to.join(HEADER).exists());
        // What is there stays, and what was written.
        fill();
        assert_eq!(place(&from, &to, refuses), Err(Errno::EXIST));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        fs::remove_dir_all(&to).unwrap();
        // An empty one is somebody's, too.
        fs::create_dir(&to).unwrap();
        assert_eq!(place(&from, &to, refuses), Err(Errno::EXIST));
        assert!(refusal(&to).contains("it has no header.json"));
        fs::remove_dir(&to).unwrap();
        fs::remove_dir_all(&from).unwrap();
        // One that can't be renamed leaves the name free.
        assert_eq!(place(&from, &to, refuses), Err(Errno::NOENT));
        assert!(!to.exists());
    }
    assert_eq!(place(&from, &to, |_, _| Err(Errno::ACCESS)), Err(Errno::ACCESS));
}

#[test]
fn what_a_difference_is_to_is_looked_at_before_it_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let target = written(folder.path());
    let whole = Snapshot::open(&target).unwrap();
    let first = difference(folder.path(), "first", &whole.origin()).unwrap();
    let ram = whole.header.memory.ram;
    first.check(&ram).unwrap();
    let why = |origin: &Origin| origin.check(&ram).unwrap_err().to_string();
    // Of any in the chain.
    let away = folder.path().join("away");
    fs::rename(&target, &away).unwrap();
    assert!(why(&first).starts_with("a difference can't be saved: it is the difference to "), "{}", why(&first));
    assert!(why(&first).contains("snapshot/header.json`: No such file"), "{}", why(&first));
    assert!(why(&first).ends_with("try: a whole snapshot, by `save DIR --track`"), "{}", why(&first));
    fs::rename(&away, &target).unwrap();
    first.check(&ram).unwrap();
    File::options().write(true).open(target.join(MEMORY)).unwrap().set_len(0).unwrap();
    assert!(why(&first).contains("`memory` is damaged: it has 0 bytes"), "{}", why(&first));
    File::options().write(true).open(target.join(MEMORY)).unwrap().set_len(PAGE_SIZE).unwrap();
    let text = fs::read_to_string(target.join(HEADER)).unwrap();
    fs::write(target.join(HEADER), text + " ").unwrap();
    assert!(why(&first).contains("that is another snapshot now"), "{}", why(&first));
    let other = first.check(&[RamRange { address: PAGE_SIZE, size: PAGE_SIZE }]).unwrap_err().to_string();
    assert!(other.contains("that has other memory"), "{other}");
}

/// A chain that could not be opened can't be saved either.
#[test]
fn a_chain_is_as_long_as_can_be_restored() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Snapshot::open(&written(folder.path())).unwrap();
    let ram = whole.header.memory.ram.clone();
    let mut origin = whole.origin();
    for number in 1..=MOST_LAYERS {
        if number == MOST_LAYERS {
            origin.check(&ram).unwrap();
        }
        origin = difference(folder.path(), &number.to_string(), &origin).unwrap();
    }
    let last = Snapshot::open(&origin.folder).unwrap();
    assert_eq!(last.layers.len(), MOST_LAYERS + 1);
    assert!(origin.check(&ram).unwrap_err().to_string().contains("there are more than 256 in the chain"));
    difference(folder.path(), "more", &origin).unwrap();
    assert!(refusal(&folder.path().join("more")).contains("there are more than 256 in the chain"));
}
