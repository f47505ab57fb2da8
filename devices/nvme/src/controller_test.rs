use std::sync::atomic::Ordering;

use proptest::prelude::*;
use skep_block::testing::Fault;
use skep_state::{Component, State};

use super::*;
use crate::spec::{Status, io};
use crate::testing::{BAR, DATA, Guest, RAM, transfer, wait_for};

#[test]
fn it_says_what_it_is() {
    let guest = Guest::new();
    let cap = u64::from(guest.read32(0)) | u64::from(guest.read32(4)) << 32;
    assert_eq!(cap & 0xffff, 65534, "65535 entries");
    assert_eq!((cap >> 16 & 1, cap >> 32 & 0xf, cap >> 37 & 0xff, cap >> 48 & 0xf), (1, 0, 1, 0));
    assert_eq!((guest.read32(8), guest.read32(0x68)), (0x0002_0000, (cap >> 24 & 0xff) as u32));
    let mut byte = [0];
    guest.controller.read(9, &mut byte);
    assert_eq!(byte, [0]);
    guest.controller.read(10, &mut byte);
    assert_eq!(byte, [2]);
    // Narrow writes do nothing, and what is behind the registers is nothing.
    guest.controller.write(0x14, &[1]);
    guest.controller.write(0x16, &[1, 0, 0, 0]);
    assert_eq!((guest.read32(0x14), guest.read32(0x40), guest.read32(0x1000)), (0, 0, 0));
}

#[test]
fn it_is_enabled_and_disabled_again_and_again() {
    let mut guest = Guest::new();
    for _ in 0..3 {
        guest.enable();
        let mut pair = guest.create(1, 64);
        assert_eq!(guest.write_blocks(&mut pair, 3, 2, 5), Status::SUCCESS);
        guest.disable();
        assert_eq!(guest.status(), 0);
    }
    assert_eq!(guest.disk.content()[3 * 512..5 * 512], [5; 1024]);
    guest.enable();
    let health = guest.log(2, 0, 512).unwrap();
    assert_eq!((health[64], health[80], health[144]), (0, 3, 3), "writes, and resets without a shutdown");
}

/// FreeBSD 256317: admin queues of a size that can't be. FreeBSD 256322: queues at addresses that are nothing.
#[test]
fn what_can_not_be_enabled_is_fatal_until_it_is_disabled() {
    type Change = fn(&Guest);
    let bad: [(&str, Change); 6] = [
        ("a submission queue of one entry", |guest| guest.write32(0x24, 31 << 16)),
        ("a completion queue of one entry", |guest| guest.write32(0x24, 31)),
        ("a command set that there is not", |guest| guest.write32(0x14, 0x0046_0011)),
        ("pages that are too large", |guest| guest.write32(0x14, 0x0046_0281)),
        ("an arbitration that there is not", |guest| guest.write32(0x14, 0x0046_0801)),
        ("a queue at the end of the address space", |guest| guest.write64(0x28, !0xfff)),
    ];
    for (what, change) in bad {
        let mut guest = Guest::new();
        guest.set_admin_queues();
        change(&guest);
        if guest.read32(0x14) & 1 == 0 {
            guest.write32(0x14, 0x0046_0001);
        }
        wait_for(what, || guest.status() & 2 == 2);
        assert_eq!(guest.status() & 1, 0, "{what}");
        guest.write32(0x14, 0);
        wait_for("the fatal status to go", || guest.status() == 0);
        guest.enable();
    }
}

/// FreeBSD 256319, 264177: doorbells before the controller is ready, and of queues that there are not.
#[test]
fn doorbells_of_nothing_do_nothing_but_tell() {
    let mut guest = Guest::new();
    for index in 0..64 {
        guest.write32(0x1000 + index * 4, 7);
    }
    guest.enable();
    let request = crate::testing::command(crate::spec::admin::ASYNC_EVENT, 0, 0, [0; 6]);
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &request);
    guest.write32(0x1000 + 8 * 3, 1);
    let done = guest.wait(&mut admin);
    assert_eq!((done.status, done.result), (Status::SUCCESS, 0x01_00_00), "a queue that there is not");
    guest.admin = admin;
    guest.log(1, 0, 64).unwrap();
    let mut admin = guest.admin.clone();
    guest.submit(&mut admin, &request);
    guest.write32(0x1000, 32);
    assert_eq!(guest.wait(&mut admin).result, 0x01_01_00, "an index that there is not");
}

