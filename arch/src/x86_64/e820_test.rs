use super::*;
use crate::layout::{GIB, KIB, MIB};

fn entry(base: u64, end: u64, kind: Kind) -> Entry {
    Entry::new(AddressRange::between(base, end), kind)
}

#[test]
fn a_small_machine() {
    let layout = Layout::new(256 * MIB, 40).unwrap();
    let tables = layout.acpi_tables(4 * KIB);
    assert_eq!(
        memory_map(&layout, tables),
        [
            entry(0, 0xa_0000, Kind::Ram),
            entry(0xa_0000, 0x10_0000, Kind::Reserved),
            entry(0x10_0000, 256 * MIB, Kind::Ram),
            entry(0xb000_0000, 0xc000_0000, Kind::Reserved),
            entry(0xfeff_c000, 0xff00_0000, Kind::Reserved),
        ]
    );
}

#[test]
fn large_tables_are_cut_out_of_low_ram() {
    let layout = Layout::new(8 * GIB, 40).unwrap();
    let map = memory_map(&layout, layout.acpi_tables(MIB));
    assert_eq!(map[2], entry(MIB, 2 * GIB - MIB, Kind::Ram));
    assert_eq!(map[3], entry(2 * GIB - MIB, 2 * GIB, Kind::AcpiReclaimable));
    assert_eq!(map[6], entry(4 * GIB, 10 * GIB, Kind::Ram));
    assert_eq!(map.len(), 7);
    assert!(map.windows(2).all(|pair| pair[0].region().unwrap().end() <= pair[1].base.get()));
}
