use std::io;

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Outer {
    message: &'static str,
    source: io::Error,
}

fn outer(message: &'static str, cause: &str) -> String {
    text(&Outer { message, source: io::Error::other(cause) })
}

#[test]
fn a_chain_is_told_in_order() {
    assert_eq!(outer("no console", "disk full"), "error: no console\n  caused by: disk full\n");
}

#[test]
fn a_cause_that_was_named_is_not_told_again() {
    assert_eq!(outer("no console: disk full", "disk full"), "error: no console: disk full\n");
}

#[test]
fn what_is_no_text_is_shown() {
    assert_eq!(shown("error: \x1b]0;x\x07 `ä`\n  try: rm\n"), "error: \\u{1b}]0;x\\u{7} `ä`\n  try: rm\n");
}

#[test]
fn advice_comes_last() {
    assert_eq!(outer("no console\n  try: rm", "disk full"), "error: no console\n  caused by: disk full\n  try: rm\n");
    assert_eq!(outer("no console", "disk full\n  try: rm"), "error: no console\n  caused by: disk full\n  try: rm\n");
}

#[test]
fn too_few_files_can_be_mended() {
    let said = text(&Outer { message: "no console", source: io::Error::from_raw_os_error(libc::EMFILE) });
    assert!(said.contains("\n  try: ulimit -n "), "{said}");
}
