use skep_block::image::{Backing, ImageFormat};

use super::*;

fn images() -> [ImageInfo; 2] {
    let qcow2 = Qcow2Info {
        version: 3,
        cluster_size: 65536,
        refcount_bits: 16,
        backing: Some(Backing { file: "a \"b\".raw".into(), format: Some("raw".to_owned()) }),
        snapshots: vec!["one".to_owned(), "t\\wo".to_owned()],
        dirty: true,
        corrupt: false,
        lazy_refcounts: true,
        bitmaps: false,
    };
    let raw = ImageInfo {
        file: "a \"b\".raw".into(),
        format: ImageFormat::Raw,
        size: 1_000_000,
        allocated: 4096,
        qcow2: None,
    };
    [
        ImageInfo {
            file: "top\u{1b}.qcow2".into(),
            format: ImageFormat::Qcow2,
            size: 1 << 30,
            qcow2: Some(qcow2),
            ..raw.clone()
        },
        raw,
    ]
}

#[test]
fn people_read_paragraphs() {
    let expected = "\
file:         top?.qcow2
format:       qcow2, version 3
virtual size: 1G (1073741824 bytes)
allocated:    4K (4096 bytes)
cluster size: 64K (65536 bytes)
backing file: a \"b\".raw (raw)
snapshots:    2 (one, t\\wo)
flags:        dirty, lazy-refcounts

file:         a \"b\".raw
format:       raw
virtual size: 1000000 bytes
allocated:    4K (4096 bytes)
";
    assert_eq!(text(&images()), expected);
}

#[test]
fn programs_read_json() {
    let expected = r#"[
  {
    "file": "top\u001b.qcow2",
    "format": "qcow2",
    "virtual-size": 1073741824,
    "allocated": 4096,
    "version": 3,
    "cluster-size": 65536,
    "refcount-bits": 16,
    "backing-file": "a \"b\".raw",
    "backing-format": "raw",
    "snapshots": ["one", "t\\wo"],
    "dirty": true,
    "corrupt": false,
    "lazy-refcounts": true,
    "bitmaps": false
  },
  {
    "file": "a \"b\".raw",
    "format": "raw",
    "virtual-size": 1000000,
    "allocated": 4096
  }
]
"#;
    assert_eq!(json(&images()), expected);
}

#[test]
fn a_check_says_what_is_wrong_and_what_is_left() {
    let sound = CheckReport { used: 5, cluster_size: 65536, ..CheckReport::default() };
    assert_eq!(report(&sound, None), "no errors; 5 clusters are used (320K)\n");
    let wrong = CheckReport { errors: 3, leaks: 2, messages: vec!["a".to_owned()], ..sound.clone() };
    let found = "error: a\nand more\n3 errors, 2 lost clusters (128K); 5 clusters are used (320K)\n";
    assert_eq!(report(&wrong, None), format!("{found}`--repair` mends what can be mended\n"));
    assert_eq!(report(&wrong, Some(&sound)), format!("{found}after mending: no errors\n"));
}
