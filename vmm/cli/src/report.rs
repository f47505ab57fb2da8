//! Errors as a user reads them.

use std::error::Error;
use std::io::{self, Write};

#[cfg(test)]
#[path = "report_test.rs"]
mod test;

/// Prints an error and what caused it to standard error.
pub(crate) fn print(error: &(dyn Error + 'static)) {
    say(&shown(&text(error)));
}

/// Texts from files and from others are part of errors: what a terminal would take for an order is shown.
fn shown(text: &str) -> String {
    let one = |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(one).collect()
}

/// Writes to standard error.
pub(crate) fn say(text: &str) {
    // Where nobody listens, the exit code still tells.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `error: ...`, `caused by: ...` for each cause that the text does not name already, and `try: ...` last.
fn text(error: &(dyn Error + 'static)) -> String {
    let mut lines = Vec::new();
    let mut advice = Vec::new();
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        // By convention a message may end with lines of advice.
        let (message, tries) =
            text.split_once("\n  try: ").map_or((text.as_str(), None), |(text, tries)| (text, Some(tries)));
        if !said.contains(message) {
            let label = if lines.is_empty() { "error" } else { "  caused by" };
            lines.push(format!("{label}: {message}\n"));
        }
        advice.extend(tries.filter(|tries| !said.contains(*tries)).map(|tries| format!("  try: {tries}\n")));
        said.push_str(&text);
        if error.downcast_ref().and_then(io::Error::raw_os_error) == Some(libc::EMFILE) {
            advice.push("  try: ulimit -n 4096, or LimitNOFILE= in the service's unit: a machine takes a few files for each CPU\n".to_owned());
        }
        next = error.source();
    }
    lines.extend(advice);
    lines.concat()
}
