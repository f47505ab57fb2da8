use super::*;

#[test]
fn zeroes_are_left_out_by_grains() {
    let mut bytes = vec![0; 40_960];
    assert_eq!(data(&bytes, 4096, 4096), []);
    bytes[5000] = 1;
    bytes[8192] = 1;
    bytes[40_959] = 1;
    assert_eq!(data(&bytes, 4096, 4096), [(4096, 12_288), (36_864, 40_960)]);
    // The first grain has been begun before.
    assert_eq!(data(&bytes, 1000, 4096), [(1000, 9192), (37_864, 40_960)]);
    assert_eq!(data(&bytes[..100], 65536, 65536), []);
}

#[test]
fn what_is_not_finished_leaves_nothing_and_what_is_there_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let names = || std::fs::read_dir(folder.path()).unwrap().count();
    let file = NewFile::new(&path, false).unwrap();
    assert_eq!(names(), 1);
    // Somebody has come before.
    std::fs::write(&path, "theirs").unwrap();
    file.finish().unwrap_err();
    assert_eq!((names(), std::fs::read(&path).unwrap()), (1, b"theirs".to_vec()));
    drop(NewFile::new(&path, true).unwrap());
    assert_eq!((names(), std::fs::read(&path).unwrap()), (1, b"theirs".to_vec()));
    NewFile::new(&path, true).unwrap().finish().unwrap();
    assert_eq!((names(), std::fs::read(&path).unwrap()), (1, Vec::new()));
}
