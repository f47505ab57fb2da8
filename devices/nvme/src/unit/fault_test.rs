//! What goes wrong, and whatever a guest may do.

use proptest::prelude::*;
use skep_block::IoError;
use skep_block::testing::{Fault, MemoryDisk};
use skep_state::Persist;

use crate::ControllerConfig;
use crate::spec::{Command, Status, admin, io};
use crate::testing::{DATA, Guest, Pair, RAM, command, config, map, namespace, transfer, wait_for};

#[test]
fn errors_of_the_disk_are_told_logged_and_counted() {
    let (mut guest, mut pair) = Guest::ready();
    let errors = [
        (IoError::Host(5), io::READ, Status::READ_ERROR),
        (IoError::Host(5), io::WRITE, Status::WRITE_FAULT),
        (IoError::NoSpace, io::WRITE, Status::CAPACITY_EXCEEDED),
        (IoError::ReadOnly, io::WRITE, Status::WRITE_PROTECTED),
        (IoError::OutOfRange, io::READ, Status::LBA_OUT_OF_RANGE),
    ];
    for (error, opcode, status) in errors {
        guest.faults.set_rule(move |_| Some(Fault::Fail(error)));
        assert_eq!(guest.io(&mut pair, &transfer(opcode, 77, 1, DATA)), status);
    }
    guest.faults.clear_rule();
    let health = guest.log(2, 0, 512).unwrap();
    assert_eq!((health[160], health[176]), (2, 5), "errors of the medium, and all");
    let log = guest.log(1, 0, 4096).unwrap();
    assert_eq!(log[0], 5, "the newest first");
    assert_eq!((log[8], log[10], log[16], log[24]), (1, 4, 77, 1), "queue, command, block, namespace");
    assert_eq!(u16::from_le_bytes([log[12], log[13]]) >> 1, Status::LBA_OUT_OF_RANGE.0);
}

#[test]
fn torn_and_short_transfers_are_errors() {
    let (guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|_| Some(Fault::Partial { blocks: 1, error: IoError::Host(5) }));
    assert_eq!(guest.write_blocks(&mut pair, 0, 2, 7), Status::WRITE_FAULT);
    assert_eq!((guest.disk.content()[0], guest.disk.content()[512]), (7, 0));
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 2, DATA)), Status::READ_ERROR);
    guest.faults.clear_rule();
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 2, DATA)), Status::SUCCESS);
}

#[test]
fn completions_come_in_the_disks_order() {
    let (guest, mut pair) = Guest::ready();
    let mut first = true;
    guest.faults.set_rule(move |_| std::mem::take(&mut first).then_some(Fault::Delay(1)));
    for block in 0..2 {
        guest.put(&mut pair, &transfer(io::READ, block, 1, DATA));
    }
    guest.ring(&pair);
    assert_eq!((guest.wait(&mut pair).command, guest.wait(&mut pair).command), (1, 0));
}

