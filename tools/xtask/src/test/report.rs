//! What test programs report, added up.

use crate::arch::Arch;
use anyhow::Result;
use std::time::Duration;

/// What one test program reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Tests that passed.
    pub(super) passed: u64,
    /// Tests that failed; a program that ended without a report counts as one.
    pub(super) failed: u64,
    /// Tests that were left out because they are marked so.
    pub(super) ignored: u64,
    /// The names of those that failed.
    pub(super) failures: Vec<String>,
}

impl Counts {
    /// Reads what a test program of Rust's own harness printed and how it ended.
    pub(super) fn read(output: &[u8], code: i32) -> Counts {
        let text = String::from_utf8_lossy(output);
        let mut counts = Counts::default();
        let mut ended = false;
        for line in text.lines() {
            if let Some(result) = line.strip_prefix("test result: ") {
                ended = true;
                counts.passed += number_before(result, " passed");
                counts.failed += number_before(result, " failed");
                counts.ignored += number_before(result, " ignored");
            } else if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
                counts.failures.push(name.to_owned());
            }
        }
        if !ended || (code != 0 && counts.failed == 0) {
            counts.failed += 1;
            counts.failures.push(match code {
                137 => "(killed: it took too long, or the memory did not suffice)".to_owned(),
                code => format!("(ended with code {code} and without a report)"),
            });
        }
        counts
    }
}

/// Whether a failure is one that emulated arm64 hosts are known for: guests of theirs run on and say nothing, once in some hundreds.
pub(super) fn went_astray(arch: Arch, counts: &Counts, output: &[u8]) -> bool {
    const WORDS: &[u8] = b": its guest runs on and says nothing;";
    arch == Arch::Aarch64 && counts.failed == 1 && output.windows(WORDS.len()).any(|bytes| bytes == WORDS)
}

fn number_before(text: &str, word: &str) -> u64 {
    text.split(word)
        .next()
        .and_then(|before| before.rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

/// The line of one test program in the closing table.
pub(super) struct Line {
    /// Where it ran.
    pub(super) place: String,
    /// Which it was.
    pub(super) suite: String,
    /// What it reported.
    pub(super) counts: Counts,
    /// How long it took.
    pub(super) time: Duration,
}

/// Prints the table, what failed, and the closing line `N passed, N failed`. Gives back the exit code.
pub(super) fn close(lines: &[Line]) -> Result<i32> {
    println!();
    for line in lines {
        let Counts { passed, failed, .. } = line.counts;
        println!(
            "{:18} {:28} {passed:4} passed {failed:3} failed {:7.1} s",
            line.place,
            line.suite,
            line.time.as_secs_f64()
        );
    }
    for line in lines {
        for name in &line.counts.failures {
            println!("FAILED: {}: {}: {name}", line.place, line.suite);
        }
    }
    let passed: u64 = lines.iter().map(|line| line.counts.passed).sum();
    let failed: u64 = lines.iter().map(|line| line.counts.failed).sum();
    println!("{passed} passed, {failed} failed");
    Ok(i32::from(failed > 0 || passed == 0))
}

#[cfg(test)]
#[path = "report_test.rs"]
mod test;
