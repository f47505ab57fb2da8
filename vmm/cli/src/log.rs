//! The log: one line per event, to standard error.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::time::Instant;

use skep_config::LogLevel;
use skep_vmm::console::terminal;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

#[cfg(test)]
#[path = "log_test.rs"]
mod test;

/// Begins to log what is at least as urgent as `level`; lines tell the time since `started`.
pub(crate) fn start(level: LogLevel, started: Instant) {
    let level = filter(level);
    if level != LevelFilter::OFF {
        // A process has one log; `main` starts it once.
        let _ = tracing::subscriber::set_global_default(Log { level, started });
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Spans are not logged: skep's events say what they are about.
struct Log {
    level: LevelFilter,
    started: Instant,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::new(self.started.elapsed().as_secs_f64(), event.metadata());
        event.record(&mut line);
        let stderr = io::stderr();
        // Where nobody listens, there is nobody to tell.
        let _ = stderr.lock().write_all(line.finish(terminal::is_raw(&stderr)).as_bytes());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// One event: `[seconds level target] message field=value`.
struct Line {
    head: String,
    message: String,
    fields: String,
}

impl Line {
    fn new(seconds: f64, metadata: &Metadata<'_>) -> Self {
        let level = metadata.level().as_str().to_ascii_lowercase();
        let target = metadata.target().strip_prefix("skep_").unwrap_or(metadata.target());
        Line { head: format!("[{seconds:>9.6} {level:<5} {target}]"), message: String::new(), fields: String::new() }
    }

    /// The whole line, in one piece so that lines of several threads don't mix. In raw mode a terminal needs to be told to go back to its
    /// first column; what a guest or a file had a hand in can't move the cursor or forge a line.
    fn finish(self, raw: bool) -> String {
        let end = if raw { "\r\n" } else { "\n" };
        let text = format!("{} {}{}", self.head, self.message, self.fields);
        let mut line = String::with_capacity(text.len() + 2);
        for c in text.chars() {
            match c {
                '\n' => line.extend([end, "    "]),
                '\t' => line.push(c),
                c if c.is_control() => line.extend(c.escape_default()),
                c => line.push(c),
            }
        }
        line + end
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