#[test]
fn abort_aborts() {
    let (mut guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|_| Some(Fault::Hang));
    let hanging = guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    let abort =
        |id: u16, queue: u16| command(admin::ABORT, 0, 0, [u32::from(queue) | u32::from(id) << 16, 0, 0, 0, 0, 0]);
    let done = guest.admin(&abort(hanging, 1));
    assert_eq!((done.status, done.result), (Status::SUCCESS, 0), "aborted");
    let done = guest.wait(&mut pair);
    assert_eq!((done.command, done.status), (hanging, Status::ABORT_REQUESTED));
    for (id, queue) in [(hanging, 1), (0, 2), (9, 0)] {
        let done = guest.admin(&abort(id, queue));
        assert_eq!((done.status, done.result), (Status::SUCCESS, 1), "there is no such command");
    }
    // A request for an event can be aborted too.
    let mut admin = guest.admin.clone();
    let request = guest.submit(&mut admin, &command(admin::ASYNC_EVENT, 0, 0, [0; 6]));
    guest.submit(&mut admin, &abort(request, 0));
    let done = [guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!((done[0].command, done[0].status), (request, Status::ABORT_REQUESTED));
    assert_eq!(done[1].result, 0);
}

#[test]
fn a_command_that_can_not_be_aborted_ends_as_it_may() {
    let (guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|_| Some(Fault::HangForGood));
    let hanging = guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    let mut admin = guest.admin.clone();
    let abort = command(admin::ABORT, 0, 0, [1 | u32::from(hanging) << 16, 0, 0, 0, 0, 0]);
    // Asked for five times: four wait, and each is answered.
    for _ in 0..5 {
        guest.submit(&mut admin, &abort);
    }
    let refused = guest.wait(&mut admin);
    let later = [guest.wait(&mut admin), guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!(later.map(|done| done.result), [1; 3]);
    assert_eq!(refused.result, 1);
    guest.faults.clear_rule();
    guest.faults.release();
    assert_eq!(guest.wait(&mut pair).status, Status::SUCCESS);
    let done = guest.wait(&mut admin);
    assert_eq!((done.status, done.result), (Status::SUCCESS, 1));
}

#[test]
fn a_queue_is_deleted_when_nothing_of_it_is_in_flight() {
    let (mut guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|operation| {
        Some(match operation.writes() {
            true => Fault::HangForGood,
            false => Fault::Hang,
        })
    });
    guest.put(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.put(&mut pair, &transfer(io::WRITE, 1, 1, DATA));
    guest.ring(&pair);
    guest.faults.wait_hanging(2);
    let delete = |opcode, id: u32| command(opcode, 0, 0, [id, 0, 0, 0, 0, 0]);
    assert_eq!(guest.admin(&delete(admin::DELETE_CQ, 1)).status, Status::INVALID_QUEUE_DELETION);
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &delete(admin::DELETE_SQ, 1));
    assert_eq!(guest.wait(&mut pair).status, Status::ABORTED_BY_DELETION);
    // Nobody may use its number, or delete its completion queue, meanwhile.
    guest.submit(&mut admin, &command(admin::CREATE_SQ, 0, pair.submission(), [1 | 63 << 16, 1 | 1 << 16, 0, 0, 0, 0]));
    assert_eq!(guest.wait(&mut admin).status, Status::INVALID_QUEUE_ID);
    guest.submit(&mut admin, &delete(admin::DELETE_CQ, 1));
    assert_eq!(guest.wait(&mut admin).status, Status::INVALID_QUEUE_DELETION);
    guest.faults.clear_rule();
    guest.faults.release();
    assert_eq!(guest.wait(&mut pair).status, Status::SUCCESS, "what could not be cancelled has ended");
    assert_eq!(guest.wait(&mut admin).status, Status::SUCCESS);
    guest.admin = admin;
    assert_eq!(guest.admin(&delete(admin::DELETE_SQ, 1)).status, Status::INVALID_QUEUE_ID);
    assert_eq!(guest.admin(&delete(admin::DELETE_CQ, 1)).status, Status::SUCCESS);
    assert_eq!(guest.admin(&delete(admin::DELETE_CQ, 1)).status, Status::INVALID_QUEUE_ID);
    let mut pair = guest.create(1, 64);
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
}

#[test]
fn a_pause_waits_for_what_hangs_and_loses_nothing() {
    let one_at_a_time = ControllerConfig { in_flight: 1, ..config() };
    let mut guest = Guest::with(one_at_a_time, map(), MemoryDisk::new(1 << 20, 512));
    guest.enable();
    let mut pair = guest.create(1, 64);
    guest.faults.set_rule(|_| Some(Fault::HangForGood));
    for block in 0..2 {
        guest.submit(&mut pair, &transfer(io::READ, block, 1, DATA));
    }
    guest.faults.wait_hanging(1);
    let paused = guest.begin_pause();
    assert!(paused.try_recv().is_err());
    guest.faults.clear_rule();
    guest.faults.release();
    paused.recv().unwrap();
    let state = guest.controller.save();
    let (taken, told) = (state.units[0].submission[0].head, state.units[0].completion.tail);
    // One, or both where the disk was faster than the order to stop.
    assert!((1..=2).contains(&taken) && taken == told, "what was taken is told: {taken}, {told}");
    let guest = guest.successor(config());
    assert_eq!((guest.wait(&mut pair).command, guest.wait(&mut pair).command), (0, 1));
}

#[test]
fn without_bus_mastering_nothing_is_taken_and_nothing_told() {
    let (mut guest, mut pair) = Guest::ready();
    guest.master.set(false);
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.pause();
    guest.controller.resume();
    assert_eq!(guest.disk.counts().reads, 0);
    guest.master.set(true);
    guest.ring(&pair);
    assert_eq!(guest.wait(&mut pair).status, Status::SUCCESS);
    // What it was told of meanwhile is saved.
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 1, DATA)), Status::SUCCESS);
    guest.master.set(false);
    assert_eq!(guest.pause().units[0].completion.head, pair.head);
    guest.controller.resume();
    guest.master.set(true);
    // With something in flight, its end can't be told any more.
    guest.controller.attach(2, &namespace(guest.disk.clone())).unwrap();
    guest.faults.set_rule(|_| Some(Fault::Hang));
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    guest.master.set(false);
    // When this returns, every round of before has ended.
    assert!(guest.controller.detach(2));
    guest.faults.release();
    wait_for("the fatal status", || guest.status() & 2 == 2);
    guest.master.set(true);
    guest.faults.clear_rule();
    guest.disable();
    guest.enable();
    let mut pair = guest.create(1, 64);
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
}

