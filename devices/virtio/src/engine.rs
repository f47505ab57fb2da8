//! The thread that works a group of queues.

use std::io;
use std::time::Duration;

use skep_worker::{EventSet, Job, Sources, Worker};

use crate::{ActiveQueue, QueueError, QueueStart, RunsOn, Stopped};

/// Tokens of doorbells: this and the queue's number. An engine's own are below.
const DOORBELL: u64 = 1 << 32;

/// What a device does with its queues, on a thread of its own.
pub(crate) trait Engine: Send + 'static {
    /// What the device can tell it.
    type Command: Send + 'static;

    /// Adds the backend's descriptors, by tokens below 2^32.
    ///
    /// # Errors
    /// Where the host refuses one.
    fn register(&mut self, _sources: &Sources) -> io::Result<()> {
        Ok(())
    }

    /// Takes what the device tells.
    fn command(&mut self, command: Self::Command, queues: &mut Queues);

    /// A descriptor of the backend's is ready.
    fn ready(&mut self, _token: u64, _events: EventSet) {}

    /// Does a bounded share of what there is to do, and says whether there was anything. Publishing is done by the caller.
    fn work(&mut self, queues: &mut Queues) -> bool;

    /// Whether there may be something to do, without a system call: a chain in any queue, where the engine doesn't know better.
    fn peek(&mut self, queues: &mut Queues) -> bool {
        queues.iter().any(ActiveQueue::has_available)
    }

    /// Before the thread sleeps: asks to be woken, and says whether something has come meanwhile.
    fn arm(&mut self, queues: &mut Queues) -> bool {
        queues.iter().map(ActiveQueue::arm).filter(|arrived| *arrived).count() > 0
    }

    /// A queue has been started; here a backend's own queue may be opened.
    ///
    /// # Errors
    /// Why the queue can't be worked. It stands still then, and the device asks to be reset.
    fn started(&mut self, _queue: &mut ActiveQueue, _sources: &Sources) -> Result<(), QueueError> {
        Ok(())
    }

    /// A queue has been closed: chains that are only held go back, what is in flight is hastened.
    fn closing(&mut self, _queue: &mut ActiveQueue) {}

    /// A queue has stopped.
    fn stopped(&mut self, _index: u16, _sources: &Sources) {}
}

/// The queues of one thread that run.
#[derive(Default)]
pub(crate) struct Queues {
    list: Vec<(ActiveQueue, Option<Stopped>)>,
}

impl Queues {
    /// The running queue of this number.
    pub(crate) fn get(&mut self, index: u16) -> Option<&mut ActiveQueue> {
        self.iter().find(|queue| queue.index() == index)
    }

    /// All of them.
    pub(crate) fn iter(&mut self) -> impl Iterator<Item = &mut ActiveQueue> {
        self.list.iter_mut().map(|(queue, _)| queue)
    }
}

enum Command<C> {
    Start(Box<QueueStart>),
    Stop(u16, Stopped),
    CallOff(u16, RunsOn),
    Engine(C),
}

/// An engine and its thread.
pub(crate) struct QueueWorker<C>(Worker<Command<C>>);

impl<C: Send + 'static> QueueWorker<C> {
    /// Starts a thread called `name`, which polls up to `poll` before it sleeps.
    pub(crate) fn spawn(name: &str, poll: Duration, engine: impl Engine<Command = C>) -> io::Result<Self> {
        Worker::spawn(name, poll, QueueJob { engine, queues: Queues::default(), sources: None }).map(Self)
    }

    /// The same, but the thread starts with the first queue: for an engine that does nothing without one.
    pub(crate) fn wait(name: &str, poll: Duration, engine: impl Engine<Command = C>) -> io::Result<Self> {
        Worker::wait(name, poll, QueueJob { engine, queues: Queues::default(), sources: None }).map(Self)
    }

    pub(crate) fn start(&self, start: QueueStart) {
        self.0.send(Command::Start(Box::new(start)));
    }

    pub(crate) fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.0.send(Command::Stop(index, stopped));
    }

    pub(crate) fn call_off_stop(&self, index: u16, runs_on: RunsOn) {
        self.0.send(Command::CallOff(index, runs_on));
    }

    pub(crate) fn tell(&self, command: C) {
        self.0.send(Command::Engine(command));
    }
}

struct QueueJob<E> {
    engine: E,
    queues: Queues,
    sources: Option<Sources>,
}

impl<E: Engine> QueueJob<E> {
    fn start(&mut self, start: QueueStart) {
        let mut queue = ActiveQueue::new(start);
        if let Some(sources) = &self.sources {
            if let Err(error) = sources.add(&**queue.doorbell(), DOORBELL | u64::from(queue.index()), EventSet::IN) {
                tracing::error!("virtio queue {} can't be woken by its doorbell: {error}", queue.index());
            }
            if let Err(error) = self.engine.started(&mut queue, sources) {
                queue.fail(&error);
            }
        }
        self.queues.list.push((queue, None));
    }

    fn stop(&mut self, index: u16, stopped: Stopped) {
        let found = self.queues.list.iter_mut().find(|(queue, _)| queue.index() == index);
        match found {
            Some((queue, waiting)) => {
                queue.close();
                self.engine.closing(queue);
                *waiting = Some(stopped);
            }
            None => stopped(Default::default()),
        }
    }

    fn call_off(&mut self, index: u16, runs_on: RunsOn) {
        let found = self.queues.list.iter_mut().find(|(queue, stopped)| queue.index() == index && stopped.is_some());
        // It has stopped, and whoever waited has heard of it.
        let Some((queue, stopped)) = found else { return };
        *stopped = None;
        queue.reopen();
        runs_on();
    }

    /// Ends the queues that are closed and have nothing in flight.
    fn finish(&mut self) {
        let mut place = 0;
        while let Some((queue, _)) = self.queues.list.get_mut(place) {
            let Some(state) = queue.finish() else {
                place += 1;
                continue;
            };
            let (queue, waiting) = self.queues.list.swap_remove(place);
            if let Some(sources) = &self.sources {
                sources.remove(&**queue.doorbell());
                self.engine.stopped(queue.index(), sources);
            }
            // What holds guest memory has gone before anybody hears of it.
            drop(queue);
            if let Some(stopped) = waiting {
                stopped(state);
            }
        }
    }
}

impl<E: Engine> Job for QueueJob<E> {
    type Command = Command<E::Command>;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        self.sources = Some(sources.clone());
        self.engine.register(sources)
    }

    fn command(&mut self, command: Self::Command) {
        match command {
            Command::Start(start) => self.start(*start),
            Command::Stop(index, stopped) => self.stop(index, stopped),
            Command::CallOff(index, runs_on) => self.call_off(index, runs_on),
            Command::Engine(command) => self.engine.command(command, &mut self.queues),
        }
    }

    fn ready(&mut self, token: u64, events: EventSet) {
        if token < DOORBELL {
            self.engine.ready(token, events);
        }
    }

    fn work(&mut self) -> bool {
        let worked = self.engine.work(&mut self.queues);
        self.queues.iter().for_each(ActiveQueue::publish);
        self.finish();
        worked
    }

    fn peek(&mut self) -> bool {
        self.engine.peek(&mut self.queues)
    }

    fn arm(&mut self) -> bool {
        self.engine.arm(&mut self.queues)
    }
}