/// CVE-2021-3929: queues and data in the controller's own registers, or another BAR.
#[test]
fn what_is_not_ram_is_out_of_reach() {
    let (guest, mut pair) = Guest::ready();
    for prp in [BAR, RAM - 512 + 4, 1 << 40, !3] {
        let status = guest.io(&mut pair, &transfer(io::READ, 0, 1, prp));
        assert_eq!(status, Status::DATA_TRANSFER_ERROR, "{prp:#x}");
    }
    let mut guest = Guest::new();
    guest.set_admin_queues();
    guest.write64(0x28, BAR);
    guest.write32(0x14, 0x0046_0001);
    wait_for("ready", || guest.status() & 1 == 1);
    guest.write32(0x1000, 1);
    wait_for("the fatal status", || guest.status() & 2 == 2);
    guest.disable();
    guest.enable();
    // An I/O completion queue there: what completes is lost, and said to be.
    let command =
        crate::testing::command(crate::spec::admin::CREATE_CQ, 0, BAR, [1 | 63 << 16, 3 | 1 << 16, 0, 0, 0, 0]);
    assert_eq!(guest.admin(&command).status, Status::SUCCESS);
    assert_eq!(guest.create_submission(1, 64, 1), Status::SUCCESS);
    let mut pair = crate::testing::Pair::new(1, 64);
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    wait_for("the fatal status", || guest.status() & 2 == 2);
    guest.disable();
    guest.enable();
}

#[test]
fn a_hanging_disk_keeps_it_from_being_disabled_and_nobody_else() {
    let (mut guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|_| Some(Fault::HangForGood));
    for block in 0..4 {
        guest.submit(&mut pair, &transfer(io::WRITE, block, 1, DATA));
    }
    guest.faults.wait_hanging(4);
    // The admin queue goes on.
    assert!(guest.identify(1, 0).is_ok());
    guest.write32(0x14, 0x0046_0000);
    assert_eq!(guest.status() & 1, 1, "something is in flight");
    guest.faults.clear_rule();
    guest.faults.release();
    wait_for("it to be disabled", || guest.status() & 1 == 0);
    assert!(guest.look(&mut pair).is_none(), "nobody is told");
    guest.enable();
    let mut pair = guest.create(1, 64);
    assert_eq!(guest.write_blocks(&mut pair, 9, 1, 9), Status::SUCCESS);
}

#[test]
fn a_reset_shows_at_once_and_is_ready_again_when_nothing_is_in_flight() {
    let (mut guest, mut pair) = Guest::ready();
    guest.faults.set_rule(|_| Some(Fault::HangForGood));
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    guest.faults.wait_hanging(1);
    guest.controller.reset();
    assert_eq!((guest.status(), guest.read32(0x14), guest.read32(0x28)), (0, 0, 0));
    guest.set_admin_queues();
    guest.write32(0x14, 0x0046_0001);
    assert_eq!(guest.status() & 1, 0, "not while something of before is in flight");
    guest.faults.clear_rule();
    guest.faults.release();
    wait_for("it to be ready", || guest.status() & 1 == 1);
    guest.admin = crate::testing::Pair::new(0, 32);
    assert!(guest.look(&mut pair).is_none());
    assert!(guest.identify(1, 0).is_ok());
}

#[test]
fn a_shutdown_writes_what_is_cached() {
    let (guest, mut pair) = Guest::ready();
    assert_eq!(guest.write_blocks(&mut pair, 0, 8, 3), Status::SUCCESS);
    assert_eq!(guest.disk.durable()[0], 0);
    guest.write32(0x14, 0x0046_4001);
    wait_for("the end of the shutdown", || guest.status() >> 2 & 3 == 2);
    assert_eq!(guest.disk.durable()[..4096], [3; 4096]);
    guest.write32(0x14, 0x0046_0000);
    wait_for("it to be disabled", || guest.status() == 0);
}

#[test]
fn the_pin_follows_what_the_guest_has_not_taken() {
    let (mut guest, _) = Guest::ready();
    guest.disable();
    guest.bus.messages.store(false, Ordering::SeqCst);
    guest.enable();
    let mut pair = guest.create(1, 64);
    wait_for("the pin to fall", || !guest.bus.pin.load(Ordering::SeqCst));
    guest.submit(&mut pair, &transfer(io::READ, 0, 1, DATA));
    wait_for("the pin to rise", || guest.bus.pin.load(Ordering::SeqCst));
    guest.write32(0x0c, 1 << 1);
    assert!(!guest.bus.pin.load(Ordering::SeqCst), "its vector is masked");
    guest.write32(0x10, 1 << 1);
    assert!(guest.bus.pin.load(Ordering::SeqCst));
    guest.wait(&mut pair);
    assert!(!guest.bus.pin.load(Ordering::SeqCst), "as soon as the head has moved");
}

#[test]
fn a_batch_interrupts_once_by_its_own_vector() {
    let (guest, mut pair) = Guest::ready();
    guest.bus.vectors.lock().unwrap().clear();
    for block in 0..8 {
        guest.put(&mut pair, &transfer(io::READ, block, 1, DATA));
    }
    guest.ring(&pair);
    for _ in 0..8 {
        guest.wait(&mut pair);
    }
    wait_for("the interrupt", || !guest.bus.vectors.lock().unwrap().is_empty());
    let vectors = guest.bus.vectors.lock().unwrap().clone();
    assert_eq!((vectors.len(), vectors[0]), (1, 1));
    assert_eq!(guest.disk.counts().kicks, 1, "and goes to the host at once");
}

