use std::collections::VecDeque;

use proptest::prelude::*;
use skep_memory::vm_memory::Permissions;

use super::*;
use crate::testing::{BUFFERS, EDGE, Ear, Guest, Piece, RAM, RAM_SIZE, Ring, Told, event};

fn queue(event_index: bool, size: u16) -> (Ring, Queue, std::sync::Arc<Guest>) {
    let guest = std::sync::Arc::new(Guest::new());
    let config = Ring::place(RAM, size, event_index);
    config.check(&guest.ram(), MAX_QUEUE_SIZE).unwrap();
    (Ring::new(guest.clone(), config), Queue::new(config, 0), guest)
}

#[test]
fn a_chain_has_readable_and_writable_bytes() {
    let (mut ring, mut queue, guest) = queue(false, 8);
    let ram = guest.ram();
    assert_eq!(queue.pop(&ram), Ok(None));
    let head = ring.add(&[Piece::Read(b"abc"), Piece::Read(b"defgh"), Piece::Write(4), Piece::Write(4)]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    assert_eq!((chain.head(), chain.readable().len(), chain.writable().len()), (head, 8, 8));
    let mut text = [0; 16];
    assert_eq!(chain.readable().read(&ram, 1, &mut text), Ok(7));
    assert_eq!(&text[..7], b"bcdefgh");
    assert_eq!(chain.readable().read_array::<2>(&ram, 2), Ok(Some(*b"cd")));
    assert_eq!(chain.readable().read_array::<9>(&ram, 0), Ok(None));
    assert_eq!(chain.writable().write(&ram, 2, b"123456789"), Ok(6), "cut to the room that there is");
    let mut slices = Vec::new();
    chain.writable().slices(&ram, 1..7, Permissions::Write, &mut slices).unwrap();
    assert_eq!(slices.iter().map(|slice| slice.len()).collect::<Vec<_>>(), [3, 3]);
    queue.complete(&ram, chain, 8).unwrap();
    assert_eq!(ring.take_used(), None, "not before it is published");
    assert_eq!(queue.publish(&ram), Ok(true));
    let used = ring.take_used().unwrap();
    assert_eq!((used.head, used.len, &used.data[2..]), (head, 8, &b"123456"[..]));
    assert_eq!(queue.publish(&ram), Ok(false), "nothing new");
}

/// CVE-2019-18960: a chain that touches the end of a region, crosses into the next one, or leaves memory.
#[test]
fn buffers_at_and_across_region_edges() {
    let (mut ring, mut queue, guest) = queue(false, 16);
    let ram = guest.ram();
    let end = RAM + RAM_SIZE;
    let cases = [(EDGE - 16, 16, true), (EDGE, 16, true), (EDGE - 8, 16, true), (end - 16, 16, true)];
    let outside = [(end - 8, 16, false), (end, 1, false), (RAM - 1, 2, false), (u64::MAX - 4, 16, false)];
    for (gpa, len, inside) in cases.into_iter().chain(outside) {
        ring.add(&[Piece::At { gpa, len, write: true }]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        let bytes = vec![0x5a; len as usize];
        assert_eq!(chain.writable().write(&ram, 0, &bytes).is_ok(), inside, "{gpa:#x}");
        assert_eq!(chain.writable().read(&ram, 0, &mut vec![0; len as usize]).is_ok(), inside, "{gpa:#x}");
        let sliced = chain.writable().slices(&ram, 0..len.into(), Permissions::Write, &mut Vec::new());
        assert_eq!(sliced.is_ok(), inside, "{gpa:#x}");
        queue.complete(&ram, chain, 0).unwrap();
        queue.publish(&ram).unwrap();
        ring.take_used().unwrap();
    }
    assert_eq!(guest.read(EDGE - 16, 32), [0x5a; 32]);
}

/// Writes a table of raw descriptors, offers `head`, and says what the device makes of it.
fn walk(table: &[(u64, u32, u16, u16)], indirect: &[(u64, u32, u16, u16)], head: u16) -> Result<usize, QueueError> {
    let (mut ring, mut queue, guest) = queue(false, 4);
    for (at, list) in [(ring.config.descriptors, table), (BUFFERS, indirect)] {
        for (place, &(gpa, len, flags, next)) in (0u64..).zip(list) {
            Ring::descriptor_at(&guest, at + place * 16, gpa, len, flags, next);
        }
    }
    ring.offer(head);
    queue.pop(&guest.ram()).map(|chain| chain.unwrap().buffers.len())
}

#[test]
fn chains_that_break_the_rules_are_refused_by_name() {
    let (next, write, indirect) = (1, 2, 4);
    assert_eq!(walk(&[(RAM, 1, next, 1), (RAM, 1, next, 0)], &[], 0), Err(QueueError::Long { size: 4 }), "a loop");
    assert_eq!(walk(&[(RAM, 1, next, 4)], &[], 0), Err(QueueError::Index { index: 4, size: 4 }));
    assert_eq!(walk(&[], &[], 4), Err(QueueError::Index { index: 4, size: 4 }));
    assert_eq!(walk(&[(RAM, 1, write | next, 1), (RAM, 1, 0, 0)], &[], 0), Err(QueueError::Order));
    let half = 1 << 31;
    assert_eq!(walk(&[(RAM, half, next, 1), (RAM, half, 0, 0)], &[], 0), Ok(2), "2^32 bytes are allowed");
    let three = [(RAM, half, next, 1), (RAM, half, next, 2), (RAM, 1, 0, 0)];
    assert_eq!(walk(&three, &[], 0), Err(QueueError::Bytes));

    let good = [(RAM, 1, next, 1), (RAM, 1, write, 0)];
    assert_eq!(walk(&[(BUFFERS, 32, indirect, 0)], &good, 0), Ok(2));
    assert_eq!(walk(&[(RAM, 1, next, 1), (BUFFERS, 32, indirect, 0)], &good, 0), Ok(3), "after a direct one");
    let refused = |what| Err(QueueError::Indirect(what));
    let table = |gpa, len, flags| [(gpa, len, flags, 1)];
    assert_eq!(walk(&table(BUFFERS, 32, indirect | next), &good, 0), refused("has a next one"));
    assert_eq!(walk(&table(BUFFERS, 33, indirect), &good, 0), refused("names no whole number of descriptors"));
    assert_eq!(walk(&table(BUFFERS, 0, indirect), &good, 0), refused("names no whole number of descriptors"));
    assert_eq!(walk(&table(u64::MAX - 15, 16, indirect), &good, 0), refused("leaves the address space"));
    let nested = [(BUFFERS, 16, indirect, 0)];
    assert_eq!(walk(&nested, &nested, 0), refused("is in an indirect table"));
    let far = QueueError::NotRam { part: "descriptor", gpa: 0, len: 16 };
    assert_eq!(walk(&table(0, 16, indirect), &good, 0), Err(far));
    // However long the table says it is, a chain is no longer than the queue.
    let long: Vec<_> = (1..=5).map(|next_one| (RAM, 1, next, next_one)).collect();
    assert_eq!(walk(&table(BUFFERS, 0xffff_fff0, indirect), &long, 0), Err(QueueError::Long { size: 4 }));
}

#[test]
fn configurations_that_no_queue_can_have_are_refused() {
    let guest = Guest::new();
    let ram = guest.ram();
    let good = Ring::place(RAM, 8, true);
    assert_eq!(good.check(&ram, 8), Ok(()));
    for size in [0, 3, 16, 0x8000, u16::MAX] {
        assert_eq!(QueueConfig { size, ..good }.check(&ram, 8), Err(QueueError::Size { size, max: 8 }));
    }
    let wrong = |config: QueueConfig| config.check(&ram, 8).unwrap_err();
    let unaligned = [
        QueueConfig { descriptors: RAM + 8, ..good },
        QueueConfig { available: RAM + 1, ..good },
        QueueConfig { used: RAM + 2, ..good },
    ];
    for config in unaligned {
        assert!(matches!(wrong(config), QueueError::Alignment { .. }));
    }
    for gpa in [0, RAM - 16, RAM + RAM_SIZE - 16, u64::MAX - 15] {
        for config in [
            QueueConfig { descriptors: gpa, ..good },
            QueueConfig { available: gpa, ..good },
            QueueConfig { used: gpa, ..good },
        ] {
            assert!(matches!(wrong(config), QueueError::NotRam { .. }), "{config:x?}");
        }
    }
}

#[test]
fn an_index_beyond_the_ring_is_refused() {
    let (mut ring, mut queue, guest) = queue(false, 4);
    let ram = guest.ram();
    for _ in 0..4 {
        ring.add(&[Piece::Write(1)]);
    }
    let chain = queue.pop(&ram).unwrap().unwrap();
    guest.write(ring.config.available + 2, &9u16.to_le_bytes());
    // What was known to be there is still taken; the rest is looked at again.
    (0..3).for_each(|_| drop(queue.pop(&ram).unwrap().unwrap()));
    assert_eq!(queue.pop(&ram), Err(QueueError::Available { ahead: 5, size: 0 }));
    queue.complete(&ram, chain, 0).unwrap();
}

#[test]
fn what_is_given_back_is_next_again() {
    let (mut ring, mut queue, guest) = queue(true, 4);
    let ram = guest.ram();
    let heads = [ring.add(&[Piece::Write(1)]), ring.add(&[Piece::Write(2)])];
    for _ in 0..3 {
        let chain = queue.pop(&ram).unwrap().unwrap();
        assert_eq!((chain.head(), queue.in_flight()), (heads[0], 1));
        queue.give_back(chain);
        assert_eq!((queue.in_flight(), queue.next()), (0, 0));
    }
    let first = queue.pop(&ram).unwrap().unwrap();
    let second = queue.pop(&ram).unwrap().unwrap();
    assert_eq!(second.head(), heads[1]);
    queue.complete(&ram, second, 0).unwrap();
    queue.complete(&ram, first, 0).unwrap();
    queue.publish(&ram).unwrap();
    assert_eq!([ring.take_used().unwrap().head, ring.take_used().unwrap().head], [heads[1], heads[0]]);
}

#[test]
fn an_active_queue_needs_bus_mastering_and_breaks_once() {
    let guest = std::sync::Arc::new(Guest::new());
    let config = Ring::place(RAM, 4, false);
    let (notifier, told) = Ear::new();
    let start = QueueStart {
        index: 3,
        config,
        max_size: 4,
        state: QueueState::default(),
        dma: guest.dma(),
        doorbell: event(),
        notifier,
    };
    let mut ring = Ring::new(guest.clone(), config);
    let mut active = ActiveQueue::new(start.clone());
    ring.add(&[Piece::Write(1)]);
    guest.master.set(false);
    assert!(active.pop().is_none() && !active.has_available() && !active.arm());
    guest.master.set(true);
    let chain = active.pop().unwrap();
    active.close();
    assert_eq!(active.finish(), None, "a chain is in flight");
    active.complete(chain, 1);
    assert_eq!(active.finish(), Some(QueueState { next: 1, broken: false }));
    assert_eq!(told.try_recv(), Ok(Told::Used(3)));

    let mut broken = ActiveQueue::new(QueueStart { config: QueueConfig { size: 5, ..config }, ..start });
    assert!(broken.pop().is_none() && broken.pop().is_none());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Told::NeedsReset]);
    broken.close();
    assert_eq!(broken.finish(), Some(QueueState { next: 0, broken: true }));
}

