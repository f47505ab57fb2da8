//! How far a long command has come: a bar on a terminal, else a line for each tenth.

use std::io::{self, IsTerminal};

use super::say;

#[cfg(test)]
#[path = "progress_test.rs"]
mod test;

/// Characters of the bar.
const WIDTH: u64 = 40;

/// What was shown last.
pub(crate) struct Progress {
    terminal: bool,
    /// Hundredths, or nothing yet.
    shown: Option<u64>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: None }
    }

    /// `done` bytes of `of` are done, at `rate` bytes in a second where that is told.
    pub(crate) fn show(&mut self, done: u64, of: u64, rate: Option<u64>) {
        if let Some(text) = self.text(done, of, rate) {
            say(&text);
        }
    }

    /// What there is to say, if there is.
    fn text(&mut self, done: u64, of: u64, rate: Option<u64>) -> Option<String> {
        let hundredths = (u128::from(done) * 100).checked_div(of.into()).unwrap_or(100).min(100) as u64;
        let shown = if self.terminal { hundredths } else { hundredths / 10 * 10 };
        if self.shown == Some(shown) || !self.terminal && self.shown.is_none() && shown == 0 {
            return None;
        }
        self.shown = Some(shown);
        let rate = rate.map(|rate| format!("{:>7} MiB/s", rate >> 20)).unwrap_or_default();
        if !self.terminal {
            return Some(format!("skep: {shown}% of {of} bytes{rate}\n"));
        }
        let full = (shown * WIDTH / 100) as usize;
        Some(format!("\r[{:<width$}] {shown:>3}%{rate}", "#".repeat(full), width = WIDTH as usize))
    }

    /// Leaves the bar's line.
    pub(crate) fn end(&self) {
        if self.terminal && self.shown.is_some() {
            say("\n");
        }
    }
}
