//! The control socket on the control thread.

use std::path::Path;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::Mode;

use super::Call;
use super::connection::{Connection, Input};
use super::protocol::{ErrorKind, Failure, Greeting, MOST_LINE, Request, VERSION, line, response};
use super::reply::{Outbox, Reply};
use crate::listen::{LISTEN, ListenError, Listener, RETRY};
use crate::run::{self, Requests, Subscriber, unwatch, watch};

#[cfg(test)]
#[path = "server_test.rs"]
mod test;

/// Clients at once. The one that was silent longest makes room for another.
const MOST_CONNECTIONS: usize = 64;
/// What an event is about: responses wait to be handed out. Connections are below, by their numbers.
const WAKE: u32 = u32::MAX - 2;
/// In messages.
const OWNER: &str = "control socket";

/// The socket of a machine, before the machine runs.
pub struct Server {
    listener: Listener,
    outbox: Arc<Outbox>,
}

impl Server {
    /// Listens at `path`, for nobody but this user.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let listener = Listener::bind(path, OWNER, Some(Mode::RUSR | Mode::WUSR))?;
        let outbox = Outbox::new().map_err(|source| ListenError::Host { path: path.to_owned(), source })?;
        tracing::info!("the machine is controlled at {}", path.display());
        Ok(Self { listener, outbox: Arc::new(outbox) })
    }

    /// Hands what clients ask for to `requests`.
    pub fn attach(self, requests: Arc<Requests>) -> Subscriber {
        let Self { listener, outbox } = self;
        Box::new(Clients { listener, outbox, requests, connections: Vec::new(), next: 0, said: 0 })
    }
}

struct Clients {
    listener: Listener,
    outbox: Arc<Outbox>,
    requests: Arc<Requests>,
    connections: Vec<Connection>,
    /// The number of the next connection.
    next: u32,
    /// How often clients have said something.
    said: u64,
}

impl Clients {
    fn accept(&mut self, ops: &mut EventOps<'_>) {
        let Some(stream) = self.listener.accept(ops, Ok) else { return };
        if self.connections.len() >= MOST_CONNECTIONS {
            self.make_room(ops);
        }
        let mut connection = Connection::new(self.free_number(), stream);
        connection.spoke = self.said;
        let events = Events::with_data(connection.stream(), connection.number, EventSet::IN);
        watch(ops, events, OWNER);
        connection.watched = EventSet::IN;
        connection.write(&line(&Greeting { protocol: VERSION, skep: env!("CARGO_PKG_VERSION").to_owned() }));
        self.connections.push(connection);
        self.settle(self.connections.len() - 1, ops);
    }

    /// A number that no connection has, nor a reply to one that has just gone.
    fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = (number + 1) % WAKE;
            if self.connections.iter().all(|connection| connection.number != number) {
                return number;
            }
        }
    }

    /// Lets a client go: one with nothing under way, if there is one, and of these the one that was silent longest.
    fn make_room(&mut self, ops: &mut EventOps<'_>) {
        let silent = |(_, connection): &(usize, &Connection)| (!connection.is_idle(), connection.spoke);
        if let Some((index, _)) = self.connections.iter().enumerate().min_by_key(silent) {
            tracing::warn!("{OWNER}: {MOST_CONNECTIONS} clients at once: the one that was silent longest goes");
            self.close(index, ops);
        }
    }

    fn close(&mut self, index: usize, ops: &mut EventOps<'_>) {
        let connection = self.connections.swap_remove(index);
        unwatch(ops, connection.stream(), OWNER);
    }

    /// Takes what a client has said, as far as it is listened to, and waits for what is to come.
    fn settle(&mut self, index: usize, ops: &mut EventOps<'_>) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        while let Some(input) = connection.next() {
            let refuse = |id, failure| response(id, &Err(failure));
            match input {
                Input::TooLong => {
                    let text = format!("a request has at most {MOST_LINE} bytes");
                    connection.write(&refuse(None, Failure::new(ErrorKind::BadRequest, text)));
                }
                Input::Line(text) => match Request::read(&text) {
                    Request { id, command: Ok(command) } => {
                        connection.begin();
                        let reply = Reply::new(&self.outbox, connection.number, id);
                        self.requests.send(run::Request::Command(Call { command, reply }));
                    }
                    Request { id, command: Err(failure) } => connection.write(&refuse(id, failure)),
                },
            }
        }
        let Some(wanted) = connection.wanted() else { return self.close(index, ops) };
        if wanted != connection.watched {
            connection.watched = wanted;
            let events = Events::with_data(connection.stream(), connection.number, wanted);
            if let Err(error) = ops.modify(events) {
                tracing::error!("{OWNER}: the control thread can't follow a client: {error}");
            }
        }
    }

    fn index(&self, number: u32) -> Option<usize> {
        self.connections.iter().position(|connection| connection.number == number)
    }

    /// Hands out the responses that there are.
    fn respond(&mut self, mut settle: impl FnMut(&mut Self, usize)) {
        for (number, line) in self.outbox.take() {
            // A client that has gone misses it.
            let Some(index) = self.index(number) else { continue };
            if let Some(connection) = self.connections.get_mut(index) {
                connection.finish();
                connection.write(&line);
            }
            settle(self, index);
        }
    }
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.listener.begin(ops);
        watch(ops, Events::with_data(self.outbox.event(), WAKE, EventSet::IN), OWNER);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            LISTEN => self.accept(ops),
            RETRY => self.listener.go_on(ops),
            WAKE => self.respond(|clients, index| clients.settle(index, ops)),
            number => {
                let Some(index) = self.index(number) else { return };
                let Some(connection) = self.connections.get_mut(index) else { return };
                self.said += 1;
                connection.spoke = self.said;
                if events.event_set().intersects(EventSet::HANG_UP | EventSet::ERROR) {
                    connection.hang_up();
                }
                connection.flush();
                connection.read();
                self.settle(index, ops);
            }
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        // What was done last is told, as far as clients take it at once.
        self.respond(|_, _| {});
    }
}
