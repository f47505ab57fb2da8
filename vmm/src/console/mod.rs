//! The host's end of a serial port: the terminal, a file, a pty or a Unix socket.
//!
//! * **Output** goes out on the thread that writes it, without waiting. What the other end can't take yet is kept, up to 256 KiB, and
//!   follows once it can; beyond that the oldest bytes are lost, and counted. So a terminal that is stopped, a pipe that nobody reads or a
//!   slow client stops no vCPU. Only a regular file is waited for. What is written while no client is connected is kept the same way.
//! * **Input** is read on the control thread and handed to the port as fast as its FIFO takes it; the rest waits here, up to 1 MiB, and
//!   beyond that in the host's own buffers, so that nothing pasted is lost.
//! * The terminal is in raw mode, and back in its own mode at any exit ([`terminal`]); `Ctrl-]` then `h` shows what keys do.
//! * One client of a socket at a time; others wait until it has gone. A pty's buffer holds what nobody has read yet, but ends with skep: a
//!   client that wants the last of the output takes a socket.
//!
//! What it does not do: modem lines (they are always on), baud rates, or translation of any byte.

mod escape;
mod job;
mod output;
mod place;
pub mod terminal;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use skep_chipset::{SerialOut, SerialPort};
use skep_config::Serial;

pub use place::{ConsoleError, refuse_inputs};

use crate::leftover::Leftover;
use crate::listen::{LISTEN, Listener, RETRY};
use crate::run::{Request, Requests, StopReason, Subscriber};

use escape::{Command, Escape, Step};
use job::JobControl;
use output::{Manner, Outlet, Output, Sink};
use place::Place;
use terminal::RawTerminal;

#[cfg(test)]
#[path = "console_test.rs"]
mod test;

/// Input beyond this is left in the host's own buffers until the guest has read some.
const PENDING_LIMIT: usize = 1 << 20;
/// How much is read at once.
const CHUNK: usize = 4096;

// What an event is about.
const WAKE: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 2;
const JOB: u32 = 3;

/// One serial port's console, which runs on the control thread.
///
/// [`Console::open`] it, make the serial port with its [`Console::output`], and [`Console::attach`] the two before any vCPU thread starts:
/// that makes it a part of the control loop. When it is dropped, the terminal is handed back, and what it made on the host goes.
pub struct Console {
    outlet: Arc<Outlet>,
    /// The sink is a file whose former content goes.
    empties: bool,
    source: Option<Source>,
    listener: Option<Listener>,
    /// Input that the port had no room for.
    pending: VecDeque<u8>,
    link: Option<Link>,
    /// The sink's descriptor while the loop waits for it.
    awaited: Option<RawFd>,
    announcement: Option<String>,
    interactive: Option<Interactive>,
    _leftovers: Vec<Leftover>,
    /// The source is the user's terminal.
    terminal: bool,
    /// A pty's other end.
    _peer: Option<File>,
}

/// Where input comes from.
struct Source {
    file: File,
    watch: Watch,
}

/// How the loop follows a source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// It does not: there is enough input.
    Parked,
    /// It is told of input.
    Input,
    /// There is no more input; it is told of the other end's going.
    Hangup,
    /// Always ready, and not to be waited for: a regular file, `/dev/null`.
    Always,
}

/// The serial port, and the machine that it belongs to.
struct Link {
    port: Arc<dyn SerialPort>,
    requests: Arc<Requests>,
}

/// What a console has that is a person's terminal.
struct Interactive {
    escape: Escape,
    job: JobControl,
    _raw: RawTerminal,
}

impl Console {
    /// Opens or makes what `serial` names. A terminal and a file stay as they are until [`Console::attach`].
    ///
    /// # Errors
    ///
    /// [`ConsoleError`], by the path and what would mend it.
    pub fn open(serial: &Serial) -> Result<Self, ConsoleError> {
        let Place { sink, empties, input, terminal, listener, peer, leftovers, announcement } = Place::open(serial)?;
        let outlet = Outlet::new(sink, listener.is_some()).map_err(|e| ConsoleError::host("the wake-up", e))?;
        Ok(Console {
            outlet: Arc::new(outlet),
            empties,
            source: input.map(|file| Source { file, watch: Watch::Parked }),
            listener,
            pending: VecDeque::new(),
            link: None,
            awaited: None,
            announcement,
            interactive: None,
            _leftovers: leftovers,
            terminal,
            _peer: peer,
        })
    }

    /// Where the serial port writes.
    pub fn output(&self) -> Box<dyn SerialOut> {
        Box::new(Output::new(self.outlet.clone()))
    }

