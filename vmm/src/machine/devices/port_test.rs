use std::io::{BufRead, BufReader};

use super::*;

/// A stream that waits.
fn device(path: &Path) -> UnixStream {
    let device = open(path).unwrap();
    device.set_nonblocking(false).unwrap();
    device
}

fn line(from: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(from).read_line(&mut line).unwrap();
    line
}

#[test]
fn one_program_after_the_other_is_connected_with_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    let mut device = device(&path);
    device.write_all(b"nobody is there\n").unwrap();
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        if round == 0 {
            assert_eq!(line(&client), "nobody is there\n", "it has waited");
        }
        client.write_all(b"to the guest\n").unwrap();
        assert_eq!(line(&device), "to the guest\n");
        device.write_all(b"to the host\n").unwrap();
        assert_eq!(line(&client), "to the host\n");
    }
    // What a program says and goes is heard, though the guest reads late.
    UnixStream::connect(&path).unwrap().write_all(&[b'x'; 1 << 20][..100_000]).unwrap();
    let mut said = vec![0; 100_000];
    device.read_exact(&mut said).unwrap();
    assert!(said.iter().all(|byte| *byte == b'x'));
}

#[test]
fn what_the_guest_has_said_last_is_heard_and_the_socket_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    let mut device = device(&path);
    assert!(matches!(open(&path), Err(ListenError::Unfit { .. })), "it is listened on");
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"here\n").unwrap();
    assert_eq!(line(&device), "here\n");
    let last = vec![b'y'; 1 << 20];
    let sender = thread::spawn(move || device.write_all(&last));
    let mut said = Vec::new();
    client.read_to_end(&mut said).unwrap();
    sender.join().unwrap().unwrap();
    assert!(said.len() == 1 << 20 && said.iter().all(|byte| *byte == b'y'));
    // A device that goes while nobody is there takes its socket with it.
    let path = folder.path().join("other");
    drop(open(&path).unwrap());
    while path.exists() {
        thread::yield_now();
    }
}
