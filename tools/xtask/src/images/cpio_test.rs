use super::Cpio;

/// Reads an archive back: (name, mode, content).
fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        assert_eq!(&bytes[at..at + 6], b"070701");
        let header = std::str::from_utf8(&bytes[at + 6..at + 110]).unwrap();
        let field = |n: usize| u32::from_str_radix(&header[n * 8..n * 8 + 8], 16).unwrap() as usize;
        let name_at = at + 110;
        let name = String::from_utf8(bytes[name_at..name_at + field(11) - 1].to_vec()).unwrap();
        let content_at = (name_at + field(11)).next_multiple_of(4);
        let content = bytes[content_at..content_at + field(6)].to_vec();
        at = (content_at + field(6)).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(at, bytes.len());
            return entries;
        }
        entries.push((name, field(1) as u32, content));
    }
}

#[test]
fn what_is_written_can_be_read() {
    let mut cpio = Cpio::default();
    cpio.directory("bin");
    cpio.file("bin/a", 0o755, b"12345");
    cpio.file("bin/empty", 0o644, b"");
    cpio.symlink("init", "bin/a");
    let entries = read(&cpio.finish());
    assert_eq!(
        entries,
        [
            ("bin".to_owned(), 0o040755, vec![]),
            ("bin/a".to_owned(), 0o100755, b"12345".to_vec()),
            ("bin/empty".to_owned(), 0o100644, vec![]),
            ("init".to_owned(), 0o120777, b"bin/a".to_vec()),
        ]
    );
}
