use proptest::prelude::*;

use super::check::check_image;
use super::testing::{Event, Memory, apply, buffer, content, empty, open, raw};
use super::*;

const SECTORS: usize = 512;
const SIZE: usize = SECTORS * 512;

#[derive(Debug, Clone)]
enum Act {
    Write(usize, usize),
    Zero(usize, usize, bool),
    Flush,
    Reopen,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let range = || (0..SECTORS, 1..80usize).prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    let act = prop_oneof![
        6 => range().prop_map(|(at, len)| Act::Write(at, len)),
        3 => (range(), any::<bool>()).prop_map(|((at, len), discard)| Act::Zero(at, len, discard)),
        1 => Just(Act::Flush),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..24)
}

/// A sector's content, by a number of its own.
fn sector(number: u32) -> [u8; 512] {
    let mut bytes = [0; 512];
    if number > 0 {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = number.to_le_bytes()[index % 4] ^ (index / 4) as u8;
        }
    }
    bytes
}

fn sectors(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| sector(*number)).collect()
}

/// What is behind the images of these tests: shorter than they are.
fn behind() -> Vec<u32> {
    (0..SECTORS as u32 * 3 / 4).map(|number| if number % 7 < 3 { 0 } else { 1_000_000 + number }).collect()
}

/// What the disk holds at first.
fn model(backed: bool) -> Vec<u32> {
    let mut model = if backed { behind() } else { Vec::new() };
    model.resize(SECTORS, 0);
    model
}

fn layer(backed: bool) -> Option<Arc<Layer>> {
    backed.then(|| raw(sectors(&behind())))
}

/// Does to an image what `act` says; writes have the number `id`.
fn run(image: &Image, model: &mut [u32], act: &Act, id: u32) -> Result<(), IoError> {
    match *act {
        Act::Write(at, len) => {
            for (index, number) in model[at..at + len].iter_mut().enumerate() {
                *number = id * 1000 + index as u32 + 1;
            }
            image.write(at as u64 * 512, &buffer(&sectors(&model[at..at + len])), 0, len * 512)
        }
        Act::Zero(at, len, discard) => {
            model[at..at + len].fill(0);
            image.zero(at as u64 * 512, len as u64 * 512, discard)
        }
        Act::Flush | Act::Reopen => image.flush(),
    }
}

/// It reads as `model` says, and its tables agree, without a lost cluster.
fn is_sound(memory: &Arc<Memory>, backed: bool, model: &[u32]) {
    let image = open(memory, layer(backed));
    assert!(content(&image, 0, SIZE) == sectors(model));
    let (report, _) = check_image(&image, false).unwrap();
    assert_eq!((report.errors, report.leaks, report.messages), (0, 0, Vec::<String>::new()));
}

fn kinds() -> impl Strategy<Value = (u64, bool, u8)> {
    (prop_oneof![Just(512u64), Just(1024), Just(4096), Just(65536)], any::<bool>(), 2..4u8)
}

