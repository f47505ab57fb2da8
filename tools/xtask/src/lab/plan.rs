//! What the lab's host is to do: a shell script for its init (see `host-init.sh`), carried in with the rest.

use std::time::{Duration, SystemTime};

/// A program to run in the lab.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    limit: Duration,
}

impl Program {
    /// A program with its arguments; the first is its path in the lab or an applet of busybox.
    pub(crate) fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Program {
        let argv = argv.into_iter().map(Into::into).collect();
        Program { argv, environment: Vec::new(), limit: Duration::from_secs(600) }
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Program {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the time, by the lab's clock, after which it is killed.
    pub(crate) fn limit(mut self, limit: Duration) -> Program {
        self.limit = limit;
        self
    }
}

/// The script that runs `programs` one after the other, with `word` in its marks; with `beat` it says all the while that the host lives.
pub(super) fn script(word: &str, programs: &[Program], bring_back: bool, beat: bool) -> String {
    let mut script = format!("word={word}{}\n{}", if beat { " beat=yes" } else { "" }, clock());
    for (number, program) in programs.iter().enumerate() {
        script.push_str(&format!("run {number} {}", program.limit.as_secs().max(1)));
        if !program.environment.is_empty() {
            script.push_str(" env");
            for (name, value) in &program.environment {
                script.push_str(&format!(" {}", quoted(&format!("{name}={value}"))));
            }
        }
        for argument in &program.argv {
            script.push_str(&format!(" {}", quoted(argument)));
        }
        script.push('\n');
    }
    if bring_back {
        script.push_str("give_back\n");
    }
    script
}

/// The script that gives a person a prompt.
pub(super) fn shell(bring_back: bool) -> String {
    let give_back = if bring_back { "give_back\n" } else { "" };
    format!("{}person\n{give_back}sync\npoweroff -f\n", clock())
}

/// Sets the clock: not every board's kernel has a driver for its real-time clock.
fn clock() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("date -s @{} >/dev/null\n", now.as_secs())
}

/// The word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod test;
