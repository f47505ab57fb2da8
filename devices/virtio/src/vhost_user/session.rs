//! The thread that talks with a backend: nobody else ever waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use skep_memory::Region;
use skep_memory::vm_memory::{Bytes, GuestAddress};
use skep_worker::{EventSet, Job, Sources};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Needs};
use super::kind::VhostUserKind;
use crate::{Notifier, QueueStart, QueueState, Stopped};

/// Tokens of what wakes the thread: the connection, the backend's own channel, and from here on the queues' calls.
const CONNECTION: u64 = 0;
const CHANNEL: u64 = 1;
const CALLS: u64 = 1 << 32;
/// How often the ring is looked at while a backend that has stopped a queue still uses its buffers.
const LOOK: Duration = Duration::from_millis(1);

/// What the device tells its thread.
pub(super) enum Command {
    Activate(u64),
    Start(Box<QueueStart>),
    Stop(u16, Stopped),
    /// Guest memory is another one.
    Memory,
    Config(u32, Vec<u8>),
    /// So many queues, from the first on, are worked; the others rest.
    Enable(u16),
    Reset,
}

/// Who wants to know whether there is a backend.
pub(super) type Watch = Box<dyn Fn(bool) + Send + Sync>;

/// What the thread shares with the device.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) kind: VhostUserKind,
    pub(super) needs: Needs,
    /// The backend's features when the device was made, on which the guest counts.
    pub(super) features: u64,
    pub(super) queues: u16,
    pub(super) patience: Duration,
    pub(super) memory: Mutex<Vec<Arc<Region>>>,
    /// The configuration space as the guest reads it.
    pub(super) config: Mutex<Vec<u8>>,
    pub(super) notifier: OnceLock<Arc<dyn Notifier>>,
    /// The connection, to be hung up when the device goes.
    pub(super) line: Mutex<Option<Arc<UnixStream>>>,
    /// The device goes: it was us who hung up.
    pub(super) closing: AtomicBool,
    /// Told on the thread whether there is a backend, when that changes.
    pub(super) watch: OnceLock<Watch>,
}

impl Shared {
    pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes on what the backend's configuration space is.
    pub(super) fn set_config(&self, config: &[u8]) {
        *Self::lock(&self.config) = self.kind.config(self.queues, config);
    }

    /// Tells whether there is a backend.
    fn tell_watch(&self, there: bool) {
        if let Some(watch) = self.watch.get() {
            watch(there);
        }
    }

    /// Remembers the connection of a backend.
    pub(super) fn hold(&self, backend: &Backend) {
        *Self::lock(&self.line) = Some(backend.connection.socket().clone());
    }
}

/// A queue that the guest has started.
struct Running {
    start: QueueStart,
    /// By which the backend interrupts, where the thread passes that on.
    call: Option<Arc<EventFd>>,
    /// The backend works it; else it stands still until it is reset.
    alive: bool,
}

impl Running {
    /// The used ring's index: what the driver has been given back. No device reads the ring itself here, so no barrier is needed but the load's.
    fn used(&self) -> Option<u16> {
        let memory = self.start.dma.memory().ok()?;
        memory.load(GuestAddress(self.start.config.used + 2), Ordering::Acquire).map(u16::from_le).ok()
    }

    /// What is left of a queue whose backend can't be asked.
    fn lost(&self) -> QueueState {
        QueueState { next: self.used().unwrap_or(self.start.state.next), broken: true }
    }
}