proptest! {
    /// An image does what a vector does, whatever its version, its clusters and what is behind it.
    #[test]
    fn fuzz_an_image_against_a_vector((cluster_size, backed, version) in kinds(), acts in acts()) {
        let memory = empty(SIZE as u64, cluster_size, version);
        let mut model = model(backed);
        let mut image = open(&memory, layer(backed));
        for (id, act) in (1..).zip(&acts) {
            run(&image, &mut model, act, id).unwrap();
            if let Act::Reopen = act {
                drop(image);
                is_sound(&memory, backed, &model);
                image = open(&memory, layer(backed));
            }
        }
        prop_assert!(content(&image, 0, SIZE) == sectors(&model));
        drop(image);
        is_sound(&memory, backed, &model);
    }

    /// Whenever the host fails, and whatever of the writes since its last sync it loses, the image is sound but for lost clusters, and each sector
    /// is as it was when it was flushed last, or as somebody has written it since.
    #[test]
    fn fuzz_a_host_that_fails_leaves_a_sound_image(
        (cluster_size, backed, version) in kinds(),
        acts in acts(),
        points in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 8),
    ) {
        let memory = empty(SIZE as u64, cluster_size, version);
        let first = memory.bytes();
        let mut now = model(backed);
        // What the disk holds after each act, and which of them were flushed by when.
        let mut states = vec![now.clone()];
        let image = open(&memory, layer(backed));
        for (id, act) in (1..).zip(&acts) {
            run(&image, &mut now, act, id).unwrap();
            states.push(now.clone());
            if let Act::Flush | Act::Reopen = act {
                memory.mark(states.len() - 1);
            }
        }
        drop(image);
        let events = memory.events();
        for (point, seed) in points {
            let end = point.index(events.len() + 1);
            let synced = events[..end].iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
            let flushed = events[..end].iter().rev().find_map(|event| match event {
                Event::Mark(state) => Some(*state),
                _ => None,
            });
            let mut bytes = first.clone();
            let mut random = seed;
            for (index, event) in events[..end].iter().enumerate() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // A quarter of the seeds lose nothing: a prefix of the writes.
                if index < synced || seed % 4 == 0 || random >> 63 == 0 {
                    apply(&mut bytes, event);
                }
            }
            let memory = Memory::new(bytes);
            let image = open(&memory, layer(backed));
            let (report, _) = check_image(&image, false).unwrap();
            prop_assert_eq!((report.errors, &report.messages), (0, &Vec::new()));
            let found = content(&image, 0, SIZE);
            for (at, found) in found.chunks(512).enumerate() {
                let may = states[flushed.unwrap_or(0)..].iter().map(|state| state[at]);
                prop_assert!(may.into_iter().any(|number| sector(number) == *found), "sector {at}, {seed}");
            }
        }
    }

    /// Where the host fails a call, the request fails, and the image is sound; what was flushed before is there.
    #[test]
    fn fuzz_failing_calls_leave_a_sound_image((cluster_size, backed, version) in kinds(), acts in acts(), calls in 0..200usize) {
        let memory = empty(SIZE as u64, cluster_size, version);
        let mut model = model(backed);
        let image = open(&memory, layer(backed));
        let mut doubtful = vec![false; SECTORS];
        memory.fail_after(Some(calls));
        for (id, act) in (1..).zip(&acts) {
            let result = run(&image, &mut model, act, id);
            if let (Err(error), Act::Write(at, len) | Act::Zero(at, len, _)) = (result, act) {
                prop_assert_eq!(error, IoError::Host(libc::EIO));
                doubtful[*at..at + len].fill(true);
            } else if let (Ok(()), Act::Write(at, len)) = (result, act) {
                doubtful[*at..at + len].fill(false);
            }
        }
        memory.fail_after(None);
        drop(image);
        let image = open(&memory, layer(backed));
        prop_assert_eq!(check_image(&image, false).unwrap().0.errors, 0);
        for (at, found) in content(&image, 0, SIZE).chunks(512).enumerate() {
            prop_assert!(doubtful[at] || *found == sector(model[at]));
        }
    }
}

skep_fuzzing::targets! {
    /// An image that somebody has spoilt is refused, or used and found wanting: nothing panics or goes on for ever.
    "qcow2-images": fn fuzz_hostile_images_are_read_and_written(
        (cluster_size, backed, version) in kinds(),
        before in acts(),
        spoilt in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..12),
        values in proptest::collection::vec(any::<u64>(), 12),
        acts in acts(),
    ) {
        let memory = empty(SIZE as u64, cluster_size, version);
        let mut model = model(backed);
        let image = open(&memory, layer(backed));
        for (id, act) in (1..).zip(&before) {
            run(&image, &mut model, act, id).unwrap();
        }
        drop(image);
        let mut bytes = memory.bytes();
        for ((place, byte, entry), value) in spoilt.into_iter().zip(values) {
            // Bytes of the header, and entries of whatever is there.
            if entry {
                let at = place.index(bytes.len() / 8) * 8;
                let small = (value % (2 * bytes.len() as u64)) & !511 | value & (3 << 62 | 1);
                bytes[at..at + 8].copy_from_slice(&if byte < 200 { small } else { value }.to_be_bytes());
            } else {
                bytes[place.index(112)] = byte;
            }
        }
        let memory = Memory::new(bytes);
        let storage: Arc<dyn crate::storage::Storage> = memory.clone();
        let Ok(header) = header::Header::read(&*storage) else { return Ok(()) };
        let size = header.size.min(SIZE as u64) as usize;
        let Ok(image) = Image::new(storage, header, layer(backed), false, true) else { return Ok(()) };
        let _ = check_image(&image, false);
        for (id, act) in (1..).zip(&acts) {
            if size == SIZE {
                let _ = run(&image, &mut model, act, id);
            }
            let into = Buffer::zeroed(size);
            let _ = image.read(0, &into, 0, size);
        }
        let _ = check_image(&image, true);
    }
}

use crate::Buffer;

