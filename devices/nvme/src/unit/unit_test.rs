use std::sync::atomic::Ordering;

use skep_block::testing::{Counts, Fault, MemoryDisk};
use skep_state::{Persist, State};

use crate::spec::{Command, Status, admin, io};
use crate::testing::{self, DATA, Guest, Pair, command, config, namespace, transfer, wait_for};
use crate::{ControllerConfig, NamespaceConfig};

const FUA: u32 = 1 << 30;

fn fua(opcode: u8, first: u64, blocks: u32) -> Command {
    command(opcode, 1, DATA, [first as u32, 0, (blocks - 1) | FUA, 0, 0, 0])
}

#[test]
fn reads_give_what_was_written() {
    let (guest, mut pair) = Guest::ready();
    let data: Vec<u8> = (0..8192u32).map(|n| ((n * 7) >> 3) as u8).collect();
    guest.poke(DATA, &data);
    assert_eq!(guest.io(&mut pair, &transfer(io::WRITE, 5, 16, DATA)), Status::SUCCESS);
    guest.poke(DATA, &[0; 8192]);
    assert_eq!(guest.io(&mut pair, &transfer(io::READ, 5, 16, DATA)), Status::SUCCESS);
    assert_eq!(guest.peek(DATA, 8192), data);
    assert_eq!(guest.disk.content()[2560..2560 + 8192], data);
}

#[test]
fn a_queue_wraps_around_and_around() {
    let (mut guest, _) = Guest::ready();
    let mut pair = guest.create(2, 3);
    for round in 0..20u64 {
        assert_eq!(guest.write_blocks(&mut pair, round, 1, round as u8), Status::SUCCESS);
    }
    let done = guest.run(&mut pair, &transfer(io::READ, 0, 1, DATA));
    assert_eq!(u32::from(done.sq_head), pair.tail, "the head tells what was taken");
}

#[test]
fn nothing_is_taken_without_room_for_its_completion() {
    let (mut guest, _) = Guest::ready();
    assert_eq!(guest.create_completion(2, 4), Status::SUCCESS);
    assert_eq!(guest.create_submission(2, 64, 2), Status::SUCCESS);
    let (mut submission, mut completion) = (Pair::new(2, 64), Pair::new(2, 4));
    for block in 0..10 {
        guest.put(&mut submission, &transfer(io::READ, block, 1, DATA));
    }
    let before = guest.disk.counts().reads;
    guest.ring(&submission);
    for expected in [3, 6, 9, 10] {
        wait_for("reads", || guest.disk.counts().reads - before == expected);
        // A pause tells that it has come to rest: nothing more was taken.
        guest.pause();
        guest.controller.resume();
        assert_eq!(guest.disk.counts().reads - before, expected);
        while guest.look(&mut completion).is_some() {}
        guest.ring_head(&completion);
    }
}

#[test]
fn flushes_and_force_unit_access_reach_the_medium() {
    let (mut guest, mut pair) = Guest::ready();
    guest.poke(DATA, &[1; 512]);
    assert_eq!(guest.io(&mut pair, &transfer(io::WRITE, 0, 1, DATA)), Status::SUCCESS);
    assert_eq!(guest.io(&mut pair, &fua(io::WRITE, 1, 1)), Status::SUCCESS);
    assert_eq!((guest.disk.durable()[0], guest.disk.durable()[512]), (0, 1));
    assert_eq!(guest.io(&mut pair, &command(io::FLUSH, 1, 0, [0; 6])), Status::SUCCESS);
    assert_eq!(guest.disk.durable()[0], 1);
    // A read that must come from the medium finds there what it reads.
    assert_eq!(guest.write_blocks(&mut pair, 2, 1, 9), Status::SUCCESS);
    assert_eq!(guest.io(&mut pair, &fua(io::READ, 2, 1)), Status::SUCCESS);
    assert_eq!((guest.disk.durable()[1024], guest.peek(DATA, 1)[0]), (9, 9));
    // Without the write cache every write is forced.
    assert_eq!(guest.set_feature(6, 0), Ok(0));
    assert_eq!(guest.write_blocks(&mut pair, 3, 1, 7), Status::SUCCESS);
    assert_eq!(guest.disk.durable()[1536], 7);
    let counts = Counts { reads: 1, writes: 4, fua: 2, flushes: 2, ..guest.disk.counts() };
    assert_eq!(guest.disk.counts(), counts);
}

