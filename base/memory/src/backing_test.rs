use super::*;

#[test]
fn memory_is_aligned_for_large_pages_and_lazy() {
    let ram = Backing::new(1 << 40, &RamOptions::default()).expect("1 TiB of address space, no memory");
    assert_eq!(ram.as_ptr() as usize % LARGE_PAGE, 0);
    assert_eq!((ram.size(), ram.file().is_none()), (1 << 40, true));
}

#[test]
fn shared_memory_can_be_mapped_by_others() {
    let ram = Backing::new(8 << 20, &RamOptions { shared: true, prefault: true, ..RamOptions::default() }).unwrap();
    assert_eq!(ram.file().unwrap().metadata().unwrap().len(), 8 << 20);
}

#[test]
fn prefaulted_memory_is_resident() {
    for shared in [false, true] {
        let ram = Backing::new(8 << 20, &RamOptions { shared, prefault: true, huge_pages: None }).unwrap();
        let mut resident = [0_u8; 2048];
        // SAFETY: the vector has a byte for each page of the mapping.
        assert_eq!(unsafe { libc::mincore(ram.as_ptr().cast(), 8 << 20, resident.as_mut_ptr().cast()) }, 0);
        assert!(resident.iter().all(|page| page & 1 == 1), "shared: {shared}");
    }
}

#[test]
fn refusals_say_what_would_do() {
    let odd = Backing::new(4097, &RamOptions::default()).unwrap_err().to_string();
    assert!(odd.contains("whole number of pages"), "{odd}");
    let huge = RamOptions { huge_pages: Some(HugePages { page_size: 1 << 30 }), ..RamOptions::default() };
    // No machine has this many: the pool can't serve it.
    let text = Backing::new(1 << 46, &huge).unwrap_err().to_string();
    assert!(text.contains("68719476736 KiB of huge-page memory") && text.contains("huge"), "{text}");
    let named = huge_page_sizes().iter().any(|kib| text.contains(&format!("{kib}")));
    assert!(named || text.contains("no huge pages"), "{text}");
    // No host has pages of this size.
    let odd = RamOptions { huge_pages: Some(HugePages { page_size: 8 << 10 }), ..RamOptions::default() };
    let text = Backing::new(1 << 20, &odd).unwrap_err().to_string();
    assert!(text.contains("choose by hugepages=") || text.contains("leave hugepages= out"), "{text}");
    let text = Backing::new(1 << 50, &RamOptions::default()).unwrap_err().to_string();
    assert!(text.contains("smaller --memory"), "{text}");
}

#[test]
fn whole_pages_go_back_to_the_host() {
    use crate::{Region, RegionKind};
    use std::sync::Arc;
    use vm_memory::{Bytes, MemoryRegionAddress};

    for shared in [false, true] {
        let ram = Arc::new(Backing::new(4 << 20, &RamOptions { shared, ..RamOptions::default() }).unwrap());
        let region = Region::new("ram", RegionKind::Ram, 0, 2 << 20, ram, 2 << 20).unwrap();
        let fill = |region: &Region| region.write_slice(&[7; 0x8_0000], MemoryRegionAddress(0)).unwrap();
        let at = |offset| region.read_obj::<u8>(MemoryRegionAddress(offset)).unwrap();
        fill(&region);
        // Pages of up to 64 KiB: what is no whole one of them stays.
        region.discard(0x1_0000 - 1, 0x2_0002).unwrap();
        assert_eq!([0xffff, 0x1_0000, 0x2_ffff, 0x3_0000].map(at), [7, 0, 0, 7]);
        region.discard(0x4_0001, 0xfff).unwrap();
        assert_eq!(at(0x4_0001), 7);
        for (offset, len) in [(u64::MAX, u64::MAX), (0, 0), (2 << 20, 1)] {
            region.discard(offset, len).unwrap();
        }
        assert_eq!(at(0), 7);
        region.discard(0, u64::MAX).unwrap();
        assert_eq!([0, 0x7_ffff].map(at), [0, 0]);
    }
}