#[test]
fn namespaces_come_and_go_with_io_in_flight() {
    let (mut guest, mut pair) = Guest::ready();
    assert_eq!(guest.set_feature(0x0b, 1 << 8), Ok(0));
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &command(admin::ASYNC_EVENT, 0, 0, [0; 6]));
    guest.faults.set_rule(|_| Some(Fault::HangForGood));
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    assert!(guest.controller.detach(1) && !guest.controller.detach(1));
    let done = guest.wait(&mut admin);
    assert_eq!((done.status, done.result), (Status::SUCCESS, 0x04_00_02));
    guest.admin = admin;
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 1, DATA)), Status::INVALID_NAMESPACE);
    assert_eq!(guest.log(4, 0, 4096).unwrap()[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.identify(2, 0).unwrap()[..4], [0; 4]);
    // Another one of the same number, while a read of the first is in flight.
    guest.controller.attach(1, &namespace(guest.disk.clone())).unwrap();
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 1, DATA)), Status::SUCCESS);
    guest.faults.clear_rule();
    guest.faults.release();
    let done = guest.wait(&mut pair);
    assert_eq!((done.command, done.status), (0, Status::SUCCESS));
    // A new size is told as well.
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &command(admin::ASYNC_EVENT, 0, 0, [0; 6]));
    assert_eq!(guest.wait(&mut admin).result, 0x04_00_02, "that it has come");
    guest.admin = admin;
    guest.log(4, 0, 4096).unwrap();
    guest.disk.resize(2 << 20);
    wait_for("the new size to be noted", || guest.log(4, 0, 4096).unwrap()[0] == 1);
    assert_eq!(guest.identify(0, 1).unwrap()[..8], 4096u64.to_le_bytes());
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 4095, 1, DATA)), Status::SUCCESS);
    let left = std::sync::Arc::strong_count(&guest.faults);
    assert_eq!(left, 1, "the first disk was let go of");
}

#[derive(Debug, Clone)]
enum Act {
    Put(usize, Box<[u32; 16]>),
    Ring(usize, Option<u32>),
    Take(usize, u32),
    Fault(u8),
    Release,
    Detach,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let opcode = prop_oneof![Just(0u32), Just(1), Just(2), Just(5), Just(8), Just(9), Just(0xc), 0u32..256];
    let page = || prop_oneof![(0u64..RAM / 512).prop_map(|n| n * 512), any::<u64>(), Just(DATA), Just(DATA + 4096)];
    let put = (opcode, 0u32..4, page(), page(), any::<[u32; 3]>(), any::<bool>()).prop_map(
        |(opcode, namespace, first, second, [block, count, flags], sane)| {
            let mut dwords = [0; 16];
            dwords[0] = opcode | if flags % 7 == 0 { flags & 0xc300 } else { 0 } | block << 16;
            dwords[1] = if namespace == 3 { u32::MAX } else { namespace };
            (dwords[6], dwords[7]) = (first as u32, (first >> 32) as u32);
            (dwords[8], dwords[9]) = (second as u32, (second >> 32) as u32);
            (dwords[10], dwords[11]) = if sane { (block % 2100, 0) } else { (block, count % 8) };
            dwords[12] = if sane { (count % 64) | (flags & 1 << 30) } else { count };
            Box::new(dwords)
        },
    );
    let act = prop_oneof![
        8 => (0usize..2, put).prop_map(|(queue, dwords)| Act::Put(queue, dwords)),
        4 => (0usize..2, proptest::option::weighted(0.1, 0u32..70)).prop_map(|(queue, value)| Act::Ring(queue, value)),
        3 => (0usize..2, 0u32..12).prop_map(|(queue, count)| Act::Take(queue, count)),
        1 => (0u8..5).prop_map(Act::Fault),
        1 => Just(Act::Release),
        1 => Just(Act::Detach),
    ];
    proptest::collection::vec(act, 0..120)
}

