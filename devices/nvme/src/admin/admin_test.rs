use proptest::prelude::*;
use skep_block::testing::MemoryDisk;
use skep_state::Persist;

use crate::spec::{Command, Status, admin, io};
use crate::testing::{BAR, DATA, Guest, Pair, RAM, command, config, map, namespace, transfer, wait_for};
use crate::{ControllerConfig, ControllerState};

fn enabled() -> Guest {
    let mut guest = Guest::new();
    guest.enable();
    guest
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn it_identifies_itself_and_its_namespaces() {
    let mut guest = enabled();
    guest.controller.attach(7, &namespace(guest.disk.clone())).unwrap();
    let page = guest.identify(1, 0).unwrap();
    assert_eq!(&page[4..24], b"test                ");
    assert_eq!(&page[24..33], b"skep NVMe");
    assert_eq!((page[77], page[111], page[512], page[513], page[525]), (8, 1, 0x66, 0x44, 5));
    assert_eq!((page[263], page[2048 + 4 * 32 + 3]), (4, 2), "five power states, and no I/O in the last");
    let page = guest.identify(0, 1).unwrap();
    assert_eq!((u64_at(&page, 0), page[130]), (2048, 9));
    assert_eq!(guest.identify(0, 2).unwrap(), [0; 4096], "not attached");
    for bad in [0, 257, u32::MAX - 1, u32::MAX] {
        assert_eq!(guest.identify(0, bad), Err(Status::INVALID_NAMESPACE), "{bad:#x}");
    }
    let ids = |page: Vec<u8>| [page[0], page[4], page[8]];
    assert_eq!(ids(guest.identify(2, 0).unwrap()), [1, 7, 0]);
    assert_eq!(ids(guest.identify(2, 1).unwrap()), [7, 0, 0]);
    assert_eq!(ids(guest.identify(7, 7).unwrap()), [0; 3]);
    assert_eq!(guest.identify(2, u32::MAX), Err(Status::INVALID_NAMESPACE));
    let page = guest.identify(3, 1).unwrap();
    assert_eq!((page[0], page[1], &page[4..20], page[20], page[21], page[24]), (3, 16, &[7; 16][..], 4, 1, 0));
    assert_eq!(guest.identify(3, 2), Err(Status::INVALID_NAMESPACE));
    assert_eq!(guest.identify(8, 1).unwrap()[14], 1, "ready");
    assert!(guest.identify(5, 1).is_ok() && guest.identify(6, 0).is_ok());
    assert_eq!(guest.identify(0x13, 0), Err(Status::INVALID_FIELD));
    let out_of_reach = command(admin::IDENTIFY, 0, BAR, [1, 0, 0, 0, 0, 0]);
    assert_eq!(guest.admin(&out_of_reach).status, Status::DATA_TRANSFER_ERROR);
}

#[test]
fn there_are_as_many_namespaces_as_are_promised() {
    let mut guest = enabled();
    let one = namespace(guest.disk.clone());
    // One that goes and comes leaves no more behind than its number.
    for id in (2..=256).chain([256]) {
        guest.controller.detach(id);
        guest.controller.attach(id, &one).unwrap();
    }
    for id in [0, 1, 256, 257] {
        assert!(guest.controller.attach(id, &one).is_err(), "{id}");
    }
    let numbers = |page: Vec<u8>| page.as_chunks().0.iter().map(|id| u32::from_le_bytes(*id)).collect::<Vec<_>>();
    let list = numbers(guest.identify(2, 0).unwrap());
    assert_eq!((list[..256].to_vec(), list[256..].to_vec()), ((1..=256).collect(), vec![0; 768]));
    assert_eq!(numbers(guest.identify(2, 255).unwrap())[..2], [256, 0]);
    assert_eq!(u64_at(&guest.identify(0, 256).unwrap(), 0), 2048);
    let changed = numbers(guest.log(4, 0, 4096).unwrap());
    assert_eq!((changed[..255].to_vec(), changed[255]), ((2..=256).collect(), 0));
    let mut pair = guest.create(1, 64);
    let mut read = transfer(io::READ, 2047, 1, DATA).to_bytes();
    read[4..8].copy_from_slice(&256u32.to_le_bytes());
    assert_eq!(guest.io(&mut pair, &Command::from_bytes(&read)), Status::SUCCESS);
}

/// CVE-2023-4135: log pages at offsets beyond their end.
#[test]
fn every_log_at_every_offset() {
    let mut guest = enabled();
    let logs = [(0u8, 1024usize), (1, 4096), (2, 512), (3, 512), (4, 4096), (5, 4096), (0x12, 1024)];
    for (id, size) in logs {
        let whole = guest.log(id, 0, size).unwrap();
        for offset in (0..=size).step_by(if size > 1024 { 252 } else { 28 }) {
            let part = guest.log(id, offset as u64, 512).unwrap();
            let there = &whole[offset..size.min(offset + 512)];
            if id != 2 {
                assert_eq!(&part[..there.len()], there, "log {id:#x} at {offset:#x}");
            }
            assert!(part[there.len()..].iter().all(|byte| *byte == 0));
        }
        for offset in [size as u64 + 4, 1 << 31, 1 << 32, !3, 2] {
            assert_eq!(guest.log(id, offset, 512), Err(Status::INVALID_FIELD), "log {id:#x} at {offset:#x}");
        }
    }
    assert_eq!(guest.log(6, 0, 512), Err(Status::INVALID_LOG));
    let long = command(admin::GET_LOG_PAGE, 0, DATA, [1 | 0xffff << 16, 0xffff, 0, 0, 0, 0]);
    assert_eq!(guest.admin(&long).status, Status::INVALID_FIELD, "16 GiB");
}

#[test]
fn queues_are_created_as_the_specification_has_it() {
    let mut guest = enabled();
    let base = Pair::new(1, 64).completion();
    let completion = |d10: u32, d11: u32, base| command(admin::CREATE_CQ, 0, base, [d10, d11, 0, 0, 0, 0]);
    let submission = |d10: u32, d11: u32, base| command(admin::CREATE_SQ, 0, base, [d10, d11, 0, 0, 0, 0]);
    let bad = [
        (completion(63 << 16, 1, base), Status::INVALID_QUEUE_ID),
        (completion(5 | 63 << 16, 1, base), Status::INVALID_QUEUE_ID),
        (completion(1, 1, base), Status::INVALID_QUEUE_SIZE),
        (completion(1 | 0xffff << 16, 1, base), Status::INVALID_QUEUE_SIZE),
        (completion(1 | 63 << 16, 0, base), Status::INVALID_FIELD),
        (completion(1 | 63 << 16, 1, base + 8), Status::PRP_OFFSET_INVALID),
        (completion(1 | 63 << 16, 3 | 5 << 16, base), Status::INVALID_VECTOR),
        (submission(1 | 63 << 16, 1 | 1 << 16, base), Status::COMPLETION_QUEUE_INVALID),
        (submission(1 | 63 << 16, 1, base), Status::INVALID_QUEUE_ID),
        (submission(1 | 63 << 16, 1 | 9 << 16, base), Status::INVALID_QUEUE_ID),
        (submission(63 << 16, 1 | 1 << 16, base), Status::INVALID_QUEUE_ID),
    ];
    for (command, status) in bad {
        assert_eq!(guest.admin(&command).status, status, "{command:?}");
    }
    assert_eq!(guest.create_completion(1, 65535), Status::SUCCESS);
    assert_eq!(guest.create_completion(1, 64), Status::INVALID_QUEUE_ID, "there is one");
    assert_eq!(guest.create_submission(1, 1 << 16, 1), Status::INVALID_QUEUE_SIZE);
    assert_eq!(guest.create_submission(1, 64, 1), Status::SUCCESS);
    assert_eq!(guest.create_submission(1, 64, 1), Status::INVALID_QUEUE_ID, "there is one");
    assert_eq!(guest.set_feature(7, 0), Err(Status::COMMAND_SEQUENCE), "there are queues");
    guest.disable();
    // Entries of other sizes than there are.
    guest.admin = Pair::new(0, 32);
    guest.poke(guest.admin.completion(), &[0; 512]);
    guest.write32(0x14, 1);
    wait_for("ready", || guest.status() & 1 == 1);
    assert_eq!(guest.create_completion(1, 64), Status::INVALID_QUEUE_SIZE);
}

#[test]
fn sixty_four_pairs_of_queues_work() {
    let config = ControllerConfig { queues: 64, ..config() };
    let mut guest = Guest::with(config, map(), MemoryDisk::new(1 << 20, 512));
    guest.enable();
    assert_eq!(guest.set_feature(7, 0xfffe_fffe), Ok(63 | 63 << 16));
    let mut pairs: Vec<_> = (1..=64).map(|id| guest.create(id, 64)).collect();
    assert_eq!(guest.create_completion(65, 64), Status::INVALID_QUEUE_ID);
    // Between a queue and its completions.
    let data = Pair::new(1, 64).submission() + 0x8000;
    for (block, pair) in (0..).zip(&mut pairs) {
        guest.poke(data, &[block as u8 + 1; 512]);
        assert_eq!(guest.io(pair, &transfer(io::WRITE, block, 1, data)), Status::SUCCESS);
    }
    let content = guest.disk.content();
    assert!(content.chunks(512).take(64).zip(1..).all(|(block, byte)| *block == [byte; 512]));
}

#[test]
fn features_are_kept_and_checked() {
    let mut guest = enabled();
    assert_eq!((guest.get_feature(7, 0), guest.set_feature(7, 0x0007_0007)), (Ok(0x3_0003), Ok(0x3_0003)));
    assert_eq!(guest.set_feature(7, 0xffff), Err(Status::INVALID_FIELD));
    for (id, value) in [(1, 0x0103_0203), (5, 7), (6, 0), (8, 0x0a0b), (0xa, 1), (0xb, 0x100), (0xf, 5000)] {
        assert_eq!((guest.set_feature(id, value), guest.get_feature(id, 0)), (Ok(0), Ok(value)), "{id:#x}");
    }
    assert_eq!((guest.get_feature(6 | 1 << 8, 0), guest.get_feature(6 | 3 << 8, 0)), (Ok(1), Ok(4)));
    assert_eq!(guest.set_feature(6 | 1 << 31, 0), Err(Status::NOT_SAVEABLE));
    assert_eq!(
        (guest.get_feature(0x55, 0), guest.set_feature(0, 0)),
        (Err(Status::INVALID_FIELD), Err(Status::INVALID_FIELD))
    );
    let of_one = command(admin::SET_FEATURES, 1, 0, [6, 0, 0, 0, 0, 0]);
    assert_eq!(guest.admin(&of_one).status, Status::NOT_NAMESPACE_SPECIFIC);
    assert_eq!((guest.set_feature(9, 2 | 1 << 16), guest.get_feature(9, 2)), (Ok(0), Ok(2 | 1 << 16)));
    assert_eq!((guest.get_feature(9, 1), guest.set_feature(9, 9)), (Ok(1), Err(Status::INVALID_FIELD)));
    assert_eq!((guest.set_feature(4, 400), guest.set_feature(4, 1 << 20 | 200)), (Ok(0), Ok(0)));
    assert_eq!((guest.get_feature(4, 0), guest.get_feature(4, 1 << 20)), (Ok(400), Ok(200)));
    assert_eq!(guest.set_feature(4, 3 << 16), Err(Status::INVALID_FIELD));
    guest.poke(DATA, &1_000_000u64.to_le_bytes());
    assert_eq!(guest.set_feature(0xe, 0), Ok(0));
    guest.clock.advance(5_000_000_000);
    assert_eq!(guest.get_feature(0xe, 0), Ok(0));
    assert_eq!(u64_at(&guest.peek(DATA, 8), 0), 1_005_000 | 1 << 49, "time has passed since it was set");
}

#[test]
fn a_guest_that_is_not_alive_is_told_by_the_fatal_status() {
    let mut guest = enabled();
    assert_eq!(guest.set_feature(0xf, 1000), Ok(0));
    guest.clock.advance(900_000_000);
    assert_eq!(guest.admin(&command(admin::KEEP_ALIVE, 0, 0, [0; 6])).status, Status::SUCCESS);
    guest.clock.advance(999_000_000);
    assert_eq!(guest.status(), 1);
    guest.clock.advance(1_000_000);
    wait_for("the fatal status", || guest.status() == 3);
    guest.disable();
    guest.enable();
}

#[test]
fn a_restored_controller_waits_no_longer_for_its_guest() {
    let mut guest = enabled();
    assert_eq!(guest.set_feature(0xf, 1000), Ok(0));
    guest.clock.advance(900_000_000);
    let heir = guest.successor(config());
    heir.clock.advance(99_999_999);
    heir.controller.pass_round();
    assert_eq!(heir.status(), 1);
    heir.clock.advance(1);
    wait_for("the fatal status", || heir.status() == 3);
    let state = guest.pause();
    assert_eq!(state.alive, Some(100_000_000));
    // A state of before it was saved: the time begins anew.
    let other = Guest::with(config(), guest.map.clone(), guest.disk.clone());
    other.controller.restore(&ControllerState { alive: None, ..state }).unwrap();
    other.controller.resume();
    assert_eq!(other.pause().alive, Some(1_000_000_000));
}

#[test]
fn events_wait_for_requests_and_requests_for_events() {
    let mut guest = enabled();
    assert_eq!(guest.set_feature(0xb, 2), Ok(0));
    let request = command(admin::ASYNC_EVENT, 0, 0, [0; 6]);
    // Beyond the threshold, before anybody asks.
    assert_eq!(guest.set_feature(4, 300), Ok(0));
    assert_eq!(guest.admin(&request).result, 0x02_01_01);
    assert_eq!(guest.log(2, 0, 512).unwrap()[0], 2);
    let mut admin = guest.admin.clone();
    for _ in 0..4 {
        guest.submit(&mut admin, &request);
    }
    let limit = guest.submit(&mut admin, &request);
    let done = guest.wait(&mut admin);
    assert_eq!((done.command, done.status), (limit, Status::EVENT_LIMIT));
    guest.admin = admin;
    // All four wait, and take nobody's room.
    let state = guest.pause();
    assert_eq!(state.event_requests.len(), 4);
    let mut guest = guest.successor(crate::testing::config());
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &command(admin::SET_FEATURES, 0, 0, [4, 200, 0, 0, 0, 0]));
    let done = [guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!((done[0].status, done[1].result), (Status::SUCCESS, 0x02_01_01));
    // No more of its kind, until the log is read.
    guest.submit(&mut admin, &command(admin::SET_FEATURES, 0, 0, [4, 100, 0, 0, 0, 0]));
    assert_eq!(guest.wait(&mut admin).result, 0);
    guest.pause();
    assert!(guest.look(&mut admin).is_none());
    guest.controller.resume();
    guest.admin = admin;
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &command(admin::GET_LOG_PAGE, 0, DATA, [2 | 127 << 16, 0, 0, 0, 0, 0]));
    let done = [guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!(done[1].result, 0x02_01_01);
}

#[test]
fn what_has_happened_when_it_stops_is_told_by_its_heir() {
    let mut guest = enabled();
    assert_eq!(guest.set_feature(0xb, 0x100), Ok(0));
    guest.pause();
    // The admin worker has no round in which to take them.
    guest.write32(0x1008, 1);
    guest.disk.resize(2 << 20);
    let mut guest = guest.successor(crate::testing::config());
    let request = command(admin::ASYNC_EVENT, 0, 0, [0; 6]);
    let mut told = [guest.admin(&request).result, guest.admin(&request).result];
    told.sort_unstable();
    assert_eq!(told, [0x01_00_00, 0x04_00_02]);
    assert_eq!(guest.log(4, 0, 4).unwrap(), [1, 0, 0, 0]);
}

#[test]
fn a_controller_whose_admin_queue_has_left_ram_is_saved() {
    let guest = enabled();
    guest.disable();
    // Of its 32 entries, the last eight are where there is nothing.
    let mut admin = Pair::new(0, 32);
    guest.set_admin_queues();
    guest.write64(0x28, RAM - 0x1000);
    guest.write32(0x24, 31 << 16 | 71);
    guest.poke(admin.completion(), &[0; 512]);
    guest.write32(0x14, 0x0046_0001);
    wait_for("ready", || guest.status() & 1 == 1);
    let request = command(admin::ASYNC_EVENT, 0, 0, [0; 6]).to_bytes();
    guest.poke(RAM - 0x1000, &request);
    let rest: Vec<u8> = command(admin::KEEP_ALIVE, 0, 0, [0; 6]).to_bytes().repeat(63);
    guest.poke(RAM - 0x1000 + 64, &rest);
    for (tail, ends) in [(32, 31), (64, 32), (66, 0)] {
        guest.write32(0x1000, tail);
        for _ in 0..ends {
            assert_eq!(guest.wait(&mut admin).status, Status::SUCCESS);
        }
    }
    wait_for("the fatal status", || guest.status() & 2 == 2);
    skep_state::State::check(&guest.pause()).unwrap();
    let mut guest = guest.successor(crate::testing::config());
    assert_eq!(guest.status(), 3);
    guest.disable();
    guest.enable();
    assert!(guest.identify(1, 0).is_ok());
}

#[test]
fn a_format_deallocates_and_refuses_what_it_can_not_do() {
    let mut guest = enabled();
    let mut pair = guest.create(1, 64);
    assert_eq!(guest.write_blocks(&mut pair, 0, 8, 5), Status::SUCCESS);
    let format = |namespace, settings| command(admin::FORMAT, namespace, 0, [settings, 0, 0, 0, 0, 0]);
    let bad = [
        (format(1, 1), Status::INVALID_FORMAT),
        (format(1, 1 << 4), Status::INVALID_FORMAT),
        (format(1, 1 << 5), Status::INVALID_FORMAT),
        (format(1, 1 << 12), Status::INVALID_FORMAT),
        (format(1, 2 << 9), Status::INVALID_FIELD),
        (format(2, 0), Status::INVALID_NAMESPACE),
        (format(u32::MAX, 0), Status::INVALID_NAMESPACE),
    ];
    for (command, status) in bad {
        assert_eq!(guest.admin(&command).status, status);
    }
    guest.faults.set_rule(|_| Some(skep_block::testing::Fault::Hang));
    let mut admin = guest.admin.clone();
    let first = guest.submit(&mut admin, &format(1, 1 << 9));
    guest.faults.wait_hanging(1);
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 1, DATA)), Status::FORMAT_IN_PROGRESS);
    guest.submit(&mut admin, &format(1, 0));
    assert_eq!(guest.wait(&mut admin).status, Status::FORMAT_IN_PROGRESS);
    // A disk that lets it be asked to end: the format and the abort both do.
    guest.submit(&mut admin, &command(admin::ABORT, 0, 0, [u32::from(first) << 16, 0, 0, 0, 0, 0]));
    let done = [guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!(done.map(|one| (one.status, one.result)), [(Status::ABORT_REQUESTED, 0), (Status::SUCCESS, 0)]);
    assert_eq!(done[0].command, first);
    // One that does not: the abort waits for the format, and says that it came too late.
    guest.faults.set_rule(|_| Some(skep_block::testing::Fault::HangForGood));
    let format_id = guest.submit(&mut admin, &format(1, 1 << 9));
    guest.faults.wait_hanging(1);
    guest.submit(&mut admin, &command(admin::ABORT, 0, 0, [u32::from(format_id) << 16, 0, 0, 0, 0, 0]));
    guest.faults.clear_rule();
    guest.faults.release();
    let done = [guest.wait(&mut admin), guest.wait(&mut admin)];
    assert_eq!(done.map(|one| (one.status, one.result)), [(Status::SUCCESS, 0), (Status::SUCCESS, 1)]);
    assert!(guest.disk.durable().iter().all(|byte| *byte == 0));
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 0, 1, DATA)), Status::SUCCESS);
}