/// The thread's job.
pub(super) struct Session {
    shared: Arc<Shared>,
    backend: Option<Backend>,
    /// The driver's features, once it is ready.
    features: Option<u64>,
    queues: BTreeMap<u16, Running>,
    /// How many of them, by their numbers, are to be worked.
    enabled: u16,
    sources: Option<Sources>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, backend: Backend) -> Self {
        Self {
            shared,
            backend: Some(backend),
            features: None,
            queues: BTreeMap::new(),
            enabled: u16::MAX,
            sources: None,
        }
    }

    /// Watches what the backend says of its own accord.
    fn watch(&self) -> io::Result<()> {
        let (Some(sources), Some(backend)) = (&self.sources, &self.backend) else { return Ok(()) };
        let closes = EventSet::IN | EventSet::READ_HANG_UP;
        sources.add(&**backend.connection.socket(), CONNECTION, closes)?;
        if let Some(channel) = &backend.channel {
            sources.add(channel, CHANNEL, closes)?;
        }
        Ok(())
    }

    /// The backend is of no use any more: what it has of this guest stays unfinished, and the driver is told.
    fn fail(&mut self, why: &dyn std::fmt::Display) {
        let Some(backend) = self.backend.take() else { return };
        let Shared { name, socket, closing, .. } = &*self.shared;
        if !closing.load(Ordering::Acquire) {
            tracing::error!(
                "`{name}`: the vhost-user backend at `{}` is given up, and the guest must reset the device once there is another: {why}",
                socket.display()
            );
        }
        if let Some(sources) = &self.sources {
            sources.remove(&**backend.connection.socket());
            if let Some(channel) = &backend.channel {
                sources.remove(channel);
            }
        }
        // Nothing that it says later is heard, and its requests are not answered.
        let _ = backend.connection.socket().shutdown(std::net::Shutdown::Both);
        *Shared::lock(&self.shared.line) = None;
        self.queues.values_mut().for_each(|queue| queue.alive = false);
        self.shared.tell_watch(false);
        self.need_reset();
    }

    fn need_reset(&self) {
        if let Some(notifier) = self.shared.notifier.get() {
            notifier.needs_reset();
        }
    }

    /// Does something with the backend, which is given up where that fails.
    fn with<T, E: std::fmt::Display>(&mut self, act: impl FnOnce(&mut Backend, &Shared) -> Result<T, E>) -> Option<T> {
        let shared = self.shared.clone();
        let backend = self.backend.as_mut()?;
        act(backend, &shared).map_err(|error| self.fail(&error)).ok()
    }

    /// Connects anew to a backend that has come again, if it can do what the guest knows the device for.
    fn revive(&mut self) -> bool {
        if self.backend.is_some() {
            return true;
        }
        let shared = self.shared.clone();
        let connected = Backend::connect(&shared.socket, shared.needs, shared.patience);
        let mut backend = match connected {
            Ok(backend) => backend,
            Err(error) => {
                tracing::error!("`{}`: {error}", shared.name);
                return false;
            }
        };
        if shared.features & !backend.features != 0 {
            tracing::error!("`{}`: the new vhost-user backend lacks features of the one before", shared.name);
            return false;
        }
        if shared.needs.config {
            match backend.config() {
                Ok(config) => shared.set_config(&config),
                Err(error) => {
                    tracing::error!("`{}`: {error}", shared.name);
                    return false;
                }
            }
        }
        tracing::info!("`{}`: connected to another vhost-user backend", shared.name);
        shared.hold(&backend);
        self.backend = Some(backend);
        shared.tell_watch(true);
        if let Err(error) = self.watch() {
            self.fail(&error);
        }
        self.backend.is_some()
    }

    fn activate(&mut self, features: u64) {
        self.features = Some(features);
        if !self.revive() {
            return self.need_reset();
        }
        self.with(|backend, shared| {
            backend.set_features(features & shared.features)?;
            backend.set_memory(&Shared::lock(&shared.memory).clone())
        });
    }

    fn start(&mut self, start: QueueStart) {
        let index = start.index;
        let mut queue = Running { start, call: None, alive: false };
        if queue.start.state.broken {
            // It stood still when it was stopped.
        } else if let Err(why) = check(&queue.start) {
            tracing::warn!("virtio queue {index} stands still until the driver resets it: {why}");
            queue.start.state.broken = true;
            self.need_reset();
        } else if self.backend.is_some() {
            match self.call(index) {
                Ok((event, ours)) => {
                    queue.call = ours.then(|| event.clone());
                    let QueueStart { config, state, doorbell, .. } = &queue.start;
                    let enabled = index < self.enabled;
                    let started = self.with(|backend, _| {
                        backend.start_queue(index, config, state.next, &event, doorbell)?;
                        backend.enable_queue(index, enabled)
                    });
                    queue.alive = started.is_some();
                    // What has been made available while nobody looked.
                    let _ = doorbell.write(1);
                }
                Err(error) => self.fail(&error),
            }
        }
        self.queues.insert(index, queue);
    }

    /// Lets so many queues be worked.
    fn enable(&mut self, count: u16) {
        let before = std::mem::replace(&mut self.enabled, count);
        let changed = before.min(count)..before.max(count);
        let running = self.queues.range(changed).filter(|(_, queue)| queue.alive).map(|(index, _)| *index);
        for index in running.collect::<Vec<_>>() {
            self.with(|backend, _| backend.enable_queue(index, index < count));
        }
    }

    /// What a backend interrupts by, and whether it is for the thread to pass on.
    fn call(&self, index: u16) -> io::Result<(Arc<EventFd>, bool)> {
        if let Some(event) = self.shared.notifier.get().and_then(|notifier| notifier.used_eventfd(index)) {
            return Ok((Arc::new(event), false));
        }
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        if let Some(sources) = &self.sources {
            sources.add(&event, CALLS | u64::from(index), EventSet::IN)?;
        }
        Ok((Arc::new(event), true))
    }

    fn stop(&mut self, index: u16, stopped: Stopped) {
        let Some(queue) = self.queues.remove(&index) else { return stopped(QueueState::default()) };
        let state = if queue.start.state.broken {
            queue.start.state
        } else if queue.alive {
            self.with(|backend, _| drain(backend, &queue)).unwrap_or_else(|| queue.lost())
        } else {
            queue.lost()
        };
        if let Some(call) = queue.call {
            if let Some(sources) = &self.sources {
                sources.remove(&*call);
            }
            pass_on(&call, &self.shared, index);
        }
        stopped(state);
    }

    /// What the backend says of its own accord.
    fn listen(&mut self) {
        loop {
            let said = self.with(|backend, _| backend.channel.as_mut().map_or(Ok(Default::default()), |c| c.listen()));
            let Some(said) = said else { return };
            if said.config_changed
                && let Some(config) = self.with(|backend, _| backend.config())
            {
                self.shared.set_config(&config);
                if let Some(notifier) = self.shared.notifier.get() {
                    notifier.config_changed();
                }
            }
            if !said.more {
                return;
            }
        }
    }
}