skep_fuzzing::targets! {
    /// Whatever commands are in the queues and whatever the disk does: the controller comes to rest, and works when it is reset.
    "nvme-io": fn fuzz_io_queues(acts in acts()) {
        let (mut guest, first) = Guest::ready();
        let second = guest.create(2, 8);
        let mut pairs = [first, second];
        for act in acts {
            match act {
                Act::Put(queue, dwords) => {
                    guest.put(&mut pairs[queue], &Command::of(*dwords));
                }
                Act::Ring(queue, value) => {
                    let mut pair = pairs[queue].clone();
                    pair.tail = value.unwrap_or(pair.tail);
                    guest.ring(&pair);
                }
                Act::Take(queue, count) => {
                    let mut pair = pairs[queue].clone();
                    for _ in 0..count {
                        guest.look(&mut pair);
                    }
                    guest.ring_head(&pair);
                    pairs[queue] = pair;
                }
                Act::Fault(kind) => guest.faults.set_rule(move |_| match kind {
                    0 => Some(Fault::Fail(IoError::Host(5))),
                    1 => Some(Fault::Hang),
                    2 => Some(Fault::Partial { blocks: 1, error: IoError::Host(5) }),
                    3 => Some(Fault::Delay(2)),
                    _ => None,
                }),
                Act::Release => guest.faults.release(),
                Act::Detach => {
                    guest.controller.detach(2);
                    guest.controller.attach(2, &namespace(guest.disk.clone())).unwrap();
                }
            }
        }
        guest.faults.clear_rule();
        guest.faults.release();
        let saved = guest.pause();
        skep_state::State::check(&saved).unwrap();
        guest.controller.resume();
        guest.controller.reset();
        guest.enable();
        let mut pair = guest.create(1, 64);
        prop_assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A guest that is saved and restored between any of its commands sees the same as one that is not, and so does its disk.
    #[test]
    fn saved_and_restored_behaves_the_same(
        commands in proptest::collection::vec((0u8..4, 0u64..2040, 1u32..9, any::<u8>()), 1..40),
        saves in proptest::collection::vec(any::<prop::sample::Index>(), 1..3),
    ) {
        let live = |saves: &[usize]| {
            let (mut guest, mut pair) = Guest::ready();
            let mut seen = Vec::new();
            for (index, (kind, first, blocks, byte)) in commands.iter().enumerate() {
                if saves.contains(&index) {
                    guest = guest.successor(config());
                }
                let opcode = [io::WRITE, io::READ, io::COMPARE, io::VERIFY][usize::from(*kind)];
                if opcode != io::READ {
                    guest.poke(DATA, &vec![*byte; *blocks as usize * 512]);
                }
                seen.push(guest.run(&mut pair, &transfer(opcode, *first, *blocks, DATA)));
                seen.push(guest.admin(&command(admin::GET_FEATURES, 0, DATA, [6, 0, 0, 0, 0, 0])));
            }
            let health = guest.log(2, 32, 64).unwrap();
            (seen, guest.disk.content(), health, guest.peek(DATA, 4096))
        };
        let saves: Vec<usize> = saves.iter().map(|save| save.index(commands.len())).collect();
        prop_assert!(live(&[]) == live(&saves));
    }

    /// Queues that share a completion queue, whatever their sizes: each command ends once.
    #[test]
    fn every_command_ends_once(sizes in proptest::collection::vec(2u32..20, 1..4), completion in 2u32..12, count in 1usize..60) {
        let mut guest = Guest::new();
        guest.enable();
        prop_assert_eq!(guest.create_completion(1, completion), Status::SUCCESS);
        let mut queues = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let id = index as u16 + 1;
            prop_assert_eq!(guest.create_submission(id, *size, 1), Status::SUCCESS);
            queues.push((Pair::new(id, *size), 0u32, std::collections::BTreeSet::new()));
        }
        let mut done = Pair::new(1, completion);
        let mut left = count;
        while left > 0 || queues.iter().any(|(_, taken, _)| *taken > 0) {
            for (pair, taken, ids) in &mut queues {
                if left > 0 && *taken + 1 < pair.entries {
                    let id = guest.submit(pair, &transfer(io::READ, left as u64, 1, DATA));
                    prop_assert!(ids.insert(id));
                    *taken += 1;
                    left -= 1;
                }
            }
            let end = guest.wait(&mut done);
            let (_, taken, ids) = &mut queues[usize::from(end.sq) - 1];
            prop_assert!(ids.remove(&end.command));
            *taken -= 1;
        }
        prop_assert!(guest.look(&mut done).is_none());
    }
}
