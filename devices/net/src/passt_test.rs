use std::net::Shutdown;
use std::sync::Arc;

use proptest::prelude::*;
use skep_memory::vm_memory::{GuestAddress, GuestMemoryBackend};
use skep_memory::{Backing, MemoryMap, RamOptions, RamView, Region, RegionKind};

use super::*;

fn ram() -> Arc<RamView> {
    let map = MemoryMap::new();
    let backing = Arc::new(Backing::new(0x4_0000, &RamOptions::default()).unwrap());
    map.add(Region::new("ram", RegionKind::Ram, 0, 0x4_0000, backing, 0).unwrap()).unwrap();
    map.ram()
}

/// Pieces of guest memory of these lengths, one behind another.
fn slices<'a>(ram: &'a RamView, lengths: &[usize]) -> Vec<GuestSlice<'a>> {
    let mut at = 0;
    let piece = |len: &usize| {
        let slice = ram.get_slice(GuestAddress(at), *len).unwrap();
        at += *len as u64;
        slice
    };
    lengths.iter().map(piece).collect()
}

fn bytes(slices: &[GuestSlice<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    guest::copy_out(slices, 0, &mut bytes);
    bytes
}

fn link() -> (Box<dyn LinkQueue>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let passt = Passt::over(ours, None).unwrap();
    let queue = passt.open_queue(0).unwrap();
    assert!(matches!(passt.open_queue(0), Err(NetError::Queue { queue: 0, count: 1 })));
    (queue, theirs)
}

fn blocks<T: std::fmt::Debug>(result: io::Result<T>) {
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn frames_go_behind_their_length() {
    let (mut queue, mut peer) = link();
    let ram = ram();
    let frame = slices(&ram, &[5, 7, 10]);
    guest::copy_in(&[b"HEADERHEADER", b"0123456789"], &frame);
    queue.send(&frame).unwrap();
    let mut seen = [0; 14];
    peer.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"\0\0\0\x0a0123456789");
    assert_eq!(queue.send(&slices(&ram, &[12])).unwrap_err().kind(), io::ErrorKind::InvalidInput, "no frame at all");
}

#[test]
fn frames_come_whole_however_the_stream_is_cut() {
    let (mut queue, mut peer) = link();
    let ram = ram();
    let room = slices(&ram, &[3, 12, 20]);
    for byte in b"\0\0\0\x04abc" {
        peer.write_all(&[*byte]).unwrap();
        blocks(queue.receive(&room));
    }
    peer.write_all(b"d\0\0\0\x02xy\0\0").unwrap();
    assert_eq!(queue.receive(&room).unwrap(), 16);
    assert_eq!(&bytes(&room)[..16], b"\0\0\0\0\0\0\0\0\0\0\0\0abcd");
    assert_eq!(queue.receive(&room).unwrap(), 14);
    blocks(queue.receive(&room));
    // What has no room is lost, and the stream stays in step.
    peer.write_all(b"\0\x30").unwrap();
    peer.write_all(&[b'z'; 48]).unwrap();
    assert_eq!(queue.receive(&room).unwrap(), 60);
    peer.write_all(b"\0\0\0\x01!").unwrap();
    assert_eq!((queue.receive(&room).unwrap(), bytes(&room)[12]), (13, b'!'));
}

#[test]
fn a_host_that_is_slow_or_gone_blocks_nobody() {
    let (mut queue, mut peer) = link();
    let ram = ram();
    let frame = slices(&ram, &[HEADER, 60_000]);
    let mut sent = 0;
    while queue.send(&frame).is_ok() {
        sent += 1;
    }
    assert!(sent > 0);
    blocks(queue.send(&frame));
    let mut seen = vec![0; sent * 60_004];
    peer.set_nonblocking(true).unwrap();
    let mut read = 0;
    while read < seen.len() {
        match peer.read(&mut seen[read..]) {
            Ok(count) => read += count,
            // The rest of the last frame is still here.
            Err(_) => drop(queue.flush()),
        }
    }
    queue.flush().unwrap();
    assert!(seen.chunks(60_004).all(|frame| frame[..4] == 60_000u32.to_be_bytes()));
    // Closing it would not do: a program that another test starts has it open for a moment as well.
    peer.shutdown(Shutdown::Both).unwrap();
    blocks(queue.receive(&frame));
    assert!(queue.send(&frame).is_err());
}

#[test]
fn a_length_that_no_frame_has_ends_the_link() {
    let (mut queue, mut peer) = link();
    let ram = ram();
    let room = slices(&ram, &[100]);
    peer.write_all(&(MOST as u32 + 1).to_be_bytes()).unwrap();
    blocks(queue.receive(&room));
    peer.write_all(b"\0\0\0\x01a").unwrap();
    blocks(queue.receive(&room));
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let config = PasstConfig { program: "/nowhere/passt".into(), arguments: Vec::new() };
    let error = Passt::start(&config).err().unwrap().to_string();
    assert!(error.starts_with("can't start `/nowhere/passt`: "), "{error}");
    assert!(error.ends_with("(install passt, or name it)"), "{error}");
    let error = Passt::connect(Path::new("/nowhere/socket")).err().unwrap().to_string();
    assert!(error.contains("`/nowhere/socket`"), "{error}");
}

skep_fuzzing::targets! {
    "passt-streams": fn fuzz_streams(input in proptest::collection::vec(any::<u8>(), 0..600), cut in 1usize..100, room in 1usize..80) {
        let (mut queue, mut peer) = link();
        let ram = ram();
        let room = slices(&ram, &[room, room]);
        peer.set_nonblocking(true).unwrap();
        for part in input.chunks(cut) {
            // Short lengths, so that there are frames.
            let part: Vec<_> = part.iter().map(|byte| if byte % 3 > 0 { 0 } else { byte % 32 }).collect();
            // A link that has ended takes no more.
            if peer.write_all(&part).is_err() {
                break;
            }
            while let Ok(len) = queue.receive(&room) {
                prop_assert!(len <= HEADER + 31 * 0x0101_0101);
            }
        }
    }
}
