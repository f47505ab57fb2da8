use std::sync::Arc;

use vm_memory::Bytes;

use super::*;
use crate::{Backing, RamOptions, RegionKind};

#[test]
fn one_byte_anywhere_is_no_zero() {
    for length in [0, 1, 15, 16, 17, PAGE_SIZE as usize] {
        let mut bytes = vec![0; length];
        assert!(is_zero(&bytes), "{length}");
        for at in 0..length {
            bytes[at] = 0x80;
            assert!(!is_zero(&bytes), "{at} of {length}");
            bytes[at] = 0;
        }
    }
}

#[test]
fn a_page_of_a_region_is_looked_at_to_its_end_and_no_further() {
    let backing = Arc::new(Backing::new(4 * PAGE_SIZE, &RamOptions::default()).unwrap());
    let region = Region::new("RAM", RegionKind::Ram, 0, 3 * PAGE_SIZE, backing, PAGE_SIZE).unwrap();
    for at in [PAGE_SIZE, PAGE_SIZE + 511, 2 * PAGE_SIZE - 1] {
        region.write_slice(&[1], MemoryRegionAddress(at)).unwrap();
        assert_eq!([0, 1, 2].map(|page| region.is_zero_page(page * PAGE_SIZE).unwrap()), [true, false, true], "{at}");
        region.write_slice(&[0], MemoryRegionAddress(at)).unwrap();
    }
    assert!(region.is_zero_page(PAGE_SIZE).unwrap());
    for outside in [3 * PAGE_SIZE, 3 * PAGE_SIZE - 1, u64::MAX] {
        assert!(region.is_zero_page(outside).is_err(), "{outside:#x}");
    }
}
