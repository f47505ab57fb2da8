use super::*;
use crate::testing::*;
use crate::{Address, RootComplexConfig};

#[test]
fn everything_has_its_place() {
    let rig = placed();
    let rows = [
        "port:0 BAR 0 Memory 0x4000000000+0x4000",
        "port:0 BAR 2 Memory 0xc0000000+0x1000",
        "port:0 BAR 3 Io 0x1000+0x20",
        "root:4 BAR 0 Memory 0x40c0000000+0x4000",
        "root:4 BAR 2 Memory 0xc0600000+0x1000",
        "root:4 BAR 3 Io 0x2000+0x20",
    ];
    assert_eq!(rig.mapped(), rows);
    assert_eq!(rig.read(PORT, 0x18), 0x0001_0100);
    assert_eq!(rig.read(Address::new(0, FIRST_PORT + 2), 0x18), 0x0003_0300);
    // 2 MiB below 4 GiB and 1 GiB above for each port; I/O for the one that needs it.
    assert_eq!(rig.read(PORT, 0x20), 0xc010_c000);
    assert_eq!((rig.read(PORT, 0x24), rig.read(PORT, 0x28), rig.read(PORT, 0x2c)), (0x3ff1_0001, 0x40, 0x40));
    assert_eq!(rig.read16(PORT, 0x1c), 0x1010);
    let empty = Address::new(0, FIRST_PORT + 1);
    assert_eq!((rig.read16(empty, 0x1c), rig.read(empty, 0x20)), (0x00f0, 0xc030_c020));
    assert_eq!((rig.read16(ONE, 4), rig.read16(PORT, 4)), (3, 7));
}

#[test]
fn placing_again_is_the_same() {
    let rig = placed();
    let (mapped, state) = (rig.mapped(), skep_state::Persist::save(&*rig.root));
    skep_state::Persist::reset(&*rig.root);
    rig.root.place(&WINDOWS).unwrap();
    rig.update();
    assert_eq!((rig.mapped(), skep_state::Persist::save(&*rig.root)), (mapped, state));
}

#[test]
fn what_does_not_fit_is_named() {
    let small = Window { base: 0xc000_0000, size: 4 << 20 };
    let error = rig().root.place(&Windows { memory32: small, ..WINDOWS }).unwrap_err().to_string();
    assert_eq!(
        error,
        "0x200000 bytes for port:2 do not fit into a PCI window of 0x400000 bytes: configure fewer devices"
    );
    let end = Window { base: u64::MAX - 0xfff, size: 0xfff };
    rig().root.place(&Windows { memory64: end, ..WINDOWS }).unwrap_err();
}

#[test]
fn large_bars_are_aligned_in_their_windows() {
    let sink = Sink::default();
    let lines = (0..4).map(|number| line(&sink.log, number)).collect();
    let root = RootComplex::new(RootComplexConfig {
        memory: memory(),
        messages: Arc::new(sink.clone()),
        lines,
        ejected: Box::new(|_| ()),
    });
    let mut config = config();
    config.bars =
        [Some(Bar::memory32(1 << 12)), Some(Bar::memory32(1 << 24)), Some(Bar::memory32(1 << 13)), None, None, None];
    for number in 0..2 {
        root.add_port(number, number + 1).unwrap();
        let socket = root.socket(PciPlace::Port(number)).unwrap();
        root.insert(probe(&socket, &sink.log, "it", &config).0).unwrap();
    }
    root.place(&WINDOWS).unwrap();
    let bars: Vec<_> = root.mappings().iter().map(|mapping| (mapping.base, mapping.size)).collect();
    let second = 0xc200_0000;
    let of = |base| [(base + (1 << 24) + (1 << 13), 1 << 12), (base, 1 << 24), (base + (1 << 24), 1 << 13)];
    assert_eq!(bars, [of(0xc000_0000), of(second)].concat());
}