#[test]
fn lost_and_wrong_counts_are_found_and_mended() {
    let memory = empty(SIZE as u64, 512, 3);
    let image = open(&memory, None);
    image.write(0, &buffer(&sectors(&[7; 64])), 0, 64 * 512).unwrap();
    drop(image);
    let (block, l1) = {
        let header = header::Header::read(&*memory as &dyn crate::storage::Storage).unwrap();
        (header.table_offset as usize + 512, header.l1_offset as usize)
    };
    let good = memory.bytes();
    let mut bytes = good.clone();
    // A count that is too large, one that is too small, and a mark that is missing.
    let counts: Vec<_> = good[block..block + 512].chunks(2).map(|count| count[1]).collect();
    let free = counts.iter().position(|count| *count == 0).unwrap();
    let used = counts.iter().rposition(|count| *count == 1).unwrap();
    bytes[block + free * 2 + 1] = 3;
    bytes[block + used * 2 + 1] = 0;
    bytes[l1] &= 0x7f;
    let memory = Memory::new(bytes);
    let image = open(&memory, None);
    let (before, after) = check_image(&image, true).unwrap();
    assert_eq!((before.errors, before.leaks), (2, 1), "{:?}", before.messages);
    let after = after.unwrap();
    assert_eq!((after.errors, after.leaks), (0, 0), "{:?}", after.messages);
    assert!(memory.bytes() == good);
}

#[test]
fn blocks_of_counts_that_are_lost_are_made_again() {
    let memory = empty(SIZE as u64, 512, 3);
    let image = open(&memory, None);
    image.write(0, &buffer(&sectors(&[7; SECTORS])), 0, SIZE).unwrap();
    drop(image);
    let header = header::Header::read(&*memory as &dyn crate::storage::Storage).unwrap();
    let table = header.table_offset as usize;
    let mut bytes = memory.bytes();
    bytes[table..table + 8].fill(0);
    bytes[table + 8..table + 16].fill(0x55);
    let memory = Memory::new(bytes);
    let image = open(&memory, None);
    let (before, after) = check_image(&image, true).unwrap();
    assert!(before.errors > 256, "{}", before.errors);
    let after = after.unwrap();
    assert_eq!((after.errors, after.leaks), (0, 0), "{:?}", after.messages);
    drop(image);
    let image = open(&memory, None);
    assert!(content(&image, 0, SIZE) == sectors(&[7; SECTORS]));
}

#[test]
fn tables_of_counts_grow() {
    // Clusters of 512 bytes and a table of one cluster count 8 MiB.
    let size = 12 << 20;
    let memory = empty(size as u64, 512, 3);
    let image = open(&memory, None);
    let data = sectors(&(1..=2048).collect::<Vec<_>>());
    for offset in (0..size).step_by(data.len()) {
        image.write(offset as u64, &buffer(&data), 0, data.len()).unwrap();
    }
    drop(image);
    let image = open(&memory, None);
    for offset in (0..size).step_by(data.len()) {
        assert!(content(&image, offset as u64, data.len()) == data, "at {offset}");
    }
    let (report, _) = check_image(&image, false).unwrap();
    assert_eq!((report.errors, report.messages), (0, Vec::new()));
    assert!(report.leaks < 8, "{}", report.leaks);
}

#[test]
fn no_guest_writes_to_tables() {
    let memory = empty(SIZE as u64, 4096, 3);
    let image = open(&memory, None);
    image.write(0, &buffer(&sectors(&[7; 8])), 0, 4096).unwrap();
    drop(image);
    let header = header::Header::read(&*memory as &dyn crate::storage::Storage).unwrap();
    let mut bytes = memory.bytes();
    let l1 = header.l1_offset as usize;
    let table = u64::from_be_bytes(bytes[l1..l1 + 8].try_into().unwrap()) & !(1 << 63);
    // The second cluster of the disk is the header's, says the table; the third one the table itself.
    for (index, host) in [(1, 0x1000), (2, table)] {
        let at = table as usize + index * 8;
        bytes[at..at + 8].copy_from_slice(&(host | 1 << 63).to_be_bytes());
    }
    let memory = Memory::new(bytes.clone());
    let image = open(&memory, None);
    assert!(!image.write_now(4096, &buffer(&[1; 512]), 512));
    for offset in [8192, 4096] {
        assert_eq!(image.write(offset, &buffer(&[1; 512]), 0, 512), Err(IoError::Damaged));
    }
    // From then on nothing is written at all, but for the mark.
    assert_eq!(image.write(0, &buffer(&[1; 512]), 0, 512), Err(IoError::Damaged));
    assert_eq!(content(&image, 0, 512), sector(7));
    drop(image);
    bytes[79] |= 2;
    assert!(memory.bytes() == bytes);
}