#[test]
fn what_there_is_not_is_no_opcode() {
    let mut guest = enabled();
    // Namespace management and attachment, firmware, self-test, directives, virtualization, sanitize, security.
    for opcode in [0x0d, 0x15, 0x10, 0x11, 0x14, 0x19, 0x1c, 0x84, 0x81, 0x82, 0xff] {
        assert_eq!(guest.admin(&command(opcode, 0, DATA, [0; 6])).status, Status::INVALID_OPCODE, "{opcode:#x}");
    }
    let mut bytes = command(admin::IDENTIFY, 0, DATA, [1, 0, 0, 0, 0, 0]).to_bytes();
    bytes[1] = 0x40;
    assert_eq!(guest.admin(&Command::from_bytes(&bytes)).status, Status::INVALID_FIELD, "no SGLs here");
    let effects = guest.log(5, 0, 4096).unwrap();
    assert_eq!((effects[0x80 * 4], effects[0x0d * 4], effects[1024 + 4], effects[1024 + 16]), (3, 0, 3, 0));
}

skep_fuzzing::targets! {
    /// CVE-2024-41721, CVE-2024-32668: an index or a size in a device's command was believed. Whatever admin commands come: each has an answer or waits, and the controller works when it is reset.
    "nvme-admin": fn fuzz_admin_commands(commands in proptest::collection::vec((0u8..26, any::<[u32; 8]>(), 0u64..0x500), 0..80)) {
        let mut guest = enabled();
        let mut admin = guest.admin.clone();
        for (kind, words, page) in commands {
            let opcodes = [
                admin::DELETE_SQ, admin::CREATE_SQ, admin::GET_LOG_PAGE, admin::DELETE_CQ, admin::CREATE_CQ,
                admin::IDENTIFY, admin::ABORT, admin::SET_FEATURES, admin::GET_FEATURES, admin::ASYNC_EVENT,
                admin::KEEP_ALIVE, admin::DOORBELL_BUFFER, admin::FORMAT,
            ];
            let opcode = opcodes.get(usize::from(kind) % opcodes.len()).copied().unwrap_or(words[7] as u8);
            // Small numbers, as queues and features have them, as often as any.
            let small = |word: u32| if word.is_multiple_of(3) { word } else { word >> 8 & 0x000f_0007 };
            let dwords = [small(words[0]), small(words[1]) | 1, small(words[2]), small(words[3]), words[4], words[5]];
            let at = 0x80_0000 + page * 4096;
            let at = if words[6] % 9 == 0 { u64::from(words[6]) << 8 } else { at };
            guest.submit(&mut admin, &command(opcode, words[6] % 3, at, dwords));
            while guest.look(&mut admin).is_some() {}
            guest.ring_head(&admin);
        }
        guest.controller.reset();
        guest.enable();
        let mut pair = guest.create(1, 64);
        prop_assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    }
}
