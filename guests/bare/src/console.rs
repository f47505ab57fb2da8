//! Lines of text on the serial port.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::serial;

static PROBLEMS: AtomicU32 = AtomicU32::new(0);

/// Say one line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => { $crate::console::line(format_args!($($argument)*)) };
}

/// Say what is not as it must be, and count it.
#[macro_export]
macro_rules! problem {
    ($($argument:tt)*) => { $crate::console::problem_line(format_args!($($argument)*)) };
}

/// Text on its way to the serial port, in pieces: each one costs a transition.
struct Buffer {
    bytes: [u8; 256],
    length: usize,
}

impl Buffer {
    fn flush(&mut self) {
        serial::write(self.bytes.get(..self.length).unwrap_or_default());
        self.length = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.length == self.bytes.len() {
                self.flush();
            }
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = byte;
                self.length += 1;
            }
        }
        Ok(())
    }
}

/// Write one line.
pub fn line(text: fmt::Arguments<'_>) {
    let mut buffer = Buffer { bytes: [0; 256], length: 0 };
    // The buffer never refuses.
    let _ = buffer.write_fmt(text);
    let _ = buffer.write_str("\r\n");
    buffer.flush();
}

/// Write a line that names a problem, and count it.
pub fn problem_line(text: fmt::Arguments<'_>) {
    PROBLEMS.fetch_add(1, Ordering::Relaxed);
    line(format_args!("problem: {text}"));
}

/// How many problems there were.
pub fn problems() -> u32 {
    PROBLEMS.load(Ordering::Relaxed)
}
