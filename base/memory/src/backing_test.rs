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
fn refusals_say_what_would_do() {
    let odd = Backing::new(4097, &RamOptions::default()).unwrap_err().to_string();
    assert!(odd.contains("whole number of pages"), "{odd}");
    let huge = RamOptions { huge_pages: Some(HugePages { page_size: 1 << 30 }), ..RamOptions::default() };
    // No machine has this many: the pool can't serve it.
    let text = Backing::new(1 << 46, &huge).unwrap_err().to_string();
    assert!(text.contains("huge-page memory") && text.contains("nr_hugepages"), "{text}");
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
