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
        let (mut sum, mut found, mut in_guest) = (Self::default(), false, false);
        for line in smaps.lines() {
            let (first, rest) = line.split_once(char::is_whitespace)?;
            let kib = || rest.trim().strip_suffix(" kB")?.parse::<u64>().ok();
            match first {
                "Rss:" if in_guest => sum.guest += kib()?,
                "Rss:" => sum.overhead += kib()?,
                "Anonymous:" if !in_guest => sum.anonymous += kib()?,
                _ => {}
            }
            if let Some((start, end)) = first.split_once('-') {
                let size = u64::from_str_radix(end, 16).ok()?.checked_sub(u64::from_str_radix(start, 16).ok()?)?;
                in_guest = size >= ram;
                found |= in_guest;
            }
        }
        found.then_some(sum)
    }
}

#[cfg(test)]
#[path = "resident_test.rs"]
mod test;