#[test]
fn hostile_state_is_refused_by_name() {
    let (guest, mut pair) = Guest::ready();
    assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    let state = guest.pause();
    type Change = fn(&mut ControllerState);
    let bad: [(&str, Change); 17] = [
        ("configuration", |state| state.configuration = 0xff00_0000),
        ("status", |state| state.status = 0x10),
        ("units", |state| state.admin = None),
        ("completion.entries", |state| state.units[0].completion.entries = 1),
        ("completion.head", |state| state.units[0].completion.head = 64),
        ("submission.tail", |state| state.units[0].submission[0].tail = u32::MAX),
        ("submission.base", |state| state.units[0].submission[0].base = u64::MAX),
        ("submission.completion", |state| state.units[0].submission[0].completion = 2),
        ("units", |state| state.units.push(state.units[0].clone())),
        ("event_requests", |state| state.event_requests = vec![0; 5]),
        ("changed", |state| state.changed = vec![0]),
        ("event_requests", |state| {
            state.admin = None;
            state.units.clear();
            state.event_requests = vec![1];
        }),
        ("shadow", |state| {
            state.admin = None;
            state.units.clear();
            state.shadow = Some(crate::ShadowState { doorbells: 0, events: 4096 });
        }),
        ("health.errors", |state| state.health.errors = u64::MAX),
        ("features.timestamp", |state| state.features.timestamp = -1),
        ("errors.number", |state| state.errors = vec![crate::ErrorState { number: 1, ..Default::default() }]),
        ("features.power_state", |state| state.features.power_state = 32),
    ];
    for (field, change) in bad {
        let mut state = state.clone();
        change(&mut state);
        match State::check(&state) {
            Err(StateError::Invalid { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    // Counters that are full stay there.
    let mut full = state.clone();
    let most = crate::HealthState::MOST;
    full.health = crate::HealthState {
        sectors_read: most,
        sectors_written: most,
        reads: most,
        writes: most,
        busy: most,
        power_cycles: most,
        unsafe_shutdowns: most,
        media_errors: most,
        errors: most,
        powered: most,
    };
    let mut other = Guest::new();
    other.controller.restore(&full).unwrap();
    other.controller.resume();
    other.disable();
    other.enable();
    let mut queue = other.create(1, 64);
    assert_eq!(other.write_blocks(&mut queue, 0, 1, 1), Status::SUCCESS);
    assert_eq!(other.io(&mut queue, &transfer(io::READ, 1 << 40, 1, DATA)), Status::LBA_OUT_OF_RANGE);
    assert_eq!(other.log(2, 80, 8).unwrap(), most.to_le_bytes());
    other.pause().check().unwrap();
    let mut large = state.clone();
    large.units[0].submission[0].id = 5;
    State::check(&large).unwrap();
    let refused = guest.controller.restore(&large).unwrap_err().to_string();
    assert!(refused.contains("configured with fewer queues"), "{refused}");
}

skep_fuzzing::targets! {
    /// Each byte of a saved state, set to whatever may hurt: it is refused, or the controller lives on.
    "nvme-state": fn fuzz_saved_state(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let (guest, mut pair) = Guest::ready();
        guest.write_blocks(&mut pair, 0, 1, 1);
        guest.pause();
        let mut record = guest.controller.save_record();
        for (place, value) in changes {
            let place = place.index(record.body.len());
            record.body[place] = value;
        }
        let mut other = Guest::new();
        if other.controller.restore_record(&record).is_ok() {
            other.controller.resume();
            other.ring(&pair);
            other.begin_pause().recv().unwrap();
            let saved = other.controller.save_record();
            other.controller.restore_record(&saved).unwrap();
            other.controller.resume();
        }
        other.controller.reset();
        other.enable();
    }
}

skep_fuzzing::targets! {
    /// Whatever is written to the registers, the controller lives, and can be reset and used.
    "nvme-registers": fn fuzz_registers(writes in proptest::collection::vec((0u64..0x1040, any::<u64>(), 0usize..4), 0..200)) {
        let mut guest = Guest::new();
        for (offset, value, width) in writes {
            let mut data = [0; 8];
            guest.controller.read(offset, &mut data[..1 << width]);
            let value = if value % 3 == 0 { value >> 40 } else { value };
            // The registers that matter are the first few.
            let offset = if value % 5 == 0 { offset } else { (offset % 0x40) & !3 };
            guest.controller.write(offset, &value.to_le_bytes()[..1 << width]);
        }
        guest.controller.reset();
        guest.enable();
        let mut pair = guest.create(1, 64);
        prop_assert_eq!(guest.write_blocks(&mut pair, 0, 1, 1), Status::SUCCESS);
    }
}
