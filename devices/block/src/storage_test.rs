use super::*;

fn storage(folder: &tempfile::TempDir, direct: bool) -> FileStorage {
    let path = folder.path().join("file");
    std::fs::write(&path, [1; 10_000]).unwrap();
    FileStorage::open(&path, &FileOptions { direct, ..FileOptions::default() }).unwrap().0
}

#[test]
fn bytes_anywhere_are_read_and_written() {
    // In this folder, since a tmpfs may have no direct I/O to test with.
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    for direct in [false, true] {
        let storage = storage(&folder, direct);
        let storage: &dyn Storage = &storage;
        assert_eq!(storage.alignment() > 1, direct);
        storage.put(4090, &[2; 10]).unwrap();
        assert_eq!(storage.bytes(4089, 12).unwrap(), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
        assert_eq!(storage.bytes(9998, 4).unwrap(), [1, 1, 0, 0], "zeroes are behind the end");
        assert_eq!(storage.bytes(1 << 40, 2).unwrap(), [0, 0]);
        storage.sync().unwrap();
    }
}

#[test]
fn parts_of_buffers_move_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let storage = storage(&folder, false);
    let buffer = Buffer::zeroed(32);
    storage.read(9990, &buffer, 4, 20).unwrap();
    let mut bytes = [9; 32];
    buffer.copy_out(0, &mut bytes);
    assert_eq!(bytes[..16], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
    buffer.copy_in(0, &[5; 32]);
    storage.write(0, &buffer, 30, 2).unwrap();
    assert_eq!((&storage as &dyn Storage).bytes(0, 3).unwrap(), [5, 5, 1]);
    assert!(!storage.read_now(9990, &buffer, 0, 32), "it ends before");
    assert_eq!(storage.end(), Ok(10_000));
}

#[test]
fn holes_are_known() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let storage = storage(&folder, false);
    storage.file.set_len(1 << 20).unwrap();
    assert_eq!(storage.hole(0, 4096), 0);
    assert_eq!(storage.hole(65536, 4096), 4096);
    (&storage as &dyn Storage).put(512 << 10, &[1]).unwrap();
    assert_eq!(storage.hole(256 << 10, 1 << 20), 256 << 10);
    storage.punch(512 << 10, 4096);
    assert_eq!(storage.hole(256 << 10, 1 << 19), 1 << 19);
}
