use proptest::prelude::*;

use super::*;

fn bar() -> impl Strategy<Value = Bar> {
    prop_oneof![
        (4u32..32).prop_map(|bits| Bar::memory32(1 << bits)),
        (4u32..63, any::<bool>())
            .prop_map(|(bits, prefetchable)| Bar { kind: BarKind::Memory64 { prefetchable }, size: 1 << bits }),
        (2u32..9).prop_map(|bits| Bar::io(1 << bits)),
    ]
}

fn with(bar: Bar, enabled: u32) -> (ConfigSpace, Bars) {
    let mut space = ConfigSpace::new();
    space.define(header::COMMAND, Bits::fixed(0).writable(command::MEMORY | command::IO));
    let bars = [Some(bar), None, None, None, None, None];
    define(&mut space, &bars);
    space.write(header::COMMAND, 0xffff, enabled);
    (space, bars)
}

fn set(space: &mut ConfigSpace, address: u64) -> u64 {
    space.write(header::BAR, u32::MAX, address as u32);
    space.write(header::BAR + 4, u32::MAX, (address >> 32) as u32);
    u64::from(space.register(header::BAR + 4)) << 32 | u64::from(space.register(header::BAR))
}

#[test]
fn the_low_bits_say_what_it_is() {
    let low = |bar| with(bar, 0).0.register(header::BAR);
    assert_eq!(low(Bar::memory32(0x1000)), 0);
    assert_eq!(low(Bar::memory64(0x1000)), 0xc);
    assert_eq!(low(Bar { kind: BarKind::Memory64 { prefetchable: false }, size: 16 }), 0x4);
    assert_eq!(low(Bar::io(8)), 1);
}

#[test]
#[should_panic(expected = "a 64-bit BAR takes the one after it")]
fn a_64_bit_bar_takes_two() {
    let mut space = ConfigSpace::new();
    define(&mut space, &[Some(Bar::memory64(16)), Some(Bar::io(4)), None, None, None, None]);
}

proptest! {
    #[test]
    fn all_ones_show_the_size(bar in bar()) {
        let (mut space, _) = with(bar, 0);
        let mask = if bar.space() == Space::Io { !0x3 } else { !0xf };
        let wide = if bar.is_64_bit() { u64::MAX } else { 0xffff_ffff };
        let shown = set(&mut space, u64::MAX) & mask & wide;
        prop_assert_eq!((!shown & wide).wrapping_add(1), bar.size);
        prop_assert!(decoded(&space, &[None; 6]).is_empty());
    }

    #[test]
    fn what_is_decoded_is_aligned_and_where_the_guest_put_it(bar in bar(), address in any::<u64>(), enabled in 0u32..4) {
        let (mut space, bars) = with(bar, enabled);
        set(&mut space, address);
        let wide = if bar.is_64_bit() { u64::MAX } else { 0xffff_ffff };
        let base = address & wide & !(bar.size - 1);
        let on = match bar.space() {
            Space::Io => enabled & 1 != 0,
            Space::Memory => enabled & 2 != 0,
        };
        let placed = on && base != 0 && base.checked_add(bar.size - 1).is_some_and(|last| last < wide);
        let expected = placed.then_some(Decoded { bar: 0, space: bar.space(), base, size: bar.size });
        prop_assert_eq!(decoded(&space, &bars), Vec::from_iter(expected));
    }
}
