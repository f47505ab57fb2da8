//! The terminal's escape key.

#[cfg(test)]
#[path = "escape_test.rs"]
mod test;

/// `Ctrl-]`, as telnet has it: few programs in a guest want it.
const KEY: u8 = 0x1d;

/// What `Ctrl-] h` shows.
pub(super) const HELP: &str = "\r\n\
    skep: keys after Ctrl-]\r\n  \
    q       end the machine at once, as if its power were cut\r\n  \
    z       stop skep and return to the shell (`fg` goes on)\r\n  \
    b       send a break (for Linux, with the next key: a SysRq command)\r\n  \
    Ctrl-]  send Ctrl-] itself to the guest\r\n  \
    h       show this\r\n";

/// What a user asks of skep rather than of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// End the machine.
    Quit,
    /// Stop skep, as Ctrl-Z stops other programs.
    Suspend,
    /// A break on the line.
    Break,
    /// Show the keys.
    Help,
}

/// What becomes of a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It is the guest's.
    Pass(u8),
    /// It is the escape key, and the next byte says what is wanted.
    Wait,
    /// A command.
    Do(Command),
}

/// Tells commands from input.
#[derive(Debug, Default)]
pub(super) struct Escape {
    begun: bool,
}

impl Escape {
    pub(super) fn feed(&mut self, byte: u8) -> Step {
        if !self.begun {
            self.begun = byte == KEY;
            return if self.begun { Step::Wait } else { Step::Pass(byte) };
        }
        self.begun = false;
        match byte.to_ascii_lowercase() {
            KEY => Step::Pass(KEY),
            b'q' => Step::Do(Command::Quit),
            b'z' => Step::Do(Command::Suspend),
            b'b' => Step::Do(Command::Break),
            _ => Step::Do(Command::Help),
        }
    }
}
