//! `stopwatch TEXT RAM PROGRAM ARGUMENTS...`: times PROGRAM until it prints TEXT, weighs it, and says so in one line (see the library). RAM is the size of
//! its guest's memory in bytes.

#![forbid(unsafe_code)]

use std::process::{Command, ExitCode};
use std::time::Duration;

/// A guest that takes longer, by the host's clock, is stuck.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [until, ram, program, arguments @ ..] = &words[..] else {
        eprintln!("usage: stopwatch TEXT RAM PROGRAM ARGUMENTS...");
        return ExitCode::from(2);
    };
    let Ok(ram) = ram.parse() else {
        eprintln!("stopwatch: {ram} is no number of bytes");
        return ExitCode::from(2);
    };
    match stopwatch::measure(Command::new(program).args(arguments), until, ram, LIMIT) {
        Ok(reading) => {
            println!("{reading}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("stopwatch: {program}: {error}");
            ExitCode::FAILURE
        }
    }
}
