use super::*;

const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 08:01 42                                 /usr/bin/monitor
Size:               1024 kB
Rss:                 512 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Size:             262144 kB
Rss:                6144 kB
Anonymous:          6144 kB
VmFlags: rd wr mr mw me
7f0010001000-7f0010003000 rw-p 00000000 00:00 0                          [heap]
Size:                  8 kB
Rss:                   8 kB
Anonymous:             4 kB
";

#[test]
fn the_guests_memory_is_told_apart() {
    let resident = Resident::parse(SMAPS, 256 << 20).unwrap();
    assert_eq!(resident, Resident { overhead: 520, anonymous: 4, guest: 6144 });
}

#[test]
fn a_guest_that_is_not_there_is_an_error() {
    assert_eq!(Resident::parse(SMAPS, 512 << 20), None);
    assert_eq!(Resident::parse("", 4096), None);
}

#[test]
fn a_guests_memory_in_parts_is_one() {
    let parts = "\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Rss:                  36 kB
Anonymous:            36 kB
7f0000200000-7f0010000000 rw-p 00000000 00:00 0
Rss:                2048 kB
Anonymous:          2048 kB
7f0010000000-7f0010003000 rw-s 00000000 00:0e 1075                       anon_inode:kvm-vcpu:0
Rss:                   8 kB
Anonymous:             0 kB
";
    let resident = Resident::parse(parts, 256 << 20).unwrap();
    assert_eq!(resident, Resident { overhead: 8, anonymous: 0, guest: 2084 });
    assert_eq!(Resident::parse(&parts.replacen("-7f0000200000", "-7f00001ff000", 1), 256 << 20), None);
}
