//! What a process has in memory (proc_pid_smaps(5)).

use std::fs;
use std::io;

/// What a virtual machine monitor has in memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Everything but the guest's memory: what the monitor costs.
    pub overhead: u64,
    /// What of it is no file's: heap, stacks, data that was written to.
    pub anonymous: u64,
    /// The guest's memory, as far as it has been touched.
    pub guest: u64,
}

impl Resident {
    /// What the process `pid` has, whose guest has `ram` bytes of memory.
    ///
    /// # Errors
    ///
    /// If it can't be read, or if no mapping is as large as the guest's memory.
    pub fn of(pid: u32, ram: u64) -> io::Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path)?;
        Self::parse(&text, ram).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{path}: no mapping as large as the guest's memory"))
        })
    }

    fn parse(smaps: &str, ram: u64) -> Option<Self> {
        let mut runs: Vec<Run> = Vec::new();
        for line in smaps.lines() {
            let (first, rest) = line.split_once(char::is_whitespace)?;
            let kib = || rest.trim().strip_suffix(" kB")?.parse::<u64>().ok();
            match (first, runs.last_mut()) {
                ("Rss:", Some(run)) => run.resident += kib()?,
                ("Anonymous:", Some(run)) => run.anonymous += kib()?,
                (range, last) => {
                    let Some((start, end)) = range.split_once('-') else { continue };
                    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
                    let (rights, path) = (rest.get(..4)?, rest.split_whitespace().nth(4));
                    let kind = (rights.to_owned(), path.map(str::to_owned));
                    match last {
                        Some(run) if run.end == start && run.kind == kind => run.end = end,
                        _ => runs.push(Run { start, end, kind, resident: 0, anonymous: 0 }),
                    }
                }
            }
        }
        let (guest, own): (Vec<_>, Vec<_>) = runs.iter().partition(|run| run.end - run.start >= ram);
        let sum = |runs: &[&Run], of: fn(&Run) -> u64| runs.iter().map(|run| of(run)).sum();
        (!guest.is_empty()).then(|| Self {
            overhead: sum(&own, |run| run.resident),
            anonymous: sum(&own, |run| run.anonymous),
            guest: sum(&guest, |run| run.resident),
        })
    }
}

/// Mappings side by side of the same rights and the same file: the guest's memory is one such, in parts that were given different advice.
struct Run {
    start: u64,
    end: u64,
    kind: (String, Option<String>),
    resident: u64,
    anonymous: u64,
}

#[cfg(test)]
#[path = "resident_test.rs"]
mod test;
