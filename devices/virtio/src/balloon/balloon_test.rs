use proptest::prelude::*;

use super::engine::MOST_PAGES;
use super::*;
use crate::testing::{BUFFERS, EDGE, Piece, RAM, RAM_SIZE, Rig, Told};

/// Host pages may have up to 64 KiB.
const LARGE: u64 = 0x1_0000;

fn rig() -> Rig<Balloon> {
    Rig::new(Balloon::new("balloon", true).unwrap())
}

fn pages(begin: u64, end: u64) -> Vec<u8> {
    (begin / PAGE..end / PAGE).flat_map(|page| (page as u32).to_le_bytes()).collect()
}

/// Where guest memory is still what it was filled with.
fn filled(rig: &Rig<Balloon>, places: &[u64]) -> Vec<bool> {
    places.iter().map(|gpa| rig.guest.read(*gpa, 1) == [7]).collect()
}

/// Room that no ring's buffers are in.
const PLACE: u64 = EDGE + RAM_SIZE / 4;

#[test]
fn what_is_in_the_balloon_is_the_hosts() {
    let mut rig = rig();
    rig.guest.write(PLACE, &[7; 8 * LARGE as usize]);
    rig.call(0, &[Piece::Read(&pages(PLACE + LARGE, PLACE + 3 * LARGE))]);
    // Backwards they are not in a row, and go all the same where host pages are as small.
    let places = [PLACE, PLACE + LARGE, PLACE + 3 * LARGE - 1, PLACE + 3 * LARGE];
    assert_eq!(filled(&rig, &places), [true, false, false, true]);
    rig.call(1, &[Piece::Read(&pages(PLACE + LARGE, PLACE + 3 * LARGE))]);
    rig.device.write_config(4, &5u32.to_le_bytes());
    assert_eq!(rig.device.actual(), 5 * PAGE);
    rig.device.write_config(0, &5u32.to_le_bytes());
    rig.device.write_config(4, &[1]);
    assert_eq!((rig.device.target(), rig.device.actual()), (0, 5 * PAGE));
    rig.device.set_target(10 * PAGE + 1);
    rig.wait_told(Told::Config);
    let mut config = [0xff; 8];
    rig.device.read_config(0, &mut config);
    assert_eq!(config, [10, 0, 0, 0, 5, 0, 0, 0]);
    let saved = rig.device.save();
    rig.device.reset();
    assert_eq!((rig.device.target(), rig.device.actual()), (10 * PAGE, 0));
    rig.device.restore(&saved).unwrap();
    assert_eq!(rig.device.actual(), 5 * PAGE);
}

/// Firecracker issues 5762 and 5794: the host worked as long as the guest liked.
#[test]
fn however_many_pages_a_chain_names_the_work_is_capped() {
    let mut rig = rig();
    rig.guest.write(PLACE, &[7; LARGE as usize]);
    let first = pages(0, MOST_PAGES as u64 * PAGE);
    let later = pages(PLACE, PLACE + LARGE);
    rig.call(0, &[Piece::Read(&first), Piece::Read(&later)]);
    assert_eq!(filled(&rig, &[PLACE, PLACE + LARGE - 1]), [true, true]);
    // Pages that are no RAM, or beyond all addresses, or cut off in their number.
    rig.call(0, &[Piece::Read(&[0xff; 4095])]);
    rig.call(0, &[Piece::Read(&[1, 2, 3])]);
    rig.call(0, &[Piece::Write(64)]);
    rig.call(0, &[Piece::At { gpa: BUFFERS, len: u32::MAX, write: true }]);
}

#[test]
fn reported_pages_are_the_hosts_as_well() {
    let mut rig = rig();
    rig.guest.write(EDGE - LARGE, &[7; 2 * LARGE as usize]);
    rig.guest.write(PLACE, &[7; LARGE as usize]);
    // Across regions, and partly no RAM.
    let used = rig.call(
        3,
        &[
            Piece::At { gpa: EDGE - LARGE, len: 2 * LARGE as u32, write: true },
            Piece::At { gpa: RAM + RAM_SIZE, len: 4096, write: true },
            Piece::At { gpa: u64::MAX - 10, len: u32::MAX / 2, write: true },
            Piece::At { gpa: PLACE, len: LARGE as u32, write: true },
        ],
    );
    assert_eq!(used.len, 0);
    let places = [EDGE - LARGE, EDGE - 1, EDGE, EDGE + LARGE - 1, PLACE];
    assert_eq!(filled(&rig, &places), [false; 5]);
}