/// What a driver has set up must be a queue in RAM, as for any device: the backend is another program, and is to be bothered with no nonsense.
fn check(start: &QueueStart) -> Result<(), String> {
    let memory = start.dma.memory().map_err(|error| error.to_string())?;
    start.config.check(&memory, start.max_size).map_err(|error| error.to_string())
}

/// Stops a queue. A backend that stops one and still uses its buffers is waited for, and then hears no more.
fn drain(backend: &mut Backend, queue: &Running) -> Result<QueueState, String> {
    let next = backend.stop_queue(queue.start.index).map_err(|error| error.to_string())?;
    let end = Instant::now() + backend.drain_patience();
    while queue.used().is_some_and(|used| used != next) {
        if Instant::now() >= end {
            return Err("it has stopped a queue with requests in flight, and does not end them".to_owned());
        }
        backend.connection.check().map_err(|error| error.to_string())?;
        std::thread::sleep(LOOK);
    }
    Ok(QueueState { next, broken: false })
}

fn pass_on(call: &EventFd, shared: &Shared, index: u16) {
    if call.read().is_ok()
        && let Some(notifier) = shared.notifier.get()
    {
        notifier.used(index);
    }
}

impl Job for Session {
    type Command = Command;

    fn register(&mut self, sources: &Sources) -> io::Result<()> {
        self.sources = Some(sources.clone());
        self.watch()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Activate(features) => self.activate(features),
            Command::Start(start) => self.start(*start),
            Command::Stop(index, stopped) => self.stop(index, stopped),
            Command::Memory if self.features.is_some() => {
                self.with(|backend, shared| backend.set_memory(&Shared::lock(&shared.memory).clone()));
            }
            Command::Memory => {}
            Command::Config(offset, data) => {
                self.with(|backend, _| backend.set_config(offset, &data));
            }
            Command::Enable(count) => self.enable(count),
            Command::Reset => {
                self.features = None;
                self.with(|backend, _| backend.reset());
            }
        }
    }

    fn ready(&mut self, token: u64, _events: EventSet) {
        match token {
            CONNECTION => {
                self.with(|backend, _| backend.connection.check());
            }
            CHANNEL => self.listen(),
            _ => {
                let index = (token & 0xffff) as u16;
                if let Some(call) = self.queues.get(&index).and_then(|queue| queue.call.as_ref()) {
                    pass_on(call, &self.shared, index);
                }
            }
        }
    }
}
