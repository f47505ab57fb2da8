use super::*;
use crate::{Disk, FileOptions, ImageDisk, Qcow2Disk};

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

#[test]
fn a_name_is_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    // Whether or not there is anything of that name, and in the folder that the process is in.
    sync_name(&folder.path().join("gone")).unwrap();
    sync_name(Path::new("gone")).unwrap();
    let error = sync_name(&folder.path().join("gone/file")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_qcow2_disk_is_anothers_to_use_when_it_was_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    create(&path, ImageFormat::Qcow2, Some(1 << 20), &NewImage::default()).unwrap();
    let open = || Qcow2Disk::open(&path, &FileOptions::default());
    let disk = open().unwrap();
    assert_eq!(disk.refresh().unwrap(), 1 << 20);
    let queue = disk.open_queue(8).unwrap();
    let (told, released) = std::sync::mpsc::channel();
    disk.on_release(Box::new(move || told.send(()).unwrap()));
    drop(disk);
    assert!(released.try_recv().is_err(), "a queue still uses it");
    assert!(open().is_err());
    drop(queue);
    released.recv().unwrap();
    open().unwrap();
}
