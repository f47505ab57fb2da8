use super::*;
use crate::testing::{BUFFERS, EDGE, Piece, RAM, RAM_SIZE, Rig, Told};

fn rig() -> Rig<Rng> {
    Rig::new(Rng::new("rng").unwrap())
}

#[test]
fn buffers_are_filled() {
    let mut rig = rig();
    let used = rig.call(0, &[Piece::Write(16), Piece::Write(48)]);
    assert_eq!(used.len, 64);
    assert_ne!(used.data, [0; 64]);
    let other = rig.call(0, &[Piece::Write(64)]);
    assert_ne!(used.data, other.data);
}

/// Firecracker issues 5762 and 5794: a guest asked for gigabytes, and the host's memory and time paid for it.
#[test]
fn however_much_is_asked_for_the_answer_is_capped() {
    let mut rig = rig();
    for len in [MAX_BYTES as u32, MAX_BYTES as u32 + 1, 0x10_0000] {
        assert_eq!(rig.call(0, &[Piece::At { gpa: BUFFERS, len, write: true }]).len, MAX_BYTES as u32);
    }
    // The largest that a descriptor can say, most of which is not even RAM: what is written is.
    assert_eq!(rig.call(0, &[Piece::At { gpa: RAM + RAM_SIZE - 4096, len: u32::MAX, write: true }]).len, 4096);
}

#[test]
fn a_buffer_may_cross_regions_and_what_is_no_ram_asks_for_a_reset() {
    let mut rig = rig();
    assert_eq!(rig.call(0, &[Piece::At { gpa: EDGE - 8, len: 16, write: true }]).len, 16);
    assert_ne!(rig.guest.read(EDGE, 8), [0; 8]);
    rig.send(0, &[Piece::At { gpa: RAM + RAM_SIZE - 8, len: 16, write: true }]);
    rig.wait_told(Told::NeedsReset);
    let state = rig.stop_all();
    assert!(state[0].broken);
}

#[test]
fn it_goes_on_where_it_stopped() {
    let mut rig = rig();
    for _ in 0..5 {
        rig.call(0, &[Piece::Write(8)]);
    }
    let states = rig.stop_all();
    assert_eq!((states[0].next, states[0].broken), (5, false));
    rig.send(0, &[Piece::Write(8)]);
    assert_eq!(rig.rings[0].used_index(), 5, "a stopped queue takes nothing");
    rig.start_all(&states);
    assert_eq!(rig.wait_used(0).len, 8);
}