/// What a test does with both ends of a ring.
#[derive(Debug, Clone)]
enum Step {
    /// The driver makes a chain of so many pieces available.
    Add(u8),
    Pop,
    GiveBack,
    /// Completes one of those in flight.
    Complete(u8),
    Publish,
    Arm,
    /// The driver takes what is used, and may ask to be told of the next one.
    Take(bool),
    /// The device goes on as another one, which was restored from where this one stands.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u8..4).prop_map(Step::Add),
        3 => Just(Step::Pop),
        1 => Just(Step::GiveBack),
        3 => any::<u8>().prop_map(Step::Complete),
        2 => Just(Step::Publish),
        1 => Just(Step::Arm),
        2 => any::<bool>().prop_map(Step::Take),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..300)
}

proptest! {
    /// Nothing is lost, nothing comes twice, the order is kept, and whoever asked to be told is told.
    #[test]
    fn rings_carry_every_chain_once(steps in steps(), event_index: bool, size in 0u32..4) {
        let (mut ring, mut queue, guest) = queue(event_index, 4 << size);
        let ram = guest.ram();
        let mut waiting: VecDeque<u16> = VecDeque::new();
        let mut flying: Vec<Chain> = Vec::new();
        let mut written: VecDeque<(u16, u32)> = VecDeque::new();
        let mut published: VecDeque<(u16, u32)> = VecDeque::new();
        let mut wants = true;
        for step in steps {
            match step {
                Step::Add(pieces) if ring.free() >= usize::from(pieces) => {
                    let pieces: Vec<_> = (0..pieces).map(|_| Piece::Write(8)).collect();
                    waiting.push_back(ring.add(&pieces));
                }
                Step::Pop => {
                    let chain = queue.pop(&ram).unwrap();
                    prop_assert_eq!(chain.as_ref().map(Chain::head), waiting.pop_front());
                    flying.extend(chain);
                }
                Step::GiveBack if !waiting.is_empty() => {
                    let chain = queue.pop(&ram).unwrap().unwrap();
                    queue.give_back(chain);
                }
                Step::Complete(which) if !flying.is_empty() => {
                    let chain = flying.swap_remove(usize::from(which) % flying.len());
                    written.push_back((chain.head(), u32::from(which)));
                    queue.complete(&ram, chain, which.into()).unwrap();
                }
                Step::Publish => {
                    let any = !written.is_empty();
                    let interrupt = queue.publish(&ram).unwrap();
                    // Without an event index every batch interrupts; with one the first after it was asked for.
                    prop_assert_eq!(interrupt, any && (wants || !event_index));
                    wants = wants && !any;
                    published.append(&mut written);
                }
                Step::Arm => {
                    prop_assert_eq!(queue.arm(&ram).unwrap(), !waiting.is_empty());
                    let before = ring.available_index();
                    if ring.free() > 0 {
                        waiting.push_back(ring.add(&[Piece::Write(8)]));
                        if waiting.len() == 1 {
                            prop_assert!(ring.wants_kick(before));
                        }
                    }
                }
                Step::Take(want) => {
                    while let Some((head, len)) = published.pop_front() {
                        let used = ring.take_used().unwrap();
                        prop_assert_eq!((used.head, used.len), (head, len));
                    }
                    prop_assert_eq!(ring.take_used(), None);
                    if want {
                        ring.want_interrupt();
                        wants = true;
                    }
                }
                Step::Restart if flying.is_empty() && written.is_empty() => {
                    queue = Queue::new(ring.config, queue.next());
                }
                _ => {}
            }
            prop_assert_eq!(usize::from(queue.in_flight()), flying.len());
        }
    }
}

