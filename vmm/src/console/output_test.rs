use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use rustix::io::ioctl_fionbio;

use super::*;

/// An outlet into a pipe, and the pipe's other end.
fn piped(manner: Manner) -> (Outlet, File) {
    let (reader, writer) = io::pipe().unwrap();
    if manner == Manner::Nonblocking {
        ioctl_fionbio(&writer, true).unwrap();
    }
    let sink = Sink::new(File::from(OwnedFd::from(writer)), manner);
    (Outlet::new(Some(sink), false).unwrap(), File::from(OwnedFd::from(reader)))
}

/// Bytes that tell their place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn woken(outlet: &Outlet) -> bool {
    outlet.event().read().is_ok()
}

#[test]
fn what_is_taken_at_once_wakes_nobody() {
    let (outlet, mut reader) = piped(Manner::Nonblocking);
    outlet.write(b"hello");
    let mut text = [0; 5];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    assert!(!woken(&outlet));
    assert!(outlet.state().stalled.is_none());
}

#[test]
fn a_reader_that_lags_gets_everything_in_order() {
    for manner in [Manner::Nonblocking, Manner::Careful] {
        let (outlet, mut reader) = piped(manner);
        // More than a pipe holds, less than is kept.
        let sent = pattern(200 << 10);
        for part in sent.chunks(777) {
            outlet.write(part);
        }
        assert!(woken(&outlet), "the control thread is to wait for the reader");
        assert!(!woken(&outlet), "once");
        assert!(outlet.state().stalled.is_some());
        let mut got = Vec::<u8>::new();
        while got.len() < sent.len() {
            let mut part = vec![0; 10_000];
            let count = reader.read(&mut part).unwrap();
            got.extend(&part[..count]);
            outlet.drain();
        }
        assert!(got == sent, "{manner:?}");
        assert!(outlet.state().stalled.is_none());
        assert_eq!(outlet.lock().lost, 0);
    }
}

#[test]
fn beyond_what_is_kept_the_oldest_is_lost_and_counted() {
    let (outlet, mut reader) = piped(Manner::Nonblocking);
    let sent = pattern(BACKLOG * 3);
    for part in sent.chunks(1000) {
        outlet.write(part);
    }
    let held = {
        let state = outlet.lock();
        assert_eq!(state.backlog.len(), BACKLOG);
        sent.len() - BACKLOG - state.lost as usize
    };
    let mut got = vec![0; held];
    reader.read_exact(&mut got).unwrap();
    assert!(got == sent[..held], "what the pipe held is the beginning");
    outlet.drain();
    let mut next = [0; 100];
    reader.read_exact(&mut next).unwrap();
    assert_eq!(next, sent[sent.len() - BACKLOG..][..100], "what was kept is the end");
}

#[test]
fn a_reader_that_has_gone_is_let_go() {
    let (outlet, reader) = piped(Manner::Nonblocking);
    drop(reader);
    outlet.write(b"x");
    assert!(woken(&outlet));
    let state = outlet.state();
    assert!(state.broken && state.stalled.is_none());
    outlet.close();
    outlet.write(&pattern(BACKLOG * 2));
    let state = outlet.lock();
    assert!(state.backlog.is_empty() && state.sink.is_none() && !state.broken);
}

#[test]
fn without_a_client_the_latest_is_kept_for_the_next() {
    let outlet = Outlet::new(None, true).unwrap();
    outlet.write(b"early ");
    outlet.write(b"news");
    assert!(!woken(&outlet));
    let (mut reader, writer) = io::pipe().unwrap();
    outlet.open(Sink::new(File::from(OwnedFd::from(writer)), Manner::Nonblocking));
    let mut text = [0; 10];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"early news");
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let outlet = Outlet::new(Some(Sink::new(full, Manner::Patient)), false).unwrap();
    outlet.write(b"lost");
    outlet.write(b"too");
    let state = outlet.lock();
    assert_eq!((state.lost, state.broken, state.backlog.len()), (7, false, 0));
    assert!(state.sink.is_some(), "there may be room again");
}

#[test]
fn a_file_gets_everything() {
    let mut file = tempfile::tempfile().unwrap();
    let outlet = Outlet::new(Some(Sink::new(file.try_clone().unwrap(), Manner::Patient)), false).unwrap();
    let sent = pattern(BACKLOG * 2);
    outlet.write(&sent);
    outlet.finish();
    let mut got = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut got).unwrap();
    assert!(got == sent);
}

#[test]
fn the_end_waits_for_a_slow_reader_but_not_for_ever() {
    let (outlet, mut reader) = piped(Manner::Nonblocking);
    let sent = pattern(100 << 10);
    outlet.write(&sent);
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        got
    });
    outlet.finish();
    drop(outlet);
    assert!(reading.join().unwrap() == sent);

    let (outlet, _reader) = piped(Manner::Nonblocking);
    outlet.write(&sent);
    let kept = outlet.lock().backlog.len();
    assert!(kept > 0);
    outlet.finish();
    assert_eq!(outlet.lock().lost, kept as u64);
}
