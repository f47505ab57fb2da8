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
