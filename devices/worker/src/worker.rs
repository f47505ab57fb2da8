//! The thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::PollWindow;

#[cfg(test)]
#[path = "worker_test.rs"]
mod test;

/// The token of the commands' own eventfd.
const COMMANDS: u64 = u64::MAX;
/// How many events one look at epoll takes.
const EVENTS: usize = 32;
/// After how many busy rounds, or looks at the job while polling, descriptors are looked at.
const ROUNDS: u32 = 16;

/// What a worker does.
pub trait Job: Send + 'static {
    /// What it can be told.
    type Command: Send + 'static;

    /// Adds the descriptors that wake it. Called once, before anything else, on the thread that makes the worker.
    ///
    /// # Errors
    /// Where the host refuses one.
    fn register(&mut self, sources: &Sources) -> io::Result<()>;

    /// Takes a command.
    fn command(&mut self, command: Self::Command);

    /// One of its descriptors has become ready; [`Job::work`] follows.
    fn ready(&mut self, token: u64, events: EventSet);

    /// Does what there is to do, but no more than a bounded share, and says whether there was anything. A job that does all when it is told or woken
    /// has nothing else.
    fn work(&mut self) -> bool {
        false
    }

    /// Says, without a system call, whether there may be something to do: asked again and again while the thread polls.
    fn peek(&mut self) -> bool {
        false
    }

    /// Asks to be woken from now on, before the thread sleeps, and says whether something has come meanwhile.
    fn arm(&mut self) -> bool {
        false
    }
}

/// The descriptors that wake a worker. Clones are handles to the same set.
#[derive(Clone)]
pub struct Sources(Arc<Epoll>);

impl Sources {
    fn new() -> io::Result<Self> {
        Epoll::new().map(|epoll| Self(Arc::new(epoll)))
    }

    /// Watches `fd` edge-triggered for `events`, and calls it `token`, which is not `u64::MAX`.
    ///
    /// # Errors
    /// Where the host refuses.
    pub fn add(&self, fd: &impl AsRawFd, token: u64, events: EventSet) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token);
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// Watches `fd` no longer. A descriptor that is closed need not be removed where it has no duplicate.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // It fails only for a descriptor that is not watched, and that is what is asked for.
        let _ = self.0.ctl(ControlOperation::Delete, fd.as_raw_fd(), EpollEvent::default());
    }

    /// Waits up to `timeout` milliseconds (-1: for ever), and says how many events came.
    fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> usize {
        // Interrupted by a signal is no event; every other error means a descriptor or buffer of ours is wrong, which can't be.
        self.0.wait(timeout, events).unwrap_or(0)
    }
}

impl AsRawFd for Sources {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A thread and the job that it does. Dropping it ends the thread after the round that it is in.
pub struct Worker<C> {
    commands: Option<Sender<C>>,
    wake: EventFd,
    name: String,
    /// What the thread is to run, until it has begun.
    waiting: Waiting,
    begun: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

type Waiting = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Send + 'static> Worker<C> {
    /// Starts a thread called `name` that does `job` and polls up to `poll` before it sleeps.
    ///
    /// # Errors
    /// Where the host refuses the thread or a descriptor.
    pub fn spawn(name: &str, poll: Duration, job: impl Job<Command = C>) -> io::Result<Self> {
        let worker = Self::wait(name, poll, job)?;
        worker.start()?;
        Ok(worker)
    }

    /// The same, but the thread starts with the first command, or [`Worker::begin`]: a device that no guest drives costs none.
    ///
    /// # Errors
    /// Where the host refuses a descriptor.
    pub fn wait(name: &str, poll: Duration, mut job: impl Job<Command = C>) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let sources = Sources::new()?;
        sources.add(&wake, COMMANDS, EventSet::IN)?;
        job.register(&sources)?;
        let (commands, receiver) = channel();
        let run = move || Loop { job, sources, receiver, window: PollWindow::new(poll) }.run();
        Ok(Self {
            commands: Some(commands),
            wake,
            name: name.to_owned(),
            waiting: Arc::new(Mutex::new(Some(Box::new(run)))),
            begun: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// Gives the job a command. It does not block.
    pub fn send(&self, command: C) {
        self.leave(command);
        self.begin();
    }

    /// Leaves the job a command that it is in no hurry for: where the thread has not begun, it finds it when it does.
    pub fn leave(&self, command: C) {
        if let Some(commands) = &self.commands {
            // The thread ends only when this worker is dropped, and a full counter has woken it already.
            let _ = commands.send(command);
            let _ = self.wake.write(1);
        }
    }

    /// Starts the thread if it has not begun. Where the host refuses it, that is logged, and tried again with the next command.
    pub fn begin(&self) {
        if let Err(error) = self.start() {
            tracing::error!("the thread {} can't be started, and its device stands still: {error}", self.name);
        }
    }

    fn start(&self) -> io::Result<()> {
        if self.begun.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut thread = locked(&self.thread);
        if thread.is_none() {
            let waiting = self.waiting.clone();
            let run = move || {
                let run = locked(&waiting).take();
                if let Some(run) = run {
                    run();
                }
            };
            *thread = Some(thread::Builder::new().name(self.name.clone()).spawn(run)?);
            self.begun.store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl<C> Drop for Worker<C> {
    fn drop(&mut self) {
        self.commands = None;
        let _ = self.wake.write(1);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A job that panicked has told so on its own thread.
            let _ = thread.join();
        }
    }
}

struct Loop<J: Job> {
    job: J,
    sources: Sources,
    receiver: Receiver<J::Command>,
    window: PollWindow,
}

impl<J: Job> Loop<J> {
    fn run(mut self) {
        let mut busy = 0;
        while let Some(commanded) = self.take_commands() {
            if self.job.work() || commanded {
                busy += 1;
                if busy % ROUNDS == 0 {
                    self.look(0);
                }
                continue;
            }
            busy = 0;
            if self.poll() || self.job.arm() {
                continue;
            }
            let begun = Instant::now();
            self.look(-1);
            self.window.slept(begun.elapsed());
        }
    }

    /// Whether there were any; `None` when the worker has been dropped.
    fn take_commands(&mut self) -> Option<bool> {
        let mut any = false;
        loop {
            match self.receiver.try_recv() {
                Ok(command) => {
                    self.job.command(command);
                    any = true;
                }
                Err(TryRecvError::Empty) => return Some(any),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Polls for as long as the window is open, and says whether something came.
    fn poll(&mut self) -> bool {
        let length = self.window.length();
        if length.is_zero() {
            return false;
        }
        let begun = Instant::now();
        for round in 1u32.. {
            if self.job.peek() || (round % ROUNDS == 0 && self.look(0)) {
                return true;
            }
            if begun.elapsed() >= length {
                break;
            }
            std::hint::spin_loop();
        }
        false
    }

    fn look(&mut self, timeout: i32) -> bool {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = self.sources.wait(timeout, &mut events);
        for event in events.iter().take(count) {
            if event.data() != COMMANDS {
                self.job.ready(event.data(), event.event_set());
            }
        }
        count > 0
    }
}
