//! What the tests of saved states share: records that somebody has tampered with.

use std::ops::Range;

use crate::Record;

/// The record with each value in it, in turn, replaced by each of those that may hurt.
///
/// # Panics
/// If the body is no whole CBOR item of definite length without tags, or holds no value.
pub fn spoilt(record: &Record) -> impl Iterator<Item = Record> + use<'_> {
    let leaves = leaves(&record.body);
    assert!(!leaves.is_empty(), "a state without values");
    leaves.into_iter().flat_map(|leaf| HOSTILE.iter().map(move |value| (leaf.clone(), value))).map(|(leaf, value)| {
        let mut body = record.body.clone();
        body.splice(leaf, value.iter().copied());
        Record { body, ..record.clone() }
    })
}

/// The record with as many of its values as can be replaced by others, one after the other, while it `stays` what it is.
///
/// # Panics
/// As [`spoilt`].
#[must_use]
pub fn filled(record: &Record, stays: impl Fn(&Record) -> bool) -> Record {
    let mut record = record.clone();
    for number in 0..leaves(&record.body).len() {
        // Values that lie side by side are to differ.
        for turn in 0..HOSTILE.len() {
            let leaf = leaves(&record.body)[number].clone();
            let value = HOSTILE[(number * 5 + turn) % HOSTILE.len()];
            let mut other = record.clone();
            other.body.splice(leaf, value.iter().copied());
            if other != record && stays(&other) {
                record = other;
                break;
            }
        }
    }
    record
}

/// The record with a field that nobody knows, as a later version may have added.
///
/// # Panics
/// If the body is no map with fewer than 256 fields.
#[must_use]
pub fn with_unknown_field(record: &Record) -> Record {
    let mut body = record.body.clone();
    match body[0] {
        0xa0..=0xb6 => body[0] += 1,
        0xb7 => drop(body.splice(0..1, [0xb8, 0x18])),
        0xb8 => body[1] += 1,
        other => panic!("{other:#x} is no map"),
    }
    // 9999: [1, "new"].
    body.extend([0x19, 0x27, 0x0f, 0x82, 0x01, 0x63, b'n', b'e', b'w']);
    Record { body, ..record.clone() }
}

/// CBOR of 0, 1, 2, 7, 0x10, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 2^63 - 1, 2^64 - 1, -1, false, true, null.
const HOSTILE: &[&[u8]] = &[
    &[0x00],
    &[0x01],
    &[0x02],
    &[0x07],
    &[0x10],
    &[0x18, 0x7f],
    &[0x18, 0x80],
    &[0x18, 0xff],
    &[0x19, 0x01, 0x00],
    &[0x19, 0x7f, 0xff],
    &[0x19, 0xff, 0xff],
    &[0x1a, 0x7f, 0xff, 0xff, 0xff],
    &[0x1a, 0xff, 0xff, 0xff, 0xff],
    &[0x1b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x1b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x20],
    &[0xf4],
    &[0xf5],
    &[0xf6],
];

/// Where the values (not the field numbers) of a CBOR item stand (RFC 8949 section 3).
fn leaves(body: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let end = walk(body, 0, &mut found);
    assert_eq!(end, body.len());
    found
}

fn walk(body: &[u8], at: usize, found: &mut Vec<Range<usize>>) -> usize {
    let extra = match body[at] & 0x1f {
        0..=23 => 0,
        short @ 24..=27 => 1usize << (short - 24),
        other => panic!("indefinite length {other}"),
    };
    let head = at + 1 + extra;
    let argument = if extra == 0 {
        usize::from(body[at] & 0x1f)
    } else {
        body[at + 1..head].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    match body[at] >> 5 {
        0 | 1 | 7 => {
            found.push(at..head);
            head
        }
        2 | 3 => {
            found.push(at..head + argument);
            head + argument
        }
        4 => (0..argument).fold(head, |at, _| walk(body, at, found)),
        5 => (0..argument).fold(head, |at, _| {
            let value = walk(body, at, &mut Vec::new());
            walk(body, value, found)
        }),
        _ => panic!("a tag"),
    }
}
