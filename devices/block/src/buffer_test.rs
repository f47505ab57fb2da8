use std::sync::Arc;

use proptest::prelude::*;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_memory::{Backing, MemoryMap, RamOptions, Region, RegionKind};

use super::*;

/// Two regions that lie together in the guest, and one apart.
fn map() -> MemoryMap {
    let map = MemoryMap::new();
    for (gpa, size) in [(0x1000, 0x2000), (0x3000, 0x1000), (0x10000, 0x1000)] {
        let backing = Arc::new(Backing::new(size, &RamOptions::default()).unwrap());
        map.add(Region::new("ram", RegionKind::Ram, gpa, size, backing, 0).unwrap()).unwrap();
    }
    map
}

#[test]
fn pieces_that_touch_are_one() {
    let ram = map().ram();
    let mut buffer = Buffer::guest(ram.clone());
    buffer.push(0x1000, 0x100).unwrap();
    buffer.push(0x1100, 0x100).unwrap();
    buffer.push(0x1300, 0x100).unwrap();
    assert_eq!((buffer.pieces(), buffer.len()), (2, 0x300));
    let buffer = buffer.reuse(ram);
    assert!(buffer.is_empty());
}

#[test]
fn what_is_not_ram_is_refused_and_nothing_is_added() {
    let mut buffer = Buffer::guest(map().ram());
    buffer.push(0x1000, 0x800).unwrap();
    // It begins by growing the last piece, goes on into the next region, and ends in nothing.
    assert_eq!(buffer.push(0x1800, 0x3000), Err(NotRam { gpa: 0x1800, len: 0x3000 }));
    assert_eq!((buffer.pieces(), buffer.len()), (1, 0x800));
    assert!(buffer.push(0, 1).is_err());
    assert!(buffer.push(u64::MAX, 2).is_err());
    assert!(Buffer::zeroed(8).push(0x1000, 1).is_err());
    buffer.push(0x1800, 0x2000).unwrap();
    assert_eq!(buffer.len(), 0x2800);
    let mut iovecs = IoVecs::default();
    assert_eq!(buffer.iovecs(0x700, &mut iovecs, 8), 0x2100);
}

#[test]
fn a_read_marks_what_it_filled() {
    let map = map();
    for region in map.regions() {
        region.start_dirty_tracking();
    }
    let mut buffer = Buffer::guest(map.ram());
    buffer.push(0x2f00, 0x200).unwrap();
    buffer.copy_in(0, &[1; 0x200]);
    buffer.mark_dirty();
    let dirty: Vec<u64> = map
        .regions()
        .iter()
        .map(|region| {
            let mut bits = [0];
            region.take_dirty(&mut bits);
            bits[0]
        })
        .collect();
    assert_eq!(dirty, [0b10, 0b1, 0]);
}

#[test]
fn iovecs_stop_where_there_is_no_more_room() {
    let mut buffer = Buffer::guest(map().ram());
    for gpa in [0x1000, 0x1200, 0x1400] {
        buffer.push(gpa, 0x100).unwrap();
    }
    let mut iovecs = IoVecs::default();
    assert_eq!((buffer.iovecs(0, &mut iovecs, 2), iovecs.0.len()), (0x200, 2));
    assert_eq!((buffer.iovecs(0x200, &mut iovecs, 2), iovecs.0.len()), (0x100, 1));
    assert_eq!(buffer.iovecs(0x300, &mut iovecs, 2), 0);
}

proptest! {
    /// Whatever the pieces, what is copied in is what the guest sees in their order, and what is copied out again.
    #[test]
    fn copies_follow_the_pieces(pieces in proptest::collection::vec((0u64..0x11800, 0usize..0x1800), 0..8), skip in 0usize..0x2000) {
        let map = map();
        let mut buffer = Buffer::guest(map.ram());
        let mut taken = Vec::new();
        // Pieces that overlap would hide each other.
        for (gpa, len) in pieces {
            let apart = taken.iter().all(|(other, size)| gpa + len as u64 <= *other || other + *size as u64 <= gpa);
            if apart && buffer.push(gpa, len).is_ok() {
                taken.push((gpa, len));
            }
        }
        let data: Vec<u8> = (0..buffer.len()).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        prop_assert_eq!(buffer.copy_in(0, &data), data.len());
        let mut seen = Vec::new();
        for (gpa, len) in taken {
            let mut bytes = vec![0; len];
            map.ram().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
            seen.extend(bytes);
        }
        prop_assert_eq!(&seen, &data);
        let mut out = vec![0; data.len()];
        let got = buffer.copy_out(skip, &mut out);
        prop_assert_eq!(&out[..got], data.get(skip..).unwrap_or(&[]));
    }
}
