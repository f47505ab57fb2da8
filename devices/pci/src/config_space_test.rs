use proptest::prelude::*;

use super::*;

fn space() -> ConfigSpace {
    let mut space = ConfigSpace::new();
    space.define(0x40, Bits::fixed(0x1234).writable(0xff));
    space.define(0x42, Bits::fixed(0xf0).clears(0xf0).changing(0x0f));
    space
}

#[test]
fn bits_do_what_they_are_defined_for() {
    let mut space = space();
    let change = space.write(0x40, 0xffff_ffff, 0x0030_5678);
    assert_eq!((change.before, change.after, change.ones), (0x00f0_1234, 0x00c0_1278, 0x0030_5678));
    space.write(0x40, 0xff00_ff00, 0);
    assert_eq!(space.register(0x43), 0x00c0_1278, "lanes that are not written");
    space.set(0x42, 0xff, 0xa5);
    assert_eq!((space.word(0x42), space.byte(0x41)), (0xa5, 0x12));
    space.reset(0..0);
    assert_eq!(space.register(0x40), 0x00f0_1234);
    assert_eq!((space.register(0x100), space.write(0xffc, u32::MAX, 1).after), (0, 0));
}

#[test]
fn capabilities_are_a_list() {
    let mut space = ConfigSpace::new();
    assert_eq!(space.register(header::COMMAND) & status::CAPABILITIES, 0);
    assert_eq!(
        (space.add_capability(1, 8), space.add_capability(9, 5), space.add_capability(0x11, 12)),
        (0x40, 0x48, 0x50)
    );
    assert_eq!(space.register(header::COMMAND) & status::CAPABILITIES, status::CAPABILITIES);
    assert_eq!(
        (space.byte(header::CAPABILITIES), space.word(0x40), space.word(0x48), space.word(0x50)),
        (0x40, 0x4801, 0x5009, 0x11)
    );
}

#[test]
#[should_panic(expected = "defined twice")]
fn a_bit_is_defined_once() {
    space().define(0x40, Bits::fixed(0x1000));
}

#[test]
fn only_what_may_change_is_saved() {
    let mut one = space();
    one.write(0x40, u32::MAX, 0x0010_0055);
    one.set(0x42, 0x0f, 0x0f);
    let state = one.save();
    assert_eq!(state.registers, [RegisterState { offset: 0x40, value: 0x00ef_0055 }]);
    let mut two = space();
    two.restore(&state, "x").unwrap();
    assert_eq!(two.register(0x40), 0x00ef_1255);
    for bad in [RegisterState { offset: 0x40, value: 0x100 }, RegisterState { offset: 0x44, value: 1 }] {
        let error = two.restore(&ConfigState { registers: vec![bad] }, "x").unwrap_err().to_string();
        assert!(error.contains("`registers`"), "{error}");
    }
    assert_eq!(two.register(0x40), 0x00ef_1255, "what is refused changes nothing");
}

proptest! {
    #[test]
    fn fuzz_parts_cover_an_access(offset in 0u16..0x1000, data in proptest::collection::vec(any::<u8>(), 0..9)) {
        let mut bytes = Vec::<u8>::new();
        for part in parts(offset, &data) {
            prop_assert_eq!((part.offset % 4, part.offset), (0, (offset + bytes.len() as u16) & !3));
            prop_assert_eq!(part.lanes().count_ones() as usize, part.length * 8);
            prop_assert_eq!(part.value & !part.lanes(), 0);
            let value = part.value.to_le_bytes();
            bytes.extend(&value[part.lane..part.lane + part.length]);
        }
        prop_assert_eq!(bytes, data);
    }
}