#[test]
fn zeroes_discards_compare_and_verify() {
    let (guest, mut pair) = Guest::ready();
    for first in [0, 16, 32, 48] {
        assert_eq!(guest.write_blocks(&mut pair, first, 16, 6), Status::SUCCESS);
    }
    let zeroes = |deallocate: u32| command(io::WRITE_ZEROES, 1, 0, [8, 0, 7 | deallocate << 25, 0, 0, 0]);
    assert_eq!(guest.io(&mut pair, &zeroes(0)), Status::SUCCESS);
    assert_eq!(guest.io(&mut pair, &zeroes(1)), Status::SUCCESS);
    assert_eq!(guest.disk.content()[4096..8192], [0; 4096]);
    let range = |first: u64, blocks: u32| {
        let mut bytes = [0; 16];
        bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[8..].copy_from_slice(&first.to_le_bytes());
        bytes
    };
    guest.poke(DATA, &[range(16, 2), range(20, 0), range(40, 3)].concat());
    let manage = |attributes| command(io::DATASET_MANAGEMENT, 1, DATA, [2, attributes, 0, 0, 0, 0]);
    assert_eq!((guest.io(&mut pair, &manage(1)), guest.disk.counts().discards), (Status::SUCCESS, 0), "a hint");
    assert_eq!((guest.io(&mut pair, &manage(4)), guest.disk.counts().discards), (Status::SUCCESS, 2));
    let content = guest.disk.content();
    assert_eq!((content[16 * 512], content[18 * 512], content[42 * 512], content[43 * 512]), (0, 6, 0, 6));
    guest.poke(DATA, &range(2047, 2));
    let one = command(io::DATASET_MANAGEMENT, 1, DATA, [0, 4, 0, 0, 0, 0]);
    assert_eq!(guest.io(&mut pair, &one), Status::LBA_OUT_OF_RANGE);
    guest.poke(DATA, &[6; 512]);
    assert_eq!(guest.io(&mut pair, &transfer(io::COMPARE, 43, 1, DATA)), Status::SUCCESS);
    assert_eq!(guest.io(&mut pair, &transfer(io::COMPARE, 42, 1, DATA)), Status::COMPARE_FAILURE);
    // More than is read at once.
    assert_eq!(guest.io(&mut pair, &transfer(io::VERIFY, 0, 2048, 0)), Status::SUCCESS);
    assert_eq!(guest.io(&mut pair, &transfer(io::VERIFY, 1, 2048, 0)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(guest.io(&mut pair, &transfer(io::VERIFY, 1, 65536, 0)), Status::LBA_OUT_OF_RANGE);
}

#[test]
fn what_is_wrong_says_what() {
    let (guest, mut pair) = Guest::ready();
    let with = |change: &dyn Fn(&mut [u8; 64])| {
        let mut bytes = transfer(io::READ, 0, 1, DATA).to_bytes();
        change(&mut bytes);
        Command::from_bytes(&bytes)
    };
    let wrong = [
        (with(&|bytes| bytes[0] = 0x55), Status::INVALID_OPCODE),
        // Write Uncorrectable.
        (with(&|bytes| bytes[0] = 0x04), Status::INVALID_OPCODE),
        (with(&|bytes| bytes[1] = 1), Status::INVALID_FIELD),
        (with(&|bytes| bytes[1] = 0xc0), Status::INVALID_FIELD),
        (with(&|bytes| bytes[4] = 0), Status::INVALID_NAMESPACE),
        (with(&|bytes| bytes[4] = 2), Status::INVALID_NAMESPACE),
        (with(&|bytes| bytes[4..8].fill(0xff)), Status::INVALID_NAMESPACE),
        (transfer(io::READ, 2048, 1, DATA), Status::LBA_OUT_OF_RANGE),
        (transfer(io::READ, u64::MAX, 1, DATA), Status::LBA_OUT_OF_RANGE),
        (transfer(io::READ, u64::MAX - 1, 3, DATA), Status::LBA_OUT_OF_RANGE),
        (transfer(io::READ, 0, 2049, DATA), Status::INVALID_FIELD),
        (transfer(io::READ, 0, 1, DATA + 2), Status::PRP_OFFSET_INVALID),
        (command(io::WRITE, 1, DATA, [0, 0, 1 << 20, 0, 0, 0]), Status::INVALID_FIELD),
    ];
    for (command, status) in wrong {
        assert_eq!(guest.io(&mut pair, &command), status, "{command:?}");
    }
    assert_eq!(guest.disk.counts(), Counts::default());
}

#[test]
fn read_only_and_4096() {
    let mut guest = Guest::new();
    let disk = MemoryDisk::new(1 << 20, 512);
    let config = NamespaceConfig { block_size: 4096, ..namespace(disk.clone()) };
    guest.controller.attach(2, &config).unwrap();
    guest.controller.attach(3, &NamespaceConfig { read_only: true, ..config }).unwrap();
    guest.enable();
    let mut pair = guest.create(1, 64);
    guest.poke(DATA, &[4; 8192]);
    let of = |opcode, namespace, first| command(opcode, namespace, DATA, [first, 0, 1, 0, 0, 0]);
    assert_eq!(guest.io(&mut pair, &of(io::WRITE, 2, 254)), Status::SUCCESS);
    assert_eq!(disk.content()[254 * 4096..], [4; 8192]);
    assert_eq!(guest.io(&mut pair, &of(io::WRITE, 2, 255)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(guest.io(&mut pair, &of(io::WRITE, 3, 0)), Status::WRITE_PROTECTED);
    assert_eq!(guest.io(&mut pair, &of(io::READ, 3, 254)), Status::SUCCESS);
    let refused = guest.controller.attach(2, &namespace(disk.clone())).unwrap_err().to_string();
    assert_eq!(refused, "NVMe namespace 2: there is one of that number");
    for id in [0, 257] {
        assert!(guest.controller.attach(id, &namespace(disk.clone())).is_err());
    }
    let large = MemoryDisk::new(1 << 20, 4096);
    let refused = guest.controller.attach(9, &namespace(large)).unwrap_err().to_string();
    assert!(refused.contains("set the block size to 4096"), "{refused}");
}

#[test]
fn shadow_doorbells_need_no_register() {
    const SHADOW: u64 = 0x8_0000;
    let (mut guest, mut pair) = Guest::ready();
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    assert!(guest.controller.doorbells().is_empty(), "a doorbell's value would be lost");
    let before = guest.bus.doorbell_changes.load(Ordering::SeqCst);
    let buffer = command(admin::DOORBELL_BUFFER, 0, SHADOW, [0; 6]);
    assert_eq!(guest.admin(&buffer).status, Status::SUCCESS);
    assert!(guest.bus.doorbell_changes.load(Ordering::SeqCst) > before);
    let word = |guest: &Guest, at: u64| u32::from_le_bytes(guest.peek(at, 4).try_into().unwrap());
    assert_eq!((word(&guest, SHADOW + 8), word(&guest, SHADOW + 12)), (pair.tail, pair.head), "as the registers were");
    let doorbells = guest.controller.doorbells();
    let offsets: Vec<u64> = doorbells.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [0x1008, 0x100c]);
    for round in 0..200u64 {
        guest.poke(DATA, &[round as u8; 512]);
        guest.put(&mut pair, &transfer(io::WRITE, round, 1, DATA));
        let old = (pair.tail + pair.entries - 1) % pair.entries;
        guest.poke(SHADOW + 8, &pair.tail.to_le_bytes());
        std::sync::atomic::fence(Ordering::SeqCst);
        let event = word(&guest, SHADOW + 0x1008) as u16;
        // What Linux asks before it writes the register (annex B.5); the write is the eventfd's.
        let (new, old) = (pair.tail as u16, old as u16);
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            doorbells[0].1.write(1).unwrap();
        }
        let mut done = None;
        wait_for("a completion", || {
            done = guest.look(&mut pair);
            done.is_some()
        });
        guest.poke(SHADOW + 12, &pair.head.to_le_bytes());
        assert_eq!(done.unwrap().status, Status::SUCCESS);
    }
    assert_eq!(guest.disk.counts().writes, 201);
    // Others in their place begin with what these tell, and not with what the registers last heard.
    for page in [SHADOW, SHADOW + 0x4000] {
        let buffer = command(admin::DOORBELL_BUFFER, 0, page, [0; 6]);
        assert_eq!(guest.admin(&buffer).status, Status::SUCCESS);
        assert_eq!((word(&guest, page + 8), word(&guest, page + 12)), (pair.tail, pair.head));
    }
    guest.pause();
    guest.controller.resume();
    assert_eq!(guest.disk.counts().writes, 201);
    assert!(guest.look(&mut pair).is_none());
    assert_eq!(guest.admin(&command(admin::DOORBELL_BUFFER, 0, SHADOW, [0; 6])).status, Status::SUCCESS);
    // A shadow that is no index is no news.
    guest.poke(SHADOW + 8, &u32::MAX.to_le_bytes());
    doorbells[0].1.write(1).unwrap();
    guest.pause();
    assert_eq!(guest.disk.counts().writes, 201);
}

#[test]
fn a_guest_goes_on_on_another_controller() {
    let (mut guest, mut pair) = Guest::ready();
    assert_eq!(guest.set_feature(0x0b, 0x100), Ok(0));
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    for block in 1..40 {
        guest.poke(DATA + block * 512, &[block as u8; 512]);
        guest.put(&mut pair, &transfer(io::WRITE, block, 1, DATA + block * 512));
    }
    // Some are in flight when it stops, some are not taken, and none is lost or done twice.
    guest.ring(&pair);
    let mut guest = guest.successor(config());
    for block in 1..40 {
        assert_eq!(guest.wait(&mut pair).status, Status::SUCCESS, "{block}");
    }
    assert_eq!(guest.disk.counts().writes, 40);
    for block in 1..40 {
        assert_eq!(guest.disk.content()[block * 512], block as u8);
    }
    assert_eq!(guest.get_feature(0x0b, 0), Ok(0x100));
    let health = guest.log(2, 0, 512).unwrap();
    assert_eq!(health[80], 40, "the counters go on");
    let mut second = guest.create(2, 8);
    assert_eq!(guest.write_blocks(&mut second, 0, 1, 1), Status::SUCCESS);
}

#[test]
fn a_pause_is_given_up_while_the_disk_holds_what_is_in_flight() {
    let (mut guest, mut pair) = Guest::ready();
    let mut second = guest.create(2, 8);
    for number in 0..3 {
        guest.faults.set_rule(|_| Some(Fault::HangForGood));
        let held = guest.submit(&mut pair, &transfer(io::WRITE, 0, 1, DATA));
        guest.faults.wait_hanging(1);
        guest.faults.clear_rule();
        let pause = guest.begin_pause();
        guest.controller.resume();
        // What there is to do meanwhile is done, by the queue that has not come to rest and by the one that may have.
        assert_eq!(guest.write_blocks(&mut pair, 1, 1, 1), Status::SUCCESS);
        assert_eq!(guest.write_blocks(&mut second, 2, 1, 1), Status::SUCCESS);
        assert!(guest.get_feature(7, 0).is_ok());
        assert!(pause.try_recv().is_err(), "it has not come to rest");
        // What a queue says of the one is not taken for the other.
        let again = guest.begin_pause();
        assert!(again.try_recv().is_err());
        guest.faults.release();
        again.recv().unwrap();
        assert_eq!(guest.wait(&mut pair).command, held);
        assert_eq!(guest.disk.counts().writes, 3 * (number + 1));
        guest.controller.resume();
    }
    assert_eq!(guest.write_blocks(&mut pair, 3, 1, 1), Status::SUCCESS);
}

#[test]
fn queues_of_one_completion_queue_take_turns() {
    let mut guest =
        Guest::with(ControllerConfig { in_flight: 1, ..config() }, testing::map(), MemoryDisk::new(1 << 20, 512));
    guest.enable();
    assert_eq!(guest.set_feature(1, 0), Ok(0), "one command of a queue in a row");
    assert_eq!(guest.create_completion(1, 64), Status::SUCCESS);
    let mut queues = Vec::new();
    for id in 1..=3 {
        assert_eq!(guest.create_submission(id, 64, 1), Status::SUCCESS);
        let mut pair = Pair::new(id, 64);
        for block in 0..4 {
            guest.put(&mut pair, &transfer(io::READ, block, 1, DATA));
        }
        queues.push(pair);
    }
    guest.pause();
    queues.iter().for_each(|pair| guest.ring(pair));
    guest.controller.resume();
    let mut completion = Pair::new(1, 64);
    let order: Vec<u16> = (0..12).map(|_| guest.wait(&mut completion).sq).collect();
    let mut first = order[..3].to_vec();
    first.sort_unstable();
    assert_eq!((first, &order[3..6]), (vec![1, 2, 3], &order[..3]), "{order:?}");
}

/// The table of transitions of which each is from, to and after so many milliseconds.
fn transitions(list: &[(usize, u32, u32)]) -> [u8; 256] {
    let mut table = [0; 256];
    for (from, to, after) in list {
        table[from * 8..from * 8 + 4].copy_from_slice(&(to << 3 | after << 8).to_le_bytes());
    }
    table
}

#[test]
fn a_controller_that_rests_takes_less_power_by_itself() {
    let (mut guest, mut pair) = Guest::ready();
    assert_eq!(guest.identify(1, 0).unwrap()[265], 1);
    let minutes = |guest: &Guest, count: u64| guest.controller.skip(count * 60_000_000_000);
    let table = transitions(&[(0, 3, 60_000), (1, 3, 60_000), (2, 3, 60_000), (3, 4, 600_000)]);
    guest.poke(DATA, &table);
    assert_eq!((guest.set_feature(2, 1), guest.set_feature(0xc, 1)), (Ok(0), Ok(0)));
    guest.poke(DATA, &[0xff; 256]);
    assert_eq!((guest.get_feature(0xc, 0), guest.peek(DATA, 256)), (Ok(1), table.to_vec()));
    assert_eq!(guest.get_feature(2, 0), Ok(1), "it has not rested yet");
    minutes(&guest, 2);
    assert_eq!(guest.get_feature(2, 0), Ok(3));
    minutes(&guest, 8);
    assert_eq!(guest.get_feature(2, 0), Ok(3));
    minutes(&guest, 1);
    assert_eq!(guest.get_feature(2, 0), Ok(4), "a minute, and ten of that state");
    // Admin commands leave it where it is; one for the disk does not.
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    assert_eq!(guest.get_feature(2, 0), Ok(1));
    minutes(&guest, 60);
    guest.faults.set_rule(|_| Some(Fault::Hang));
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    minutes(&guest, 60);
    assert_eq!(guest.get_feature(2, 0), Ok(1), "it does not rest while something is in flight");
    guest.faults.clear_rule();
    guest.faults.release();
    assert_eq!(guest.wait(&mut pair).status, Status::SUCCESS);
    // A completion is seen before the time of it is noted; a pause comes after both.
    guest.pause();
    guest.controller.resume();
    minutes(&guest, 60);
    // The state that it is saved in is that, and its heir rests from then on.
    let state = guest.pause();
    assert_eq!((state.features.power_state, state.features.operational), (4, 1));
    let mut guest = guest.successor(config());
    assert_eq!((guest.get_feature(2, 0), guest.get_feature(0xc, 0)), (Ok(4), Ok(1)));
    // Turned off, it stays where it is put; nothing is remembered of the time before.
    assert_eq!((guest.set_feature(2, 0), guest.set_feature(0xc, 0)), (Ok(0), Ok(0)));
    minutes(&guest, 60);
    assert_eq!(guest.get_feature(2, 0), Ok(0));
}

#[test]
fn a_table_of_transitions_leads_to_states_without_io() {
    let (mut guest, _) = Guest::ready();
    for wrong in [(0, 1, 1), (0, 5, 1), (0, 31, 1), (4, 0, 0xff_ffff)] {
        guest.poke(DATA, &transitions(&[wrong]));
        assert_eq!(guest.set_feature(0xc, 1), Err(Status::INVALID_FIELD), "{wrong:?}");
    }
    assert_eq!((guest.get_feature(0xc, 0), guest.peek(DATA, 256)), (Ok(0), vec![0; 256]));
    // One that goes round and round comes to rest, and what is said of states that there are not is kept.
    let table = transitions(&[(0, 3, 1), (3, 4, 1), (4, 3, 1), (7, 1, 1), (31, 31, 0xff_ffff)]);
    guest.poke(DATA, &table);
    assert_eq!(guest.set_feature(0xc, 1), Ok(0));
    guest.controller.skip(u64::MAX / 4);
    assert!([3, 4].contains(&guest.get_feature(2, 0).unwrap()));
    let state = guest.pause();
    let mut short = state.clone();
    short.features.transitions.truncate(31);
    assert!(state.check().is_ok() && short.check().is_err());
    // Entries that lead nowhere are what a guest could not have set: nothing comes of them.
    let mut hostile = state.clone();
    (hostile.features.power_state, hostile.features.transitions) = (0, vec![!7; 32]);
    guest.controller.restore(&hostile).unwrap();
    guest.controller.resume();
    guest.controller.skip(u64::MAX / 4);
    assert_eq!(guest.get_feature(2, 0), Ok(0));
}

#[test]
fn a_power_state_without_io_is_left_by_a_command() {
    let (mut guest, mut pair) = Guest::ready();
    assert_eq!(guest.set_feature(2, 1), Ok(0));
    assert_eq!(guest.set_feature(2, 4), Ok(0));
    assert_eq!(guest.get_feature(2, 0), Ok(4));
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    assert_eq!(guest.get_feature(2, 0), Ok(1), "the last one in which I/O is done");
    assert_eq!(guest.set_feature(2, 5), Err(Status::INVALID_FIELD));
    let state = guest.pause();
    assert_eq!(state.features.power_state, 1);
    guest.controller.restore(&state).unwrap();
}