    /// Leads input to `port`, turns a terminal raw, empties a file, and tells the user on standard error where the console is. The user's wish to end the
    /// machine goes to `requests`.
    ///
    /// On a terminal it blocks SIGTSTP and SIGCONT for the calling thread and those that it starts afterwards, so that the terminal is handed
    /// back while skep is stopped.
    ///
    /// # Errors
    ///
    /// [`ConsoleError`], where the terminal, the file or a descriptor is refused.
    pub fn attach(mut self, port: Arc<dyn SerialPort>, requests: Arc<Requests>) -> Result<Subscriber, ConsoleError> {
        if self.empties {
            self.outlet.empty().map_err(|e| ConsoleError::host("the file can't be emptied", e))?;
        }
        if let Some(text) = self.announcement.take() {
            // Where nobody listens, nobody needs to know.
            let _ = writeln!(io::stderr(), "skep: {text}");
        }
        let outlet = Arc::downgrade(&self.outlet);
        port.on_space(Box::new(move || {
            if let Some(outlet) = outlet.upgrade() {
                outlet.wake();
            }
        }));
        self.link = Some(Link { port, requests });
        if let Some(source) = self.source.as_ref().filter(|_| self.terminal) {
            let job = JobControl::new().map_err(|e| ConsoleError::host("signals of job control", e))?;
            let raw = RawTerminal::enter(&source.file).map_err(|e| ConsoleError::host("the terminal's raw mode", e))?;
            self.interactive = Some(Interactive { escape: Escape::default(), job, _raw: raw });
        }
        Ok(Box::new(self))
    }

    /// Brings what the loop waits for into line with the state of the sink.
    fn follow_sink(&mut self, ops: &mut EventOps<'_>) {
        let state = self.outlet.state();
        let wanted = state.stalled.filter(|_| !state.broken);
        if self.awaited != wanted {
            if let Some(fd) = self.awaited.take() {
                unwatch(ops, fd);
            }
            if let Some(fd) = wanted {
                watch(ops, Events::with_data_raw(fd, OUTPUT, EventSet::OUT));
                self.awaited = Some(fd);
            }
        }
        if state.broken {
            self.outlet.close();
            if self.listener.is_some() {
                self.disconnect(ops);
            }
        }
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let Some(listener) = &mut self.listener else { return };
        // Two descriptors, for the loop follows each direction by its own.
        let two = |client: UnixStream| {
            Ok((File::from(OwnedFd::from(client.try_clone()?)), File::from(OwnedFd::from(client))))
        };
        if let Some((input, output)) = listener.accept(ops, two) {
            listener.deafen(ops);
            self.outlet.open(Sink::new(output, Manner::Nonblocking));
            self.source = Some(Source { file: input, watch: Watch::Parked });
            self.watch_source(ops);
            self.follow_sink(ops);
        }
    }

    /// Lets a socket's client go, and listens for the next one. Input that it sent is still the guest's.
    fn disconnect(&mut self, ops: &mut EventOps<'_>) {
        if let Some(fd) = self.awaited.take() {
            unwatch(ops, fd);
        }
        self.outlet.close();
        self.drop_source(ops);
        if let Some(listener) = &self.listener {
            listener.listen(ops);
        }
    }

    fn drop_source(&mut self, ops: &mut EventOps<'_>) {
        if let Some(Source { file, watch: Watch::Input | Watch::Hangup }) = self.source.take() {
            unwatch(ops, file.as_raw_fd());
        }
    }

    /// Follows the source again, now that there is room for its input.
    fn watch_source(&mut self, ops: &mut EventOps<'_>) {
        if let Some(source) = &mut self.source
            && source.watch == Watch::Parked
        {
            source.watch = match ops.add(Events::with_data(&source.file, INPUT, EventSet::IN)) {
                Ok(()) => Watch::Input,
                // epoll takes no regular file: it never makes one wait.
                Err(_) => Watch::Always,
            };
        }
    }

