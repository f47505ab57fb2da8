use proptest::prelude::*;

use super::*;
use crate::testing::{BAR, RAM, map};

const PAGE: u64 = 4096;

fn command(kind: u32, words: [u64; 2]) -> Command {
    let mut dwords = [0; 16];
    dwords[0] = kind << 14;
    for (index, word) in words.into_iter().enumerate() {
        dwords[6 + 2 * index] = word as u32;
        dwords[7 + 2 * index] = (word >> 32) as u32;
    }
    Command::of(dwords)
}

fn prps(first: u64, second: u64, len: usize, memory: &skep_memory::MemoryMap) -> Result<Buffer, Status> {
    super::map(&command(0, [first, second]), len, PAGE, &memory.ram(), Buffer::empty())
}

/// The guest addresses that a buffer must be made of: each is filled with its own byte, in order.
fn is_made_of(buffer: &Buffer, pieces: &[(u64, usize)], memory: &skep_memory::MemoryMap) -> bool {
    let total: usize = pieces.iter().map(|(_, len)| len).sum();
    let data: Vec<u8> = (0..total).map(|n| (n ^ n >> 8) as u8).collect();
    buffer.copy_in(0, &data);
    let mut seen = Vec::new();
    for (gpa, len) in pieces {
        let mut bytes = vec![0; *len];
        memory.ram().read_slice(&mut bytes, GuestAddress(*gpa)).unwrap();
        seen.extend(bytes);
    }
    buffer.len() == total && seen == data
}

#[test]
fn one_and_two_prps() {
    let memory = map();
    let buffer = prps(0x1004, 0, 4096 - 4, &memory).unwrap();
    assert!(is_made_of(&buffer, &[(0x1004, 4092)], &memory));
    let buffer = prps(0x1e00, 0x5000, 4096, &memory).unwrap();
    assert!(is_made_of(&buffer, &[(0x1e00, 512), (0x5000, 3584)], &memory));
    assert_eq!(prps(0x1002, 0, 512, &memory).err(), Some(Status::PRP_OFFSET_INVALID));
    assert_eq!(prps(0x1e00, 0x5004, 4096, &memory).err(), Some(Status::PRP_OFFSET_INVALID));
    assert_eq!(prps(0x1000, 0x5004, 16384, &memory).err(), Some(Status::PRP_OFFSET_INVALID), "a list of quadwords");
    // FreeBSD 256320: a null PRP is address 0, which is RAM here; and what is no RAM is an error.
    assert!(prps(0, 0, 512, &memory).is_ok());
    for bad in [BAR, RAM, !3] {
        assert_eq!(prps(bad, 0, 512, &memory).err(), Some(Status::DATA_TRANSFER_ERROR), "{bad:#x}");
        assert_eq!(prps(0x1000, bad & !0xfff | BAR, 8192, &memory).err(), Some(Status::DATA_TRANSFER_ERROR));
    }
}

#[test]
fn a_list_that_points_to_itself_ends() {
    let memory = map();
    // Every entry is the list's own page: data, and in the last place the next list.
    let entry = 0x8000u64.to_le_bytes().repeat(512);
    memory.ram().write_slice(&entry, GuestAddress(0x8000)).unwrap();
    let buffer = prps(0x1000, 0x8000, 1 << 20, &memory).unwrap();
    assert_eq!(buffer.len(), 1 << 20);
    // From its last place on there is nothing but the pointer.
    let buffer = prps(0x1000, 0x8ff8, 1 << 20, &memory).unwrap();
    assert_eq!(buffer.len(), 1 << 20);
}

