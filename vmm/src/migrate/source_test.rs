use std::io::Read as _;
use std::os::unix::net::{UnixListener, UnixStream};

use skep_hypervisor::Aarch64;
use skep_memory::vm_memory::{Bytes, MemoryRegionAddress};

use super::*;
use crate::state::testing::machine;

/// Sends a machine of which so many pages are written in each round, the last number again and again; in round `end` it is cancelled. Answers what it
/// comes to, with the rounds.
fn rounds(downtime: Duration, written: &[u64], end: u32) -> (Result<u64, MigrateError>, u32) {
    let folder = tempfile::tempdir().unwrap();
    let plan = machine::<Aarch64>(folder.path()).leave(Address::Unix("nowhere".into()), downtime).unwrap();
    let (here, mut there) = UnixStream::pair().unwrap();
    let link = Link::new(here).unwrap();
    let shared = Arc::<Shared>::default();
    shared.link.set(link.try_clone().unwrap()).unwrap();
    let (_hand, handed) = channel();
    let ram = plan.ram.clone();
    let most = ram.iter().max_by_key(|region| region.size()).unwrap().gpa();
    let mut worker =
        Worker { shared: shared.clone(), plan, handed, begin: Instant::now(), buffer: Vec::new(), waits: false };
    let target = thread::spawn(move || there.read_to_end(&mut Vec::new()));
    let mut taken = 0;
    let mut take = || {
        let pages = written[taken.min(written.len() - 1)];
        taken += 1;
        if shared.rounds.load(Ordering::Relaxed) == end {
            assert!(shared.cancel());
        }
        let words = (0..pages.div_ceil(64)).map(|word| u64::MAX >> (64 - (pages - word * 64).min(64)));
        Ok(vec![(most, words.collect())])
    };
    let rest = worker.send_while_it_runs(&link, &mut take, &ram);
    link.hang_up();
    target.join().unwrap().unwrap();
    assert_eq!(shared.is(Stage::Cancelled), rest.is_err());
    let pages = |bits: Bits| changes::runs(&bits, &ram).iter().map(|run| run.end - run.start).sum();
    (rest.map(pages), shared.rounds.load(Ordering::Relaxed))
}

/// Until what is left is little, or takes no longer than the downtime; a guest that writes more each time is gone through until somebody ends it.
#[test]
fn rounds_go_on_until_the_downtime_can_be_had() {
    let (rest, count) = rounds(Duration::ZERO, &[4000, 300, FEW + 1, FEW], u32::MAX);
    assert_eq!((rest.unwrap(), count), (FEW, 4));
    let (rest, count) = rounds(Duration::from_secs(100_000), &[10_000], u32::MAX);
    assert_eq!((rest.unwrap(), count), (10_000, 1));
    let (rest, count) = rounds(Duration::ZERO, &[FEW + 1], 7);
    assert!(matches!(rest, Err(MigrateError::Lost(_))), "{rest:?}");
    assert_eq!(count, 7);
}

#[test]
fn a_rate_is_of_a_second() {
    assert_eq!(per_second(3 << 20, Duration::from_millis(1500)), 2 << 20);
    assert_eq!(per_second(u64::MAX, Duration::ZERO), u64::MAX);
    let shared = Shared::default();
    shared.sent.store(1 << 40, Ordering::Relaxed);
    assert_eq!(shared.rate(), 0);
    shared.since.set(Instant::now()).unwrap();
    assert!(shared.rate() > 0);
}

/// Sends a machine to a target that answers up to `last`, with which somebody cancels: before the target answers, or (`late`) so that its answer still comes.
/// Answers what the target has seen, and what it comes to.
fn cancelled_at(last: Option<Kind>, late: bool) -> (Vec<Kind>, Result<Moved, MigrateError>) {
    let folder = tempfile::tempdir().unwrap();
    let mut machine = machine::<Aarch64>(folder.path());
    let ram = machine.ram();
    let most = ram.iter().max_by_key(|region| region.size()).unwrap();
    most.write_slice(b"no zeroes", MemoryRegionAddress(0)).unwrap();
    let path = folder.path().join("target");
    let listener = UnixListener::bind(&path).unwrap();
    let plan = machine.leave(Address::Unix(path), Duration::from_secs(1000)).unwrap();
    let now = Instant::now();
    let (records, images) = (machine.save().unwrap(), machine.disk_images());
    let handed = Handed { records, images, begin: now, since: now, paused: false };
    let shared = Arc::<Shared>::default();
    let (here, _there) = UnixStream::pair().unwrap();
    if late {
        // What is hung up is another connection.
        shared.link.set(Link::new(here).unwrap()).unwrap();
    }
    let (hand, hands) = channel();
    let mut worker =
        Worker { shared: shared.clone(), plan, handed: hands, begin: now, buffer: Vec::new(), waits: false };
    if last.is_none() {
        assert!(shared.cancel());
    }
    let target = thread::spawn(move || {
        let (link, _) = listener.accept().unwrap();
        let (mut seen, mut payload) = (Vec::new(), Vec::new());
        while let Ok(kind) = wire::receive(&link, &mut payload) {
            seen.push(kind);
            if Some(kind) == last {
                assert!(shared.cancel());
            }
            // One that has gone does not hear it.
            let _ = match kind {
                Kind::Hello => wire::send(&link, Kind::Accept, &[]),
                Kind::State => wire::send(&link, Kind::Ready, &[]),
                Kind::Go => wire::send(&link, Kind::Refused, &[]),
                _ => Ok(()),
            };
        }
        (seen, shared)
    });
    let outcome = worker.run(move || hand.send(Ok(handed)).unwrap());
    let (mut seen, shared) = target.join().unwrap();
    assert!(shared.is(Stage::Cancelled) && !shared.is_unknown());
    // Its images are still its own.
    assert!(shared.images().is_none());
    machine.hold_images().unwrap();
    seen.dedup();
    (seen, outcome)
}

/// While it connects, while the target makes room, while the last of it goes, and when the target is ready: it stays, and the target is never told to go.
#[test]
fn who_cancels_keeps_the_machine_at_any_message() {
    let all = [Kind::Hello, Kind::Pages, Kind::State];
    for (last, late, count) in [
        (None, false, 0),
        (Some(Kind::Hello), false, 1),
        (Some(Kind::Pages), false, 2),
        (Some(Kind::State), false, 3),
        (Some(Kind::State), true, 3),
    ] {
        let (seen, outcome) = cancelled_at(last, late);
        assert!(matches!(outcome, Err(MigrateError::Cancelled)), "{last:?}: {outcome:?}");
        assert_eq!(seen, all[..count], "{last:?}");
    }
}