    /// Reads once, and says whether there was anything. `gone` says that the other end will not take any output either.
    fn read_source(&mut self, gone: bool, ops: &mut EventOps<'_>) -> bool {
        if self.interactive.is_some() {
            terminal::insist();
        }
        let Some(source) = &mut self.source else { return false };
        let mut chunk = [0; CHUNK];
        match source.file.read(&mut chunk) {
            Ok(0) => {
                match gone {
                    true => self.lost_source(ops),
                    false => self.end_of_input(ops),
                }
                false
            }
            Ok(count) => {
                for byte in chunk.into_iter().take(count) {
                    self.take(byte);
                }
                true
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => false,
            Err(error) => {
                tracing::debug!("console: input ends: {error}");
                self.lost_source(ops);
                false
            }
        }
    }

    /// A client that has sent everything may still listen; anything else that has ended is let go.
    fn end_of_input(&mut self, ops: &mut EventOps<'_>) {
        match &mut self.source {
            Some(source) if self.listener.is_some() && source.watch == Watch::Input => {
                source.watch = Watch::Hangup;
                if let Err(error) = ops.modify(Events::with_data(&source.file, INPUT, EventSet::empty())) {
                    tracing::error!("console: the control thread can't follow the client: {error}");
                }
            }
            _ => self.lost_source(ops),
        }
    }

    fn lost_source(&mut self, ops: &mut EventOps<'_>) {
        match self.listener {
            Some(_) => self.disconnect(ops),
            None => self.drop_source(ops),
        }
    }

    /// Takes a byte of input: the guest's, or an escape command.
    fn take(&mut self, byte: u8) {
        let step = match &mut self.interactive {
            Some(interactive) => interactive.escape.feed(byte),
            None => Step::Pass(byte),
        };
        match step {
            Step::Pass(byte) => self.pending.push_back(byte),
            Step::Wait => {}
            Step::Do(command) => self.obey(command),
        }
    }

    fn obey(&mut self, command: Command) {
        // What was typed before it comes before it.
        self.hand_over();
        match (command, &self.link) {
            (Command::Help, _) => self.outlet.write(escape::HELP.as_bytes()),
            (Command::Suspend, _) => job::suspend(),
            (Command::Quit, Some(link)) => link.requests.send(Request::Stop(StopReason::Console)),
            (Command::Break, Some(link)) => link.port.receive_break(),
            (Command::Quit | Command::Break, None) => {}
        }
    }

    /// Hands input to the port until it is full or there is none.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        loop {
            self.hand_over();
            let always = self.source.as_ref().is_some_and(|source| source.watch == Watch::Always);
            if !(always && self.pending.is_empty() && self.read_source(false, ops)) {
                break;
            }
        }
        let parked = self.source.as_ref().is_some_and(|source| source.watch == Watch::Parked);
        match &mut self.source {
            Some(source) if source.watch == Watch::Input && self.pending.len() >= PENDING_LIMIT => {
                unwatch(ops, source.file.as_raw_fd());
                source.watch = Watch::Parked;
            }
            _ if parked && self.pending.len() < PENDING_LIMIT / 2 => self.watch_source(ops),
            _ => {}
        }
    }

    fn hand_over(&mut self) {
        let Some(link) = &self.link else { return };
        while !self.pending.is_empty() {
            let (bytes, _) = self.pending.as_slices();
            let offered = bytes.len();
            let taken = link.port.receive(bytes).min(offered);
            self.pending.drain(..taken);
            if taken < offered {
                // The port calls back once the guest has made room.
                break;
            }
        }
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::with_data(self.outlet.event(), WAKE, EventSet::IN));
        if let Some(interactive) = &self.interactive {
            watch(ops, Events::with_data(interactive.job.file(), JOB, EventSet::IN));
        }
        if let Some(listener) = &self.listener {
            listener.begin(ops);
        }
        self.watch_source(ops);
        self.pump(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            WAKE => {
                self.outlet.clear_wake();
                self.follow_sink(ops);
            }
            OUTPUT => {
                self.outlet.drain();
                self.follow_sink(ops);
            }
            LISTEN => self.accept(ops),
            RETRY => {
                if let Some(listener) = &mut self.listener {
                    listener.go_on(ops);
                }
            }
            JOB => {
                if let Some(interactive) = &mut self.interactive {
                    interactive.job.process();
                }
            }
            _ => {
                let gone = events.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR);
                let ended = self.source.as_ref().is_some_and(|source| source.watch == Watch::Hangup);
                match ended && gone {
                    true => self.lost_source(ops),
                    false => drop(self.read_source(gone, ops)),
                }
            }
        }
        self.pump(ops);
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.outlet.finish();
    }
}

fn watch(ops: &mut EventOps<'_>, events: Events) {
    if let Err(error) = ops.add(events) {
        tracing::error!("console: the control thread can't wait for it: {error}");
    }
}

fn unwatch(ops: &mut EventOps<'_>, fd: RawFd) {
    if let Err(error) = ops.remove(Events::empty_raw(fd)) {
        tracing::debug!("console: the control thread did not wait for it: {error}");
    }
}
