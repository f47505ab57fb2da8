//! The lab's console: what programs print, and between it the marks of the host's init (see `host-init.sh`).

/// What the console tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The host lives.
    Alive,
    /// Program number n begins.
    Start(usize),
    /// Something was printed, by a program or by the host's kernel.
    Output(Vec<u8>),
    /// Program number n ended with this exit code.
    Exit(usize, i32),
    /// The host is done.
    End,
}

/// Takes the console's bytes as they come, and tells output from marks.
pub(crate) struct Console {
    /// What a mark begins with.
    prefix: Vec<u8>,
    /// Bytes that may be the beginning of a mark.
    held: Vec<u8>,
}

/// The byte that a mark begins with: ASCII's record separator.
const MARK: u8 = 0x1e;

impl Console {
    /// `word` is the word that marks are known by.
    pub(crate) fn new(word: &str) -> Console {
        let mut prefix = vec![MARK];
        prefix.extend_from_slice(word.as_bytes());
        prefix.push(b' ');
        Console { prefix, held: Vec::new() }
    }

    /// Takes what was read, and gives back what it tells.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.held.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut printed = Vec::new();
        while let Some(at) = self.held.iter().position(|&byte| byte == MARK) {
            printed.extend(self.held.drain(..at));
            let known = self.held.len().min(self.prefix.len());
            if self.held[..known] != self.prefix[..known] {
                // Some program's own byte.
                printed.extend(self.held.drain(..1));
                continue;
            }
            let Some(end) = self.held.iter().position(|&byte| byte == b'\n') else { break };
            let line: Vec<u8> = self.held.drain(..=end).collect();
            match parse(&line[self.prefix.len()..end]) {
                Some(event) => {
                    flush(&mut printed, &mut events);
                    events.push(event);
                }
                None => printed.extend(line),
            }
        }
        if self.held.first() != Some(&MARK) {
            printed.append(&mut self.held);
        }
        flush(&mut printed, &mut events);
        events
    }

    /// The console has ended: what was held back was no mark.
    pub(crate) fn rest(self) -> Vec<u8> {
        self.held
    }
}

fn flush(printed: &mut Vec<u8>, events: &mut Vec<Event>) {
    if !printed.is_empty() {
        events.push(Event::Output(std::mem::take(printed)));
    }
}

fn parse(mark: &[u8]) -> Option<Event> {
    let words: Vec<&str> = std::str::from_utf8(mark).ok()?.split_whitespace().collect();
    match words[..] {
        ["alive"] => Some(Event::Alive),
        ["start", number] => Some(Event::Start(number.parse().ok()?)),
        ["exit", number, code] => Some(Event::Exit(number.parse().ok()?, code.parse().ok()?)),
        ["end"] => Some(Event::End),
        _ => None,
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod test;
