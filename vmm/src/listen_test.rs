use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_socket_has_its_mode_and_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&path, "a test", Some(Mode::RUSR | Mode::WUSR)).unwrap();
    assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    let second = Listener::bind(&path, "a test", None).unwrap_err();
    assert!(second.to_string().contains("is another process's socket\n  try: "), "{second}");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced_and_a_file_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    drop(UnixListener::bind(&path).unwrap());
    drop(Listener::bind(&path, "a test", None).unwrap());
    fs::write(&path, "mine").unwrap();
    let refused = Listener::bind(&path, "a test", None).unwrap_err();
    assert!(refused.to_string().contains("exists, and is no socket"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    let nowhere = Listener::bind(&folder.path().join("no/socket"), "a test", None).unwrap_err();
    assert!(matches!(nowhere, ListenError::Host { .. }), "{nowhere}");
}
