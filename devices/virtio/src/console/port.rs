//! Ports: what the host has behind them, and what the driver is told of them (section 5.3.6.2).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::PortState;

/// The most ports of a console: each has two queues, and there are two for control.
pub(super) const MAX_PORTS: usize = 31;

/// The host's end of a port. No method waits.
pub trait PortIo: Send {
    /// Reads what the host has for the guest; 0 when it has closed the port.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while there is nothing.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Takes what the guest has for the host.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] while there is no room. Of any other error the bytes are lost.
    fn write(&mut self, from: &[u8]) -> io::Result<usize>;

    /// Ready when there is something or there is room again. Watched edge-triggered.
    fn event(&self) -> BorrowedFd<'_>;
}

/// It must not block.
impl PortIo for UnixStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Read::read(self, into)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Write::write(self, from)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// What a port is made of.
pub struct PortConfig {
    /// By which the guest finds it; up to 64 bytes are told.
    pub name: String,
    /// It is a console rather than a pipe.
    pub console: bool,
    /// The host's end.
    pub io: Box<dyn PortIo>,
}

bitflags::bitflags! {
    /// What the driver is to be told of a port. Each kind is told once however often it came about, so that it needs no queue.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub(super) struct News: u8 {
        const ADD = 1;
        const CONSOLE = 2;
        const NAME = 4;
        const OPEN = 8;
        const RESIZE = 16;
    }
}

/// `event` of a control message.
pub(super) mod event {
    pub(in crate::console) const DEVICE_READY: u16 = 0;
    pub(in crate::console) const PORT_ADD: u16 = 1;
    pub(in crate::console) const PORT_READY: u16 = 3;
    pub(in crate::console) const CONSOLE_PORT: u16 = 4;
    pub(in crate::console) const RESIZE: u16 = 5;
    pub(in crate::console) const PORT_OPEN: u16 = 6;
    pub(in crate::console) const PORT_NAME: u16 = 7;
}

/// Bytes of a control message without what follows it.
pub(super) const MESSAGE: usize = 8;
/// The longest name that is told, in bytes.
const LONGEST_NAME: usize = 64;

/// What all threads know of a port.
pub(super) struct Port {
    name: Vec<u8>,
    console: bool,
    pub(super) state: PortState,
}

impl Port {
    pub(super) fn new(config: &PortConfig) -> Self {
        let name = config.name.bytes().take(LONGEST_NAME).collect();
        Self { name, console: config.console, state: PortState { host_open: true, ..PortState::default() } }
    }

    pub(super) fn news(&self) -> News {
        News::from_bits_truncate(self.state.news)
    }

    pub(super) fn tell(&mut self, news: News) {
        self.state.news |= news.bits();
    }

    /// The driver knows the port now.
    pub(super) fn ready(&mut self) {
        self.tell(if self.console { News::CONSOLE | News::RESIZE | News::NAME } else { News::NAME });
        if self.state.host_open {
            self.tell(News::OPEN);
        }
    }

    /// Whether it is a terminal, which has a size.
    pub(super) fn is_console(&self) -> bool {
        self.console
    }

    pub(super) fn set_host_open(&mut self, open: bool) {
        if std::mem::replace(&mut self.state.host_open, open) != open {
            self.tell(News::OPEN);
        }
    }

    /// The next message for the driver about port `id`, and the news that it tells.
    pub(super) fn message(&self, id: u32, size: (u16, u16)) -> Option<(News, Vec<u8>)> {
        let news = self.news().iter().next()?;
        let message = |event: u16, value: u16, rest: &[u8]| {
            [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes(), rest].concat()
        };
        let bytes = if news == News::ADD {
            message(event::PORT_ADD, 1, &[])
        } else if news == News::CONSOLE {
            message(event::CONSOLE_PORT, 1, &[])
        } else if news == News::NAME {
            message(event::PORT_NAME, 1, &self.name)
        } else if news == News::OPEN {
            message(event::PORT_OPEN, self.state.host_open.into(), &[])
        } else {
            // The specification has columns first, and so do drivers.
            let (columns, rows) = (size.0.to_le_bytes(), size.1.to_le_bytes());
            message(event::RESIZE, 0, &[columns, rows].concat())
        };
        Some((news, bytes))
    }
}
