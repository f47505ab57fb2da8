use std::fs;

use super::*;

/// Address, bytes and resident bytes of the mapping of the program that holds this function.
fn code() -> (usize, usize, usize) {
    let here = code as fn() -> (usize, usize, usize) as usize;
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines();
    let hex = |text: &str| usize::from_str_radix(text, 16).unwrap();
    let kib = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10;
    while let Some(line) = lines.next() {
        let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) else { continue };
        if (hex(start)..hex(end)).contains(&here) {
            let resident = lines.find(|line| line.starts_with("Rss:")).map(kib).unwrap();
            return (hex(start), hex(end) - hex(start), resident);
        }
    }
    panic!("{here:#x} is in no mapping:\n{maps}");
}

#[test]
fn code_that_ran_once_is_no_longer_resident() {
    let (start, bytes, _) = code();
    for page in (start..start + bytes).step_by(4096) {
        // SAFETY: the mapping was just found, and the program's code is there for good.
        std::hint::black_box(unsafe { std::ptr::with_exposed_provenance::<u8>(page).read_volatile() });
    }
    let (_, _, before) = code();
    assert_eq!(before, bytes);
    // Other tests run meanwhile, and what they need of it comes back.
    let rounds = (0..64).map(|_| {
        release();
        code().2
    });
    let after = rounds.min().unwrap();
    assert!(after < before / 2, "{after} of {before} bytes are still there");
}
