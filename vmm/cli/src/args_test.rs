use std::collections::BTreeSet;

use super::*;

/// The guest's own list of words.
const GUEST: &str = include_str!("../../../guests/bare/src/bin/hello/command.rs");

#[test]
fn the_words_are_those_that_the_guest_knows() {
    // Each stands in quotes before an arrow, or after one where it is an ending.
    let words = |line: &'static str| match line.trim().split_once(" => ")? {
        (word, _) if word.starts_with('"') => Some(word.trim_matches('"').to_owned()),
        (end, word) if end.starts_with("Self::") => Some(format!("end={}", word.trim_matches(['"', ',']))),
        _ => None,
    };
    let known: BTreeSet<String> = GUEST.lines().filter_map(words).collect();
    assert_eq!(known, WORDS.iter().map(|(word, _)| (*word).to_owned()).collect());
}
