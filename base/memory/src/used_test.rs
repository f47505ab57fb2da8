use std::io::{Seek, SeekFrom, Write};

use super::*;
use crate::{Backing, PAGE_SIZE, RamOptions};

const SIZE: u64 = 64 * PAGE_SIZE;

fn set(backing: &Backing, page: u64, value: u8) {
    // SAFETY: the byte is within the mapping, which is the test's alone.
    unsafe { backing.as_ptr().wrapping_add((page * PAGE_SIZE) as usize).write_volatile(value) };
}

fn get(backing: &Backing, page: u64) -> u8 {
    // SAFETY: as above.
    unsafe { backing.as_ptr().wrapping_add((page * PAGE_SIZE) as usize).read_volatile() }
}

/// Whether each page is in one of the ranges, which ascend.
fn pages(ranges: &[Range<u64>]) -> Vec<u64> {
    assert!(ranges.is_sorted_by(|a, b| a.end < b.start), "{ranges:?}");
    ranges.iter().flat_map(|range| range.start / PAGE_SIZE..range.end / PAGE_SIZE).collect()
}

#[test]
fn memory_that_was_never_written_is_not_used() {
    for shared in [false, true] {
        let backing = Backing::new(SIZE, &RamOptions { shared, ..RamOptions::default() }).unwrap();
        assert_eq!(backing.used(0, SIZE).unwrap(), []);
        set(&backing, 3, 1);
        set(&backing, 40, 1);
        let used = pages(&backing.used(0, SIZE).unwrap());
        assert!(used.contains(&3) && used.contains(&40) && !used.contains(&20), "{used:?}");
        let part = pages(&backing.used(PAGE_SIZE, 4 * PAGE_SIZE).unwrap());
        assert!(part.contains(&3) && part.iter().all(|page| (1..5).contains(page)), "{part:?}");
    }
}

#[test]
fn memory_from_a_file_has_its_content_and_leaves_it_alone() {
    let mut file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    file.seek(SeekFrom::Start(5 * PAGE_SIZE)).unwrap();
    file.write_all(&[7; PAGE_SIZE as usize]).unwrap();
    let backing = Backing::of_file(file.try_clone().unwrap()).unwrap();
    assert_eq!((backing.size(), get(&backing, 5), get(&backing, 6)), (SIZE, 7, 0));
    set(&backing, 5, 8);
    set(&backing, 30, 9);
    let used = pages(&backing.used(0, SIZE).unwrap());
    assert!(used.contains(&5) && used.contains(&30) && !used.contains(&50), "{used:?}");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5 * PAGE_SIZE).unwrap();
    assert_eq!(byte, [7], "the file is as it was");
    // What is given back reads as zeroes, not as the file.
    backing.discard(0, SIZE).unwrap();
    assert_eq!((get(&backing, 5), get(&backing, 30)), (0, 0));
}

#[test]
fn a_file_that_is_no_memory_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(Backing::of_file(file.try_clone().unwrap()).is_err());
    file.set_len(PAGE_SIZE + 1).unwrap();
    assert!(Backing::of_file(file).unwrap_err().to_string().contains("whole number of pages"));
}
