use skep_memory::RamOptions;
use skep_memory::vm_memory::{Bytes, GuestAddress};

use skep_memory::MemoryMap;

use super::*;

fn ram(memory: &MemoryMap) -> Vec<Arc<Region>> {
    memory.regions()
}

const ZEROES: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
const SIZE: u64 = 64 << 20;

fn machine(shared: bool) -> MemoryMap {
    let memory = MemoryMap::new();
    let backing = Arc::new(Backing::new(2 * SIZE, &RamOptions { shared, ..RamOptions::default() }).unwrap());
    for (gpa, offset) in [(0, 0), (4 << 30, SIZE)] {
        memory.add(Region::new("RAM", RegionKind::Ram, gpa, SIZE, backing.clone(), offset).unwrap()).unwrap();
    }
    memory
}

#[test]
fn what_is_written_is_read_and_zeroes_take_no_room() {
    for shared in [false, true] {
        let memory = machine(shared);
        let view = memory.ram();
        for (gpa, text) in [(0x5000, "low"), ((4 << 30) + SIZE - 4, "high"), ((4 << 30) + 0x1f_fffe, "over")] {
            view.write_slice(text.as_bytes(), GuestAddress(gpa)).unwrap();
        }
        // Touched, and zero.
        view.write_slice(&[0; 8192], GuestAddress(0x90_0000)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let progress = Progress::default();
        let written = write(&ram(&memory), None, &file, &progress, || true).unwrap();
        assert_eq!((written.size, written.data), (2 * SIZE, 4 * PAGE_SIZE));
        assert_eq!(written.ram.len(), 2);
        assert_eq!(progress.done.load(Ordering::Relaxed), progress.of.load(Ordering::Relaxed));
        assert!(progress.of.load(Ordering::Relaxed) < SIZE, "what was never touched is not looked at");
        assert_eq!(sum(&file).unwrap(), (written.data, written.xxh64.0));
        let other = machine(!shared);
        read(&file, None, &ram(&other)).unwrap();
        for gpa in [0x5000, (4 << 30) + 0x1f_f000, (4 << 30) + SIZE - PAGE_SIZE] {
            let [one, two] = [&memory, &other].map(|memory| {
                let mut page = [0; PAGE_SIZE as usize];
                memory.ram().read_slice(&mut page, GuestAddress(gpa)).unwrap();
                page
            });
            assert!(one == two && one != ZEROES);
        }
        let again = tempfile::tempfile().unwrap();
        assert_eq!(write(&ram(&other), None, &again, &Progress::default(), || true).unwrap(), written);
    }
}

#[test]
fn a_write_that_nobody_wants_any_more_ends() {
    let memory = machine(false);
    memory.ram().write_slice(&[1], GuestAddress(0)).unwrap();
    let file = tempfile::tempfile().unwrap();
    let error = write(&ram(&memory), None, &file, &Progress::default(), || false).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
}

#[test]
fn a_page_counts_where_it_is() {
    let (one, two) = (Sum::default(), Sum::default());
    let page = [3; PAGE_SIZE as usize];
    assert_eq!(one.add(&[page, ZEROES, page, page].concat(), 0), [0..4096, 8192..16384]);
    two.add(&[page, page, ZEROES, page].concat(), 0);
    assert_eq!(one.get().0, two.get().0);
    assert_ne!(one.get().1, two.get().1);
}

#[test]
fn a_difference_has_the_pages_that_it_names_and_no_others() {
    let (memory, other) = (machine(false), machine(false));
    let high = SIZE / PAGE_SIZE;
    let put = |memory: &MemoryMap, page: u64, byte: u8| {
        let gpa = if page < high { page * PAGE_SIZE } else { (4 << 30) + (page - high) * PAGE_SIZE };
        memory.ram().write_slice(&[byte; PAGE_SIZE as usize], GuestAddress(gpa)).unwrap();
    };
    let at = |memory: &MemoryMap, page: u64| {
        let gpa = if page < high { page * PAGE_SIZE } else { (4 << 30) + (page - high) * PAGE_SIZE };
        let mut byte = [0];
        memory.ram().read_slice(&mut byte, GuestAddress(gpa)).unwrap();
        byte[0]
    };
    for page in [3, 4, 5, high - 1, high, high + 9] {
        put(&memory, page, 1);
        put(&other, page, 2);
    }
    // One of them has become zeroes; a run may go over the end of a piece of RAM.
    put(&memory, 4, 0);
    let runs = [3..5, high - 1..high + 1];
    let file = tempfile::tempfile().unwrap();
    let written = write(&ram(&memory), Some(&runs), &file, &Progress::default(), || true).unwrap();
    assert_eq!((written.size, written.data), (2 * SIZE, 3 * PAGE_SIZE));
    assert_eq!(sum(&file).unwrap(), (written.data, written.xxh64.0));
    read(&file, Some(&runs), &ram(&other)).unwrap();
    let pages = [3, 4, 5, high - 1, high, high + 9];
    assert_eq!(pages.map(|page| at(&other, page)), [1, 0, 2, 1, 1, 2]);
}
