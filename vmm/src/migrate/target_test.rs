use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use skep_state::Record;

use super::super::Address;
use super::*;
use crate::state::DisksState;

pub(crate) fn hello() -> Hello {
    Hello {
        protocol: wire::VERSION,
        skep: "0.9.7".to_owned(),
        requires: Vec::new(),
        session: [7; 16],
        architecture: "x86_64".to_owned(),
        config: "machine = \"q35-1\"\n".to_owned(),
        ram: vec![(0, 64 << 20)],
        cpus: Record { id: "x86_64-cpus".to_owned(), version: 1, body: vec![0xa0] },
        disks: DisksState { disks: Vec::new() },
    }
}

/// A map of less than 23 fields, with one more, which nobody knows.
fn with_unknown(mut map: Vec<u8>) -> Vec<u8> {
    assert!((0xa0..0xb7).contains(&map[0]), "{:#x}", map[0]);
    map[0] += 1;
    map.extend([0x18, 99, 0x63, b'n', b'e', b'w']);
    map
}

/// What a source of that hello is told, and the one of `good`, which comes after it.
fn told(path: &Path, bad: &[u8], good: &[u8]) -> (String, Hello) {
    let listener = Listener::bind(&Address::Unix(path.to_owned())).unwrap();
    thread::scope(|scope| {
        let sources = scope.spawn(|| {
            let say = |hello: &[u8]| {
                let stream = UnixStream::connect(path).unwrap();
                wire::send(&stream, Kind::Hello, &[hello]).unwrap();
                stream
            };
            let mut payload = Vec::new();
            let refused = say(bad);
            assert_eq!(wire::receive(&refused, &mut payload).unwrap(), Kind::Refused);
            // It is sent away.
            assert_eq!((&refused).read(&mut [0]).unwrap(), 0);
            (String::from_utf8(payload).unwrap(), say(good))
        });
        let (_link, came) = first(&listener).unwrap();
        (sources.join().unwrap().0, came)
    })
}

#[test]
fn a_later_protocol_and_what_it_requires_are_refused_by_name_and_the_next_source_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let good = hello();
    let later = Hello { protocol: wire::VERSION + 1, ..good.clone() };
    let requires = Hello { requires: vec!["many-connections".to_owned()], ..good.clone() };
    for (name, bad, words) in [
        ("version", wire::encode(&later), "the source speaks version 2 of the protocol, and this skep up to version 1"),
        // Whatever else is in it.
        ("other", with_unknown(wire::encode(&later)), "try: skep 0.9.7, or a later one"),
        ("requires", wire::encode(&requires), "the source requires `many-connections`, which this skep does not know"),
        ("none", vec![0xa0], "not skep's migration"),
    ] {
        let (text, came) = told(&folder.path().join(name), &bad, &wire::encode(&good));
        assert!(text.contains(words), "{text}");
        assert_eq!(came, good);
    }
}

/// A later skep's hello and state, which require nothing that is not known.
#[test]
fn what_is_optional_and_not_known_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let good = hello();
    let (_, came) = told(&folder.path().join("socket"), &[0xa0], &with_unknown(wire::encode(&good)));
    assert_eq!(came, good);
    let state = State { records: Records::default(), stood_nanos: 5, paused: true };
    assert_eq!(State::open(&with_unknown(wire::encode(&state))).unwrap(), state);
}

/// A source that is lost, or has been refused, asks whether the machine runs there.
fn ask(path: &Path, session: &Session) -> bool {
    let link = UnixStream::connect(path).unwrap();
    wire::send(&link, Kind::Ask, &[session]).unwrap();
    let mut payload = Vec::new();
    wire::expect(&link, Kind::Answer, &mut payload).unwrap();
    wire::send(&link, Kind::Accept, &[]).unwrap();
    payload == [1]
}

/// A target that is ready, its source, and whether that has given the machine away.
fn ready(path: &Path) -> (Settling, UnixStream, Session, Receiver<bool>) {
    let listener = Listener::bind(&Address::Unix(path.to_owned())).unwrap();
    let source = UnixStream::connect(path).unwrap();
    wire::send(&source, Kind::Hello, &[&wire::encode(&hello())]).unwrap();
    let (link, hello) = first(&listener).unwrap();
    let (tell, told) = channel();
    // Who waits no more is not told.
    let tell = move |go| {
        let _ = tell.send(go);
    };
    let settling = Settling::begin(link, listener, hello.session, tell).unwrap();
    wire::expect(&source, Kind::Ready, &mut Vec::new()).unwrap();
    (settling, source, hello.session, told)
}

/// A process that ends does not leave its source without a word, wherever the source's own word is by then.
#[test]
fn a_source_hears_that_its_target_ends() {
    let folder = tempfile::tempdir().unwrap();
    for (number, given) in [None, Some(false), Some(true)].into_iter().enumerate() {
        let path = folder.path().join(number.to_string());
        let (settling, source, session, told) = ready(&path);
        if given == Some(true) {
            wire::send(&source, Kind::Go, &[]).unwrap();
            assert!(told.recv().unwrap());
        }
        let ends = thread::spawn(move || drop(settling));
        let mut payload = Vec::new();
        assert_eq!(wire::receive(&source, &mut payload).unwrap(), Kind::Refused);
        assert_eq!(payload, b"the process that it was to come to fails");
        if given == Some(false) {
            // It has crossed the other's.
            wire::send(&source, Kind::Go, &[]).unwrap();
        }
        drop(source);
        assert!(!ask(&path, &session));
        if given != Some(true) {
            assert_ne!(told.recv(), Ok(true), "nobody runs it");
        }
        ends.join().unwrap();
    }
}

/// Neither does one that ends while its source, which is lost, has not asked yet.
#[test]
fn a_source_that_is_lost_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lost");
    let (settling, source, session, told) = ready(&path);
    drop(source);
    while *settling.word.lock() != Last::Lost {
        thread::yield_now();
    }
    let ends = thread::spawn(move || settling.refuse("it ends".to_owned()));
    assert!(!ask(&path, &session));
    assert!(!told.recv().unwrap());
    ends.join().unwrap();
    // And one whose guest has run, and ended at once.
    let path = folder.path().join("ended");
    let (settling, source, session, told) = ready(&path);
    wire::send(&source, Kind::Go, &[]).unwrap();
    assert!(told.recv().unwrap());
    let settled = settling.accept();
    let ends = thread::spawn(move || drop(settled));
    drop(source);
    assert!(ask(&path, &session));
    ends.join().unwrap();
}

/// A stranger does not keep the place of a source.
#[test]
fn who_says_nothing_that_makes_sense_is_sent_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = Listener::bind(&Address::Unix(path.clone())).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut stranger = UnixStream::connect(&path).unwrap();
            stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            // One that hangs up at once is no more.
            drop(UnixStream::connect(&path).unwrap());
            let source = UnixStream::connect(&path).unwrap();
            wire::send(&source, Kind::Hello, &[&wire::encode(&hello())]).unwrap();
        });
        assert_eq!(first(&listener).unwrap().1, hello());
    });
}
