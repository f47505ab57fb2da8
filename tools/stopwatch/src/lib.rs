//! Times a virtual machine monitor until its guest prints something, and weighs it at that moment.
//!
//! The benchmarks run it on the host that is measured: on this machine as a library, in a lab as a static program (it uses nothing but the
//! standard library). The clock starts before the program is executed and stops when the text has been read from its standard output.
//! The program is then weighed (see [`Resident`]), KVM's counters are read while its virtual machine still exists, and it is killed.
//!
//! What it does not do: repeat, compare, or count what KVM keeps in the kernel for a virtual machine.

#![forbid(unsafe_code)]

mod resident;

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::mem;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use resident::Resident;

/// Where KVM shows its counters: the sums over all virtual machines that exist.
const COUNTERS: &str = "/sys/kernel/debug/kvm";

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// From before the program's execution to the text.
    pub time: Duration,
    /// What the program has in memory.
    pub resident: Resident,
    /// KVM's counters that are not zero, by name; none where debugfs is not mounted or not readable.
    pub counters: Vec<(String, u64)>,
}

/// What the line that [`Reading`] is written as begins with.
const MARK: &str = "stopwatch:";

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resident { overhead, anonymous, guest } = self.resident;
        write!(f, "{MARK} {} {overhead} {anonymous} {guest}", self.time.as_nanos())?;
        self.counters.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

impl Reading {
    /// Finds a reading, as it is written by [`fmt::Display`], among other lines.
    pub fn find(text: &str) -> Option<Self> {
        let mut words = text.lines().find_map(|line| line.trim_end().strip_prefix(MARK))?.split_whitespace();
        let mut number = || words.next()?.parse::<u64>().ok();
        let time = Duration::from_nanos(number()?);
        let resident = Resident { overhead: number()?, anonymous: number()?, guest: number()? };
        let counters = words.map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Some(Self { time, resident, counters: counters.collect::<Option<_>>()? })
    }

    /// One of KVM's counters; one that is not there is zero.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(other, _)| other == name).map_or(0, |(_, value)| *value)
    }
}

/// Runs `command` until it prints `until`, weighs it, and kills it. `ram` is the size of its guest's memory in bytes; after `limit` it is
/// killed whatever it has printed.
///
/// # Errors
///
/// If it can't be started, if it ends or is killed before it prints the text (the error then holds what it printed), or if no mapping of it is as large as
/// its guest's memory.
pub fn measure(command: &mut Command, until: &str, ram: u64, limit: Duration) -> io::Result<Reading> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let watched = Arc::new(Watched::default());
    // It ends when the sender goes.
    let (alive, ended) = channel::<()>();
    let watchdog = thread::spawn({
        let watched = watched.clone();
        move || {
            if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                watched.kill();
            }
        }
    });

    let start = Instant::now();
    let mut child = command.spawn()?;
    // It stays open until the program is gone, which might otherwise have something to say about that.
    let mut stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let pid = child.id();
    watched.set(child);
    let found = wait_for(&mut stdout, until.as_bytes());
    let time = start.elapsed();
    let reading = found.and_then(|()| Ok(Reading { time, resident: Resident::of(pid, ram)?, counters: counters() }));

    watched.kill();
    drop(alive);
    // It has nothing that could panic.
    let _ = watchdog.join();
    reading
}

/// The program, shared with what kills it when its time is over.
#[derive(Default)]
struct Watched(Mutex<Program>);

#[derive(Default)]
enum Program {
    #[default]
    Starting,
    Running(Child),
    /// It is gone, or will be as soon as it has started.
    Over,
}

impl Watched {
    fn set(&self, child: Child) {
        let mut program = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *program {
            // Its time was over before it had started.
            Program::Over => end(child),
            _ => *program = Program::Running(child),
        }
    }

    fn kill(&self) {
        let mut program = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Program::Running(child) = mem::replace(&mut *program, Program::Over) {
            end(child);
        }
    }
}

fn end(mut child: Child) {
    // Both fail when it has ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn wait_for(mut from: impl Read, text: &[u8]) -> io::Result<()> {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            let message = format!(
                "it ended, or was ended, without `{}`; it printed:\n{}",
                text.escape_ascii(),
                String::from_utf8_lossy(&seen)
            );
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        seen.extend_from_slice(&buffer[..length]);
        if seen.windows(text.len()).any(|window| window == text) {
            return Ok(());
        }
    }
}

fn counters() -> Vec<(String, u64)> {
    let Ok(files) = fs::read_dir(COUNTERS) else { return Vec::new() };
    let read = |file: fs::DirEntry| {
        let value = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
        Some((file.file_name().into_string().ok()?, value))
    };
    let mut counters: Vec<_> = files.flatten().filter_map(read).filter(|(_, value)| *value != 0).collect();
    counters.sort();
    counters
}

#[cfg(test)]
#[path = "lib_test.rs"]
mod test;
