use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;
use skep_memory::{MemoryMap, RamOptions};

use super::*;

const PAGES: u64 = 600;

fn ram() -> Vec<RamRange> {
    [(0, 400), (4 << 30, PAGES - 400)].map(|(address, pages)| RamRange { address, size: pages * PAGE_SIZE }).to_vec()
}

fn backing() -> Arc<Backing> {
    Arc::new(Backing::new(PAGES * PAGE_SIZE, &RamOptions::default()).unwrap())
}

fn source() -> MemoryMap {
    let (map, backing) = (MemoryMap::new(), backing());
    let mut offset = 0;
    for RamRange { address, size } in ram() {
        map.add(Region::new("RAM", RegionKind::Ram, address, size, backing.clone(), offset).unwrap()).unwrap();
        offset += size;
    }
    map
}

fn read(regions: impl Iterator<Item = (u64, Vec<u8>)>) -> Vec<u8> {
    regions.flat_map(|(_, bytes)| bytes).collect()
}

fn content(region: &Region) -> (u64, Vec<u8>) {
    let mut bytes = vec![0; region.size() as usize];
    region.read_slice(&mut bytes, MemoryRegionAddress(0)).unwrap();
    (region.gpa(), bytes)
}

fn take_all(incoming: &Incoming, mut sent: &[u8]) -> u64 {
    let mut frames = 0;
    while !sent.is_empty() {
        let (kind, length) = wire::head(&mut sent).unwrap();
        incoming.take(kind, length, &mut sent).unwrap();
        frames += 1;
    }
    frames
}

#[test]
fn only_what_is_no_zeroes_goes_first_and_what_became_zeroes_goes_later() {
    let (map, incoming) = (source(), Incoming::new(backing(), &ram()).unwrap());
    let regions = map.regions();
    let put = |page: u64, byte: u8| {
        let (region, page) = if page < 400 { (&regions[0], page) } else { (&regions[1], page - 400) };
        region.write_slice(&[byte; PAGE_SIZE as usize], MemoryRegionAddress(page * PAGE_SIZE)).unwrap();
    };
    for page in [0, 1, 7, 399, 400, 599] {
        put(page, 5);
    }
    put(9, 0);
    let (mut sent, all) = (Vec::new(), AtomicU64::new(1));
    assert_eq!(send(&regions, None, &mut sent, &Progress::default(), &all).unwrap(), 6 * PAGE_SIZE);
    assert_eq!(all.load(Ordering::Relaxed), 6 * PAGE_SIZE + 1);
    assert!(sent.len() as u64 <= 6 * PAGE_SIZE + 200);
    take_all(&incoming, &sent);
    put(1, 0);
    put(7, 0);
    put(8, 9);
    sent.clear();
    let changed = [1..2, 7..9, 598..600];
    assert_eq!(send(&regions, Some(&changed), &mut sent, &Progress::default(), &all).unwrap(), 2 * PAGE_SIZE);
    take_all(&incoming, &sent);
    assert_eq!(read(regions.iter().map(|region| content(region))), read(incoming.regions.iter().map(content)));
}

/// Pages that hold 5 from `first` on, and the frame's length.
fn pages(first: u64, count: u64) -> (Vec<u8>, usize) {
    let payload = [&first.to_le_bytes()[..], &vec![5; (count * PAGE_SIZE) as usize]].concat();
    let length = payload.len();
    (payload, length)
}

fn used(incoming: &Incoming) -> usize {
    incoming.regions.iter().flat_map(|region| content(region).1).filter(|byte| *byte == 5).count()
}

#[test]
fn a_frame_of_pages_may_span_pieces_of_ram_and_leaves_what_follows_it() {
    let incoming = Incoming::new(backing(), &ram()).unwrap();
    let (mut sent, length) = pages(397, 5);
    sent.extend(b"next");
    let mut from = &sent[..];
    incoming.take(Kind::Pages, length, &mut from).unwrap();
    assert_eq!(from, b"next");
    let holds =
        |bytes: Vec<u8>| (0..).zip(bytes).filter_map(|(at, byte)| (byte == 5).then_some(at)).collect::<Vec<u64>>();
    let holds: Vec<_> = incoming.regions.iter().map(|region| holds(content(region).1)).collect();
    assert!(holds.iter().flatten().copied().eq((397 * PAGE_SIZE..400 * PAGE_SIZE).chain(0..2 * PAGE_SIZE)));
}

/// The source has gone in the middle of a page, of a number, or at once: it is told as that.
#[test]
fn a_frame_that_ends_early_is_refused_wherever_it_does() {
    let (sent, length) = pages(3, 2);
    for come in [0, 5, 8, 9, 8 + 4096, 8 + 4097, length - 1] {
        let incoming = Incoming::new(backing(), &ram()).unwrap();
        let error = incoming.take(Kind::Pages, length, &mut &sent[..come]).unwrap_err();
        assert!(matches!(&error, MigrateError::Lost(_)), "{come}: {error}");
        assert!(error.to_string().contains("the other side has hung up"), "{come}: {error}");
        assert!(used(&incoming) <= come.saturating_sub(8), "{come}");
    }
}

