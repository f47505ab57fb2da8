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
    let kinds_alone: Vec<_> = kinds.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds_alone, [1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
    // What version 3.4 has them be (section 7; chassis without contained elements, boot information with one byte of status).
    let lengths = [(1, 0x1b), (3, 0x16), (4, 0x30), (16, 0x17), (17, 0x5c), (19, 0x1f), (32, 0x0b), (127, 4)];
    assert_eq!(smbios.anchor[7..9], [3, 4]);
    kinds.iter().for_each(|found| assert!(lengths.contains(found), "{found:?}"));
    let system = &found[0].1;
    assert_eq!(system[8..16], [3, 2, 1, 0, 5, 4, 7, 6]);
    assert_eq!(found[2].1[0x23..0x26], [2, 2, 4]);
    assert_eq!(found[6].1[4..12], [0, 0, 0, 0, 0xff, 0xff, 0x1f, 0]);
    let memory = &found[5].1;
    let total: u64 = ram.iter().map(|part| part.size).sum();
    assert_eq!((memory[0x0c..0x0e].to_vec(), memory[0x28..0x2c].to_vec()), (vec![0xff, 0x7f], vec![2, 8, 0, 0]));
    let sizes: Vec<_> = memory[0x34..0x54].chunks(8).map(|size| u64::from_le_bytes(size.try_into().unwrap())).collect();
    assert_eq!(sizes, [0, total, 0, 0]);
    assert_eq!(found[7].1[15..23], (4 * GIB).to_le_bytes());
}

#[test]
fn the_entry_point_adds_up() {
    let smbios = machine(&[AddressRange::new(0, GIB)]);
    assert_eq!(smbios.anchor.len(), 24);
    assert_eq!(smbios.anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(smbios.anchor[12..16], (smbios.tables.len() as u32).to_le_bytes());
}