proptest! {
    /// Any pages in any order, through lists that are chained wherever a page ends.
    #[test]
    fn lists_are_walked_as_they_were_built(
        offset in (0u64..1024).prop_map(|n| n * 4),
        len in 1usize..300 * 4096,
        start in 0u64..512,
        seed in any::<u64>(),
    ) {
        let memory = map();
        let first = 0x10_0000 + offset;
        let first_len = len.min((PAGE - offset) as usize);
        let mut pieces = vec![(first, first_len)];
        let mut left = len - first_len;
        let mut page = seed;
        let mut used = std::collections::BTreeSet::new();
        while left > 0 {
            page = page.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) ;
            let gpa = 0x20_0000 + (page >> 33) % 0xa00 * PAGE;
            if used.insert(gpa) {
                let here = left.min(4096);
                pieces.push((gpa, here));
                left -= here;
            }
        }
        let entries: Vec<u64> = pieces[1..].iter().map(|(gpa, _)| *gpa).collect();
        let second = match entries.len() {
            0 => 0,
            1 => entries[0],
            _ => {
                let mut list = 0x1000;
                let begin = list + start * 8;
                let mut at = begin;
                let mut rest = &entries[..];
                while !rest.is_empty() {
                    let room = ((PAGE - (at & 0xfff)) / 8) as usize;
                    let here = if rest.len() > room { room - 1 } else { rest.len() };
                    for entry in &rest[..here] {
                        memory.ram().write_slice(&entry.to_le_bytes(), GuestAddress(at)).unwrap();
                        at += 8;
                    }
                    rest = &rest[here..];
                    if !rest.is_empty() {
                        list += PAGE;
                        memory.ram().write_slice(&list.to_le_bytes(), GuestAddress(at)).unwrap();
                        at = list;
                    }
                }
                begin
            }
        };
        let buffer = prps(first, second, len, &memory).unwrap();
        prop_assert!(is_made_of(&buffer, &pieces, &memory));
    }

    /// SGLs of any blocks, in segments of any length.
    #[test]
    fn sgls_are_walked_as_they_were_built(
        blocks in proptest::collection::vec(0usize..6000, 1..40),
        segment in 1usize..10,
    ) {
        let memory = map();
        let pieces: Vec<(u64, usize)> =
            blocks.iter().enumerate().map(|(index, len)| (0x20_0003 + index as u64 * 8192, *len)).collect();
        let len: usize = blocks.iter().sum();
        let chunks: Vec<_> = pieces.chunks(segment).collect();
        let place = |index: usize| 0x1000 + index as u64 * 0x400;
        // A segment that is not the last has one descriptor more, of the next.
        let size = |index: usize| (chunks[index].len() + usize::from(index + 1 < chunks.len())) as u32 * 16;
        let kind = |index: usize| if index + 1 < chunks.len() { 0x20u128 } else { 0x30 };
        let descriptor = |address: u64, len: u32, kind: u128| (u128::from(address) | u128::from(len) << 64 | kind << 120).to_le_bytes();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut bytes: Vec<u8> = chunk.iter().flat_map(|(gpa, len)| descriptor(*gpa, *len as u32, 0)).collect();
            if index + 1 < chunks.len() {
                bytes.extend(descriptor(place(index + 1), size(index + 1), kind(index + 1)));
            }
            memory.ram().write_slice(&bytes, GuestAddress(place(index))).unwrap();
        }
        let first = descriptor(place(0), size(0), kind(0));
        let words = [u64::from_le_bytes(first[..8].try_into().unwrap()), u64::from_le_bytes(first[8..].try_into().unwrap())];
        let walk = |len| super::map(&command(1, words), len, PAGE, &memory.ram(), Buffer::empty());
        prop_assert!(is_made_of(&walk(len).unwrap(), &pieces, &memory));
        prop_assert_eq!(walk(len + 512).err(), Some(Status::SGL_LENGTH_INVALID));
        if len >= 512 {
            prop_assert_eq!(walk(len - 512).err(), Some(Status::SGL_LENGTH_INVALID));
        }
    }
}

skep_fuzzing::targets! {
    /// Any descriptors whatever: an answer, and never more than was asked for.
    "nvme-pointers": fn fuzz_data_pointers(
        lists in proptest::collection::vec(any::<[u64; 2]>(), 0..64),
        words in any::<[u64; 2]>(),
        kind in 0u32..4,
        len in 1usize..1 << 20,
    ) {
        let memory = map();
        for (index, words) in lists.iter().enumerate() {
            // Addresses near RAM, lengths near a page, and kinds that there are, more often than chance has them.
            let address = if words[0] % 4 == 0 { words[0] } else { (words[0] % (2 * RAM)) & !0xf };
            let low = words[1] & if words[1] % 3 == 0 { u64::MAX } else { 0x30ff_ffff_0000_1ff0 };
            let at = 0x1000 + index as u64 * 16;
            memory.ram().write_slice(&address.to_le_bytes(), GuestAddress(at)).unwrap();
            memory.ram().write_slice(&low.to_le_bytes(), GuestAddress(at + 8)).unwrap();
        }
        let words = [0x1000 + words[0] % 1024, if words[1] % 2 == 0 { words[1] } else { 0x3000_0000_0000_0400 }];
        if let Ok(buffer) = super::map(&command(kind, words), len, PAGE, &memory.ram(), Buffer::empty()) {
            prop_assert_eq!(buffer.len(), len);
        }
    }
}

#[test]
fn sgl_chains_without_end_are_refused() {
    let memory = map();
    // One descriptor, which is the segment that it stands in.
    let descriptor = u128::from(0x1000u64) | 16 << 64 | 0x20 << 120;
    memory.ram().write_slice(&descriptor.to_le_bytes(), GuestAddress(0x1000)).unwrap();
    let words = [descriptor as u64, (descriptor >> 64) as u64];
    let refused = super::map(&command(1, words), 4096, PAGE, &memory.ram(), Buffer::empty()).err();
    assert_eq!(refused, Some(Status::SGL_COUNT_INVALID));
}