/// Nothing is written, and no page is read, of a frame that begins in RAM and ends outside.
#[test]
fn a_frame_that_leaves_ram_changes_nothing() {
    let incoming = Incoming::new(backing(), &ram()).unwrap();
    for (first, count) in
        [(PAGES - 1, 2), (PAGES, 1), (u64::MAX, 1), (u64::MAX / PAGE_SIZE, 1), (u64::MAX / PAGE_SIZE, 2)]
    {
        let (sent, length) = pages(first, count);
        let mut from = &sent[..];
        let error = incoming.take(Kind::Pages, length, &mut from).unwrap_err().to_string();
        assert!(error.contains("which is no RAM"), "{error}");
        assert_eq!((from.len(), used(&incoming)), (length - 8, 0));
    }
    for length in [0, 7, 8, 9, 8 + 4095] {
        let (sent, _) = pages(0, 1);
        assert!(incoming.take(Kind::Pages, length, &mut &sent[..]).is_err(), "{length}");
        assert!(incoming.take(Kind::Zeroes, length, &mut &sent[..]).is_err(), "{length}");
    }
    assert_eq!(used(&incoming), 0);
}

#[test]
fn over_a_socket_pages_go_from_memory_to_memory() {
    let (map, incoming) = (source(), Incoming::new(backing(), &ram()).unwrap());
    let regions = map.regions();
    for (number, region) in regions.iter().enumerate() {
        let bytes: Vec<u8> = (0..region.size()).map(|at| (at / 4099) as u8 ^ number as u8).collect();
        region.write_slice(&bytes, MemoryRegionAddress(0)).unwrap();
    }
    let ((here, mut there), ram) = (UnixStream::pair().unwrap(), &regions);
    let sent = thread::scope(|scope| {
        let sending =
            scope.spawn(move || send(ram, None, &mut &here, &Progress::default(), &AtomicU64::new(0)).unwrap());
        while let Ok((kind, length)) = wire::head(&mut there) {
            incoming.take(kind, length, &mut there).unwrap();
        }
        sending.join().unwrap()
    });
    // A page of each piece may be zeroes.
    assert!(sent >= (PAGES - 2) * PAGE_SIZE, "{sent}");
    assert_eq!(read(regions.iter().map(|region| content(region))), read(incoming.regions.iter().map(content)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_there_is_what_was_sent(writes in prop::collection::vec((0..PAGES, 0_u8..3, 0_usize..3), 1..60)) {
        let (map, incoming) = (source(), Incoming::new(backing(), &ram()).unwrap());
        let regions = map.regions();
        for round in 0..3 {
            let mut touched = vec![];
            for (page, byte, _) in writes.iter().filter(|(.., when)| *when == round) {
                let (region, inside) = if *page < 400 { (&regions[0], *page) } else { (&regions[1], page - 400) };
                region.write_slice(&[*byte; 4096], MemoryRegionAddress(inside * PAGE_SIZE)).unwrap();
                touched.push(*page..page + 1);
            }
            touched.sort_by_key(|run| run.start);
            touched.dedup();
            let mut sent = Vec::new();
            send(&regions, (round > 0).then_some(&touched), &mut sent, &Progress::default(), &AtomicU64::new(0)).unwrap();
            take_all(&incoming, &sent);
        }
        prop_assert_eq!(read(regions.iter().map(|region| content(region))), read(incoming.regions.iter().map(content)));
    }

    #[test]
    fn fuzz_any_pages_are_taken_or_refused(kind in any::<bool>(), first in prop_oneof![0_u64..700, any::<u64>()], count in prop_oneof![0_u64..700, any::<u64>()], rest in 0_usize..9000) {
        let incoming = Incoming::new(backing(), &ram()).unwrap();
        let (kind, payload) = match kind {
            true => (Kind::Pages, [&first.to_le_bytes()[..], &vec![3; rest]].concat()),
            false => (Kind::Zeroes, [first.to_le_bytes(), count.to_le_bytes()].concat()),
        };
        let pages = if kind == Kind::Pages { rest as u64 / PAGE_SIZE } else { count };
        let whole = kind == Kind::Zeroes || (rest as u64).is_multiple_of(PAGE_SIZE);
        let fits = whole && pages > 0 && first.checked_add(pages).is_some_and(|end| end <= PAGES);
        let take = |length: usize| incoming.take(kind, length, &mut &payload[..length]);
        prop_assert_eq!(take(payload.len()).is_ok(), fits);
        prop_assert!(take(7).is_err());
    }
}
