use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Dsdt, PointerSize, Table, devices, link};
use super::testing::{Loaded, adds_up, number, run};
use super::*;

fn files(linked: &Linked) -> BTreeMap<String, Vec<u8>> {
    let page = vec![0; GENERATION_SIZE];
    let all = [
        (file::TABLES, linked.tables.bytes.clone()),
        (file::RSDP, linked.rsdp.bytes.clone()),
        (file::GENERATION, page),
    ];
    all.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// A table's length, its pointers (their sizes, and the numbers of the tables that they lead to), and whatever is in it.
type Plan = (usize, Vec<(bool, prop::sample::Index)>, u8);

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let pointers = prop::collection::vec(any::<(bool, prop::sample::Index)>(), 0..4);
    prop::collection::vec((0usize..300, pointers, any::<u8>()), 1..9)
}

fn signature(number: usize) -> [u8; 4] {
    [b'T', b'B', b'L', b'A' + number as u8]
}

/// The table, and its pointers: offset, size and the other's signature.
fn table(number: usize, plan: &Plan, count: usize) -> (Table, Vec<(usize, usize, [u8; 4])>) {
    let (length, pointers, content) = plan;
    let mut table = Table::new(signature(number), 1, &vec![*content; length + 8 * pointers.len()]);
    let mut expected = Vec::new();
    for (slot, (wide, to)) in pointers.iter().enumerate() {
        let (offset, to) = (HEADER_SIZE + slot * 8, signature(to.index(count)));
        let size = if *wide { PointerSize::Eight } else { PointerSize::Four };
        table = table.with_pointer(offset, size, to);
        expected.push((offset, size.bytes(), to));
    }
    (table, expected)
}

fn find(loaded: &Loaded, signature: [u8; 4], linked: &Linked) -> (u64, Vec<u8>) {
    let tables = &loaded.blobs[file::TABLES];
    let part = linked.parts.iter().find(|part| tables.bytes[part.start..].starts_with(&signature)).unwrap();
    (tables.address + part.start as u64, tables.bytes[part.clone()].to_vec())
}

skep_fuzzing::targets! {
    /// Firmware puts the blobs anywhere, and finds each table where pointers say, as a machine without firmware would have laid them there.
    "acpi-loader": fn fuzz_any_tables_in_any_place(
        plans in plans(),
        facs in any::<bool>(),
        generation in any::<bool>(),
        places in prop::collection::vec(any::<u64>(), 3),
    ) {
        let mut pointers = Vec::new();
        let mut tables = Vec::new();
        for (number, plan) in plans.iter().enumerate() {
            let (table, expected) = table(number, plan, plans.len());
            tables.push(table);
            pointers.push(expected);
        }
        let mut dsdt = Dsdt::new();
        dsdt.device(&devices::Generation);
        tables.extend(facs.then(Table::facs));
        tables.extend(generation.then(|| dsdt.table()));
        let mut linked = link(tables);
        let place = devices::Generation::find_pointer(&mut linked.tables.bytes);
        prop_assert_eq!(place.is_some(), generation);
        let loaded = run(&script(&linked, place), &files(&linked), &places);

        // The whole is what the machine itself would have made there.
        let (placed, rsdp) = (&loaded.blobs[file::TABLES], &loaded.blobs[file::RSDP]);
        let page = loaded.blobs.get(file::GENERATION).map(|page| page.address);
        prop_assert_eq!(page, loaded.written.get(file::GENERATION_ADDRESS).copied());
        let mut without = linked.clone();
        if let (Some(at), Some(page)) = (place, page) {
            let address = page + GENERATION_OFFSET as u64;
            prop_assert_eq!(number(&placed.bytes[at..at + 4]), address);
            without.tables.bytes[at..at + 4].copy_from_slice(&address.to_le_bytes()[..4]);
        }
        let (bytes, own_rsdp) = without.place(placed.address).unwrap();
        prop_assert!(placed.bytes == bytes && rsdp.bytes == own_rsdp);

        // The parts, by themselves.
        prop_assert!(rsdp.bytes.starts_with(b"RSD PTR ") && adds_up(&rsdp.bytes[..20]) && adds_up(&rsdp.bytes));
        let xsdt = loaded.table(number(&rsdp.bytes[24..32])).unwrap();
        let listed: Vec<_> = xsdt[HEADER_SIZE..].chunks(8).map(|entry| loaded.table(number(entry)).unwrap()).collect();
        for (table, expected) in pointers.iter().enumerate() {
            let (address, bytes) = find(&loaded, signature(table), &linked);
            prop_assert_eq!(loaded.table(address), Some(&bytes[..]));
            prop_assert_eq!(listed[table], &bytes[..]);
            for (offset, size, to) in expected {
                let target = number(&bytes[*offset..offset + size]);
                prop_assert_eq!(target, find(&loaded, *to, &linked).0);
                prop_assert!(loaded.table(target).unwrap().starts_with(to));
            }
        }
        prop_assert_eq!(listed.len(), plans.len());
    }
}
