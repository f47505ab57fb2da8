//! What `--stats` prints at the end.

use std::fmt::Write;
use std::time::Duration;

use skep_vmm::Outcome;

#[cfg(test)]
#[path = "stats_test.rs"]
mod test;

/// Times, and exits by kind, the most frequent first.
pub(crate) fn text(outcome: &Outcome) -> String {
    let first = outcome.until_first_instruction.map_or("never".to_owned(), milliseconds);
    let mut text = format!(
        "skep: first instruction: {first}\nskep: whole run: {}\nskep: restarts: {}\nskep: exits: {}\n",
        milliseconds(outcome.elapsed),
        outcome.restarts,
        outcome.exits.total()
    );
    let mut rows: Vec<_> = outcome.exits.rows().filter(|(_, count)| *count > 0).collect();
    rows.sort_unstable_by_key(|(kind, count)| (std::cmp::Reverse(*count), *kind));
    for (kind, count) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "skep:   {kind:<18} {count:>12}");
    }
    text
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
