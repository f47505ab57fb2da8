use super::*;

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn tables_are_placed_and_found() {
    let first = Table::new(*b"AAAA", 1, &[0; 20]).with_pointer(40, PointerSize::Four, *b"DSDT");
    let linked = link(vec![Table::facs(), first, Dsdt::new().table()]);
    let (tables, rsdp) = linked.place(0x7000_0000).unwrap();
    let xsdt = u64_at(&rsdp, 24) as usize - 0x7000_0000;
    assert_eq!(&tables[xsdt..xsdt + 4], b"XSDT");
    assert_eq!(u32::from_le_bytes(tables[xsdt + 4..xsdt + 8].try_into().unwrap()), 44);
    let a = u64_at(&tables, xsdt + 36) as usize - 0x7000_0000;
    assert_eq!(&tables[a..a + 4], b"AAAA");
    let dsdt = u32::from_le_bytes(tables[a + 40..a + 44].try_into().unwrap()) as usize - 0x7000_0000;
    assert_eq!(&tables[dsdt..dsdt + 4], b"DSDT");
    assert!(linked.parts.iter().all(|part| part.start.is_multiple_of(64)));
    for part in &linked.parts[1..] {
        assert_eq!(tables[part.clone()].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
}

#[test]
fn a_table_loader_can_do_the_same() {
    let first = Table::new(*b"AAAA", 1, &[0; 20]).with_pointer(40, PointerSize::Eight, *b"DSDT");
    let linked = link(vec![first, Dsdt::new().table()]);
    let Linked { tables, rsdp, .. } = &linked;
    assert_eq!(tables.pointers.len(), 2);
    assert_eq!(rsdp.pointers, [Pointer { offset: 24, size: PointerSize::Eight }]);
    assert_eq!(rsdp.checksums.iter().map(|sum| sum.offset).collect::<Vec<_>>(), [8, 32]);
    // What fw_cfg's ADD_POINTER and ADD_CHECKSUM do.
    let mut bytes = tables.bytes.clone();
    for pointer in &tables.pointers {
        let offset = u64_at(&bytes, pointer.offset);
        assert!((offset as usize) < bytes.len());
        bytes[pointer.offset..pointer.offset + 8].copy_from_slice(&(offset + 0x1000).to_le_bytes());
    }
    for checksum in &tables.checksums {
        assert_eq!(bytes[checksum.offset], 0);
        let sum = bytes[checksum.range.clone()].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[checksum.offset] = 0u8.wrapping_sub(sum);
    }
    assert_eq!(bytes, linked.place(0x1000).unwrap().0);
}

#[test]
fn narrow_pointers_have_their_reach() {
    let first = Table::new(*b"AAAA", 1, &[0; 20]).with_pointer(40, PointerSize::Four, *b"DSDT");
    let linked = link(vec![first, Dsdt::new().table()]);
    assert_eq!(linked.place(0xffff_fff0), Err(OutOfReach(0xffff_fff0)));
    assert_eq!(linked.place(u64::MAX), Err(OutOfReach(u64::MAX)));
    let wide = link(vec![Dsdt::new().table()]);
    wide.place(1 << 40).unwrap();
}

#[test]
fn processors_have_names_of_their_own() {
    let name = devices::Processors::name;
    assert_eq!((name(0), name(35), name(36)), ("C000".into(), "C00Z".into(), "C010".into()));
    assert_eq!((name(46655), name(46656)), ("CZZZ".into(), "D000".into()));
    let all: std::collections::HashSet<_> = (0..70_000).map(name).collect();
    assert_eq!(all.len(), 70_000);
}
