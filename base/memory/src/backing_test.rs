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