fn statistics(list: &[(u16, u64)]) -> Vec<u8> {
    list.iter().flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()).collect()
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut rig = rig();
    rig.send(2, &[Piece::Read(&statistics(&[(4, 1000), (5, 2000), (99, 1)]))]);
    rig.device.refresh_statistics();
    assert_eq!(rig.wait_used(2).len, 0);
    let known = Statistics { free: Some(1000), total: Some(2000), ..Statistics::default() };
    assert_eq!(rig.device.statistics(), Some(known));
    // The buffer that is held goes back over a stop, and is read again.
    rig.send(2, &[Piece::Read(&statistics(&[(6, 3)]))]);
    let states = rig.stop_all();
    assert_eq!(states[2].next, 1);
    rig.start_all(&states);
    rig.device.refresh_statistics();
    rig.wait_used(2);
    assert_eq!(rig.device.statistics(), Some(Statistics { available: Some(3), ..Statistics::default() }));
    // A second buffer takes the place of the first.
    let heads = [1, 2].map(|value| rig.send(2, &[Piece::Read(&statistics(&[(0, value)]))]));
    assert_eq!(rig.wait_used(2).head, heads[0]);
    // More than there can be is not looked at.
    let many = [statistics(&[(40, 0); 32]), statistics(&[(0, 77)])].concat();
    rig.send(2, &[Piece::Read(&many)]);
    assert_eq!(rig.wait_used(2).head, heads[1]);
    assert_eq!(rig.device.statistics(), Some(Statistics::default()));
}

#[test]
fn queues_have_the_numbers_that_features_leave_them() {
    let mut rig = Rig::idle(Balloon::new("balloon", false).unwrap(), true);
    assert_eq!(rig.device.features(), feature::STATISTICS | feature::REPORTING);
    rig.device.activate(feature::REPORTING);
    (0..3).for_each(|queue| rig.start(queue, Default::default()));
    rig.guest.write(PLACE, &[7; LARGE as usize]);
    rig.call(2, &[Piece::At { gpa: PLACE, len: LARGE as u32, write: true }]);
    assert_eq!(filled(&rig, &[PLACE]), [false]);
}

/// Page numbers, whole ones and not, but none of a page with a ring: a guest that gives those away has only itself to blame.
fn page_numbers() -> impl Strategy<Value = Vec<u8>> {
    let of_ram = (PLACE / PAGE..(RAM + RAM_SIZE) / PAGE).prop_map(|page| (page as u32).to_le_bytes().to_vec());
    let of_none = proptest::collection::vec(1u8.., 1..4);
    proptest::collection::vec(prop_oneof![of_ram, of_none], 1..12).prop_map(|parts| parts.concat())
}

skep_fuzzing::targets! {
    "virtio-balloon", 64: fn fuzz_queues(
        steps in proptest::collection::vec(
            (0u16..4, page_numbers(), PLACE..RAM + RAM_SIZE + 64, any::<u32>(), any::<u8>()),
            0..40,
        ),
    ) {
        let mut rig = rig();
        // What is read from here completes no number to that of a ring's page.
        rig.guest.write(PLACE, &vec![0xff; (RAM + RAM_SIZE - PLACE) as usize]);
        for (queue, bytes, gpa, len, kind) in steps {
            while rig.rings[usize::from(queue)].take_used().is_some() {}
            if rig.rings[usize::from(queue)].free() < 2 {
                continue;
            }
            rig.send(queue, &[Piece::Read(&bytes), Piece::At { gpa, len, write: kind % 4 > 0 }]);
            match kind % 16 {
                0 => rig.device.refresh_statistics(),
                1 => {
                    let states = rig.stop_all();
                    rig.start_all(&states);
                }
                _ => {}
            }
        }
        for (ring, state) in rig.rings.iter().zip(rig.stop_all()) {
            if !state.broken {
                prop_assert_eq!(ring.used_index(), state.next);
            }
        }
    }
}