skep_fuzzing::targets! {
    /// Whatever is in the ring's memory: no panic, no endless walk, no chain longer than the queue.
    "virtio-rings": fn fuzz_rings(
        noise in proptest::collection::vec(any::<u8>(), 512),
        places in proptest::collection::vec((0u64..2048, any::<u64>()), 0..64),
        event_index in any::<bool>(),
        next in any::<u16>(),
    ) {
        let (ring, _, guest) = queue(event_index, 16);
        let mut queue = Queue::new(ring.config, next);
        let ram = guest.ram();
        guest.write(RAM, &noise);
        // Descriptors that begin in RAM get further than such as lie anywhere.
        for index in 0..16 {
            guest.write(RAM + index * 16 + 3, &[0; 5]);
            guest.write(RAM + index * 16 + 2, &[0x10 + noise[index as usize] % 0x80]);
        }
        for (place, value) in places {
            guest.write(RAM + place, &value.to_le_bytes());
            let index = next.wrapping_add(value as u16 % 17);
            guest.write(ring.config.available + 2, &index.to_le_bytes());
            while let Ok(Some(chain)) = queue.pop(&ram) {
                prop_assert!(chain.buffers.len() <= 16);
                let mut bytes = [0; 64];
                let _ = chain.readable().read(&ram, value % 128, &mut bytes);
                let _ = chain.writable().write(&ram, value % 128, &bytes);
                let _ = queue.complete(&ram, chain, 0);
                let _ = queue.publish(&ram);
            }
            let _ = queue.arm(&ram);
        }
    }
}
