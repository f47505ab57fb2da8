use super::*;

fn header() -> Header {
    let geometry = Geometry { cluster_bits: 12, refcount_order: 4, version: 3 };
    let backing = Backing { file: "../base.raw".into(), format: Some("raw".to_owned()) };
    let mut header = Header::new(geometry, 1 << 30, Some(backing));
    (header.l1_offset, header.table_offset, header.table_clusters) = (0x3000, 0x1000, 1);
    header
}

#[test]
fn a_header_is_read_as_it_was_written() {
    let header = header();
    let bytes = header.write().unwrap();
    assert_eq!((bytes.len(), &bytes[..8]), (4096, &b"QFI\xfb\0\0\0\x03"[..]));
    assert_eq!(Header::parse(&bytes), Ok(header));
}

#[test]
fn contradictions_in_headers_are_named() {
    let good = header().write().unwrap();
    for (at, width, value, reason) in [
        (4, 4, 4, "it is of version 4: versions 2 and 3 are known"),
        (8, 8, 5000, "the name of its backing file is not in its first cluster"),
        (16, 4, 4096, "the name of its backing file is not in its first cluster"),
        (24, 8, 1 << 60, "its size of 1152921504606846976 bytes is beyond all files"),
        (24, 8, 1 << 31, "its level 1 table of 4096 bytes is too small: it needs 8192"),
        (32, 4, 1, "it is encrypted (AES)"),
        (36, 4, 0xffff_ffff, "its level 1 table of 34359738360 bytes is larger than 33554432"),
        (40, 8, 0x3200, "its level 1 table is at 0x3200, which is no place of a cluster"),
        (48, 8, 0, "its table of reference counts is at 0x0, which is no place of a cluster"),
        (56, 4, 0xffff, "its table of reference counts of 268431360 bytes is larger than 8388608"),
        (56, 4, 0, "its table of reference counts of 0 bytes is too small: it needs 8"),
        (60, 4, 70_000, "its 70000 snapshots are more than 65536"),
        (60, 4, 1, "its snapshots are at 0x0, which is no place of a cluster"),
        (96, 4, 7, "its reference counts of 2^7 bits are not of 1 to 64 bits"),
        (100, 4, 80, "its header of 80 bytes is not one of version 3"),
        (100, 4, 5000, "its header of 5000 bytes is not one of version 3"),
        (116, 4, 5000, "its header's extension 0xe2792aca leaves the first cluster"),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + width].copy_from_slice(&u64::to_be_bytes(value)[8 - width..]);
        let refused = Header::parse(&bytes).unwrap_err();
        assert!(refused.contains(reason), "{at}: {refused}");
    }
}

#[test]
fn backing_files_are_beside_the_image() {
    let named = |file: &str| Backing { file: file.into(), format: None };
    assert_eq!(named("b").path(Path::new("a")), Ok("b".into()));
    assert_eq!(named("../b").path(Path::new("x/y/a")), Ok("x/y/../b".into()));
    assert_eq!(named("/b").path(Path::new("x/a")), Ok("/b".into()));
    assert_eq!(named("./b:c").path(Path::new("a")), Ok("./b:c".into()));
    for name in ["nbd://host/b", "json:{}", "file:b"] {
        assert!(named(name).path(Path::new("a")).unwrap_err().contains("begins with `./`"));
    }
}
