//! The port that firmware writes its debug messages to.

use std::sync::{Mutex, PoisonError};

use skep_bus::{Action, Device};
use tracing::debug;

use crate::ports::PortRange;

/// Where SeaBIOS and OVMF look for it.
pub const PORTS: PortRange = PortRange { base: 0x402, size: 1, region: 0 };

/// What a read answers, by which firmware knows that somebody listens.
const PRESENT: u8 = 0xe9;
/// A longer line goes to the log in parts.
const LINE_MAX: usize = 256;

/// QEMU's debug console (`isa-debugcon`): what is written goes to the log, line by line, at level `debug` with the target `firmware`.
///
/// It has no state that a guest could see. A line that was not ended when the machine was saved stays with the machine that it was written on.
#[derive(Debug, Default)]
pub struct DebugCon {
    line: Mutex<Vec<u8>>,
}

impl DebugCon {
    /// A port that nothing was written to.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a byte, and gives the line that it ends.
    fn take(&self, byte: u8) -> Option<String> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = byte == b'\n';
        if !ends && byte != b'\r' {
            line.push(byte);
        }
        if !ends && line.len() < LINE_MAX {
            return None;
        }
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        Some(text)
    }
}

impl Device for DebugCon {
    fn read(&self, _region: u32, _offset: u64, data: &mut [u8]) {
        data.fill(PRESENT);
    }

    fn write(&self, _region: u32, _offset: u64, data: &[u8]) -> Action {
        for line in data.iter().filter_map(|byte| self.take(*byte)) {
            debug!(target: "firmware", "{line}");
        }
        Action::None
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn lines(console: &DebugCon, text: &[u8]) -> Vec<String> {
        text.iter().filter_map(|byte| console.take(*byte)).collect()
    }

    #[test]
    fn what_is_written_comes_by_lines() {
        let console = DebugCon::new();
        let mut data = [0];
        console.read(0, 0, &mut data);
        assert_eq!(data, [0xe9]);
        assert_eq!(lines(&console, b"SeaBIOS\r\n\nbo"), ["SeaBIOS", ""]);
        assert_eq!(lines(&console, b"ot\n"), ["boot"]);
        assert_eq!(lines(&console, b"\xff\n"), ["\u{fffd}"]);
        let _ = console.write(0, 0, b"to the log\n");
        assert!(console.line.lock().unwrap().is_empty());
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let console = DebugCon::new();
        assert_eq!(lines(&console, &[b'x'; 1000]).len(), 3);
        assert!(console.line.lock().unwrap().capacity() <= 2 * LINE_MAX);
    }
}
