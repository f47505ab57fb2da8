//! Each guest is there, in its format, and small.

use super::*;

/// What a guest may have, in bytes.
const SMALL: usize = 64 << 10;

#[test]
fn guests_are_small() {
    for guest in [HELLO_X86_64, HELLO_AARCH64, IO_X86_64, IO_AARCH64, PROBE_X86_64, PROBE_AARCH64] {
        assert!((1 << 10..SMALL).contains(&guest.len()), "{} bytes", guest.len());
    }
}

#[test]
fn probes_begin_with_code() {
    // CLI, CLD.
    assert_eq!(PROBE_X86_64[..2], [0xfa, 0xfc]);
    // MOV X19, X0.
    assert_eq!(PROBE_AARCH64[..4], 0xaa00_03f3_u32.to_le_bytes());
}

#[test]
fn guests_for_x86_64_have_a_pvh_entry_inside_their_segment() {
    [HELLO_X86_64, IO_X86_64].into_iter().for_each(check_pvh);
}

fn check_pvh(guest: &[u8]) {
    let short = |at: usize| usize::from(u16::from_le_bytes(guest[at..at + 2].try_into().unwrap()));
    let word = |at: usize| u32::from_le_bytes(guest[at..at + 4].try_into().unwrap());
    assert_eq!(&guest[..6], b"\x7fELF\x02\x01");
    assert_eq!(short(18), 62, "not for x86_64");
    let headers: Vec<usize> = (0..short(56)).map(|index| word(32) as usize + index * short(54)).collect();
    let of_kind = |kind| headers.iter().copied().filter(|&at| word(at) == kind).collect::<Vec<_>>();
    let (load, note) = (of_kind(1), of_kind(4));
    assert_eq!((load.len(), note.len()), (1, 1));
    let (address, size) = (word(load[0] + 24), word(load[0] + 32));
    assert_eq!(address, 0x10_0000);
    // Owner "Xen", XEN_ELFNOTE_PHYS32_ENTRY, a word.
    let note = word(note[0] + 8) as usize;
    assert_eq!([word(note), word(note + 4), word(note + 8)], [4, 4, 18]);
    assert_eq!(&guest[note + 12..note + 16], b"Xen\0");
    assert!((address..address + size).contains(&word(note + 16)));
}

#[test]
fn guests_for_aarch64_are_images() {
    [HELLO_AARCH64, IO_AARCH64].into_iter().for_each(check_image);
}

fn check_image(guest: &[u8]) {
    let long = |at: usize| u64::from_le_bytes(guest[at..at + 8].try_into().unwrap());
    assert_eq!(&guest[56..60], b"ARM\x64");
    assert_eq!(long(8), 0, "offset of the text");
    assert!(long(16) > guest.len() as u64, "no room for what is not in the file");
    assert_eq!(long(24), 0xa, "little-endian, 4 KiB pages, anywhere in memory");
}
