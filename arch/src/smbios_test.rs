use super::*;
use crate::layout::GIB;

fn machine(ram: &[AddressRange]) -> Smbios {
    let uuid = std::array::from_fn(|at| at as u8);
    let topology = Topology::new(2, 2, 2).unwrap();
    tables(&Machine { product: "q35-1", version: "1", uuid, topology, family: OTHER_FAMILY, ram })
}

/// Kinds, and the formatted parts.
fn structures(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    while let [kind, length, ..] = *bytes {
        let (formatted, rest) = bytes.split_at(length.into());
        let end = rest.windows(2).position(|window| window == [0, 0]).unwrap() + 2;
        all.push((kind, formatted.to_vec()));
        bytes = &rest[end..];
    }
    all
}

#[test]
fn every_structure_is_there_and_long_enough() {
    let ram = [AddressRange::new(0, 2 * GIB), AddressRange::new(4 * GIB, 8 << 40)];
    let smbios = machine(&ram);
    let found = structures(&smbios.tables);
    let kinds: Vec<_> = found.iter().map(|(kind, bytes)| (*kind, bytes.len())).collect();
    let wanted = [(1, 27), (3, 22), (4, 48), (4, 48), (16, 23), (17, 40), (19, 31), (19, 31), (32, 11), (127, 4)];
    assert_eq!(kinds, wanted);
    let system = &found[0].1;
    assert_eq!(system[8..16], [3, 2, 1, 0, 5, 4, 7, 6]);
    assert_eq!(found[2].1[0x23..0x26], [2, 2, 4]);
    assert_eq!(found[6].1[4..12], [0, 0, 0, 0, 0xff, 0xff, 0x1f, 0]);
    assert_eq!(found[7].1[15..23], (4 * GIB).to_le_bytes());
}

#[test]
fn the_entry_point_adds_up() {
    let smbios = machine(&[AddressRange::new(0, GIB)]);
    assert_eq!(smbios.anchor.len(), 24);
    assert_eq!(smbios.anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(smbios.anchor[12..16], (smbios.tables.len() as u32).to_le_bytes());
}
