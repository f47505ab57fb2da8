//! Devices whose backend is another program of the host, by the vhost-user protocol: the front end.
//!
//! Follows: QEMU's "Vhost-user Protocol". The backend connects guest memory, which must be shared, and works the queues by itself: what the guest
//! kicks and what interrupts it goes past this process, where the interrupt controller takes eventfds, and else by the device's thread.
//!
//! Used: `MQ`, `REPLY_ACK`, `CONFIG` and `BACKEND_REQ` (configuration changes), `RESET_DEVICE`. Not used: logs of dirty pages, in-flight buffers,
//! memory slots, in-band notifications, post-copy, shared memory, host notifiers, and of network cards `NET_MTU`, `RARP` and segmentation that is set
//! anew while the card runs (`CTRL_GUEST_OFFLOADS`).
//!
//! * **Nobody waits for a backend** but the device's own thread, and it for a bounded time. A backend that hangs, goes away or talks nonsense is given
//!   up: the log says so, and the device asks to be reset (`DEVICE_NEEDS_RESET`). When the driver resets it, a new backend is looked for at the
//!   same socket.
//! * A queue is stopped by `GET_VRING_BASE`, and has stopped when the used ring stands where the available ring does. What a backend that was given
//!   up still does with guest memory is its own: it has it mapped.
//! * A network card's pairs of queues are all started, and those enabled for which its driver has asked; the card itself is
//!   [`crate::net::VhostUserNet`]'s.
//! * Bus mastering is looked at when a queue starts. What the backend writes is not marked dirty.

mod backend;
mod borrow;
mod channel;
mod connection;
mod error;
mod kind;
pub(crate) mod message;
mod session;
mod state;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod vhost_user_test;

use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use skep_memory::{Listener, Region, RegionKind};
use skep_state::{Persist, State, StateError, ensure};
use skep_worker::Worker;

use crate::{DeviceType, Notifier, QueueStart, Stopped, VirtioDevice, feature};
use backend::Backend;
pub use error::{TalkError, VhostUserError};
pub use kind::{MOST_TAG, VhostUserKind};
use kind::{WRITEBACK, WRITEBACK_FEATURE};
use session::{Command, Session, Shared};
pub use state::VhostUserState;

/// How long a backend may take for an answer. For the end of what is in flight it is given six times as long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a vhost-user device is made of.
#[derive(Debug, Clone)]
pub struct VhostUserConfig {
    /// What its thread is called on the host, and the device in messages.
    pub name: String,
    /// Where the backend listens.
    pub socket: PathBuf,
    /// What it is to the guest.
    pub kind: VhostUserKind,
    /// Queues for requests; of a network card, pairs of queues.
    pub queues: u16,
    /// How long the backend may take for an answer: [`PATIENCE`], but for tests.
    pub patience: Duration,
}

/// A device before a backend.
pub struct VhostUser {
    shared: Arc<Shared>,
    features: u64,
    queue_sizes: Vec<u16>,
    /// A disk's `writeback`, where the driver has set it, and what it was before.
    writeback: Mutex<Option<u8>>,
    first_writeback: u8,
    worker: Arc<Worker<Command>>,
}

impl VhostUser {
    /// Connects to the backend and asks it what it can do. It waits for its answers, each within `patience`.
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn new(config: &VhostUserConfig) -> Result<Arc<Self>, VhostUserError> {
        let queue_sizes = config.kind.queue_sizes(config.queues);
        let needs = config.kind.needs(config.queues);
        let mut backend = Backend::connect(&config.socket, needs, config.patience)?;
        let space = match needs.config {
            true => backend.config().map_err(|failure| VhostUserError::Request {
                path: config.socket.clone(),
                request: failure.request.name(),
                source: failure.source,
            })?,
            false => Vec::new(),
        };
        let features = backend.features & config.kind.known_features();
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            socket: config.socket.clone(),
            kind: config.kind.clone(),
            needs,
            features: features | backend.features & feature::TRANSPORT,
            queues: config.queues,
            patience: config.patience,
            memory: Mutex::default(),
            config: Mutex::default(),
            notifier: OnceLock::new(),
            line: Mutex::default(),
            closing: AtomicBool::new(false),
            watch: OnceLock::new(),
        });
        shared.set_config(&space);
        shared.hold(&backend);
        let session = Session::new(shared.clone(), backend);
        let worker = Worker::spawn(&config.name, Duration::ZERO, session).map_err(VhostUserError::Thread)?;
        let first_writeback = space.get(WRITEBACK).copied().unwrap_or(0);
        let (writeback, worker) = (Mutex::default(), Arc::new(worker));
        Ok(Arc::new(Self { shared, features, queue_sizes, writeback, first_writeback, worker }))
    }

    fn set_writeback(&self, value: u8) {
        if let Some(byte) = Shared::lock(&self.shared.config).get_mut(WRITEBACK) {
            *byte = value;
        }
        self.worker.send(Command::Config(WRITEBACK as u32, vec![value]));
    }

    /// Lets the backend work so many queues, from the first on: all, until it is told otherwise.
    pub(crate) fn enable_queues(&self, count: u16) {
        self.worker.send(Command::Enable(count));
    }

    /// Lets somebody be told, on the device's thread, whether there is a backend, when that changes.
    pub(crate) fn watch(&self, watch: impl Fn(bool) + Send + Sync + 'static) {
        // A device has one owner.
        let _ = self.shared.watch.set(Box::new(watch));
    }

    /// What has to follow guest memory, before a queue starts.
    #[must_use]
    pub fn listener(&self) -> Arc<dyn Listener> {
        Arc::new(Table { shared: Arc::downgrade(&self.shared), worker: Arc::downgrade(&self.worker) })
    }
}

impl Drop for VhostUser {
    fn drop(&mut self) {
        // Its thread waits no longer, and takes the end for what it is.
        self.shared.closing.store(true, Ordering::Release);
        if let Some(socket) = &*Shared::lock(&self.shared.line) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// Guest memory as a backend is told of it. It outlives its device.
struct Table {
    shared: Weak<Shared>,
    worker: Weak<Worker<Command>>,
}

impl Table {
    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Region>>)) {
        if let Some(shared) = self.shared.upgrade() {
            change(&mut Shared::lock(&shared.memory));
        }
        if let Some(worker) = self.worker.upgrade() {
            worker.send(Command::Memory);
        }
    }
}

impl Listener for Table {
    fn name(&self) -> &'static str {
        "vhost-user"
    }

    fn added(&self, region: &Arc<Region>) -> Result<(), String> {
        if region.kind() != RegionKind::Ram || self.shared.strong_count() == 0 {
            return Ok(());
        }
        if region.file().is_none() {
            return Err("other processes can't map it\n  try: --memory SIZE,shared".to_owned());
        }
        self.change(|regions| regions.push(region.clone()));
        Ok(())
    }

    fn removed(&self, region: &Arc<Region>) -> Result<(), String> {
        self.change(|regions| regions.retain(|other| other.gpa() != region.gpa()));
        Ok(())
    }
}

impl VirtioDevice for VhostUser {
    fn device_type(&self) -> DeviceType {
        self.shared.kind.device_type()
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn transport_features(&self) -> u64 {
        // A single queue is reset by the front end alone.
        self.shared.features & feature::TRANSPORT | feature::RING_RESET
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.queue_sizes.clone()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Shared::lock(&self.shared.config);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(config.iter().skip(offset)) {
            *byte = *value;
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (true, [value]) = (self.features & WRITEBACK_FEATURE != 0 && offset == WRITEBACK as u64, data) {
            let value = u8::from(*value != 0);
            *Shared::lock(&self.writeback) = Some(value);
            self.set_writeback(value);
        }
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A device has one transport for life.
        let _ = self.shared.notifier.set(notifier);
    }

    fn activate(&self, features: u64) {
        self.worker.send(Command::Activate(features));
    }

    fn start_queue(&self, start: QueueStart) {
        self.worker.send(Command::Start(Box::new(start)));
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.worker.send(Command::Stop(index, stopped));
    }
}

impl Persist for VhostUser {
    type State = VhostUserState;

    fn save(&self) -> VhostUserState {
        VhostUserState { device: self.device_type().id, writeback: *Shared::lock(&self.writeback) }
    }

    fn restore(&self, state: &VhostUserState) -> Result<(), StateError> {
        let own = self.device_type().id;
        ensure(state.device == own, VhostUserState::ID, "device", state.device, "this is a device of another type")?;
        let known = state.writeback.is_none() || self.features & WRITEBACK_FEATURE != 0;
        ensure(known, VhostUserState::ID, "writeback", own, "this device has no such setting")?;
        *Shared::lock(&self.writeback) = state.writeback;
        if let Some(value) = state.writeback {
            self.set_writeback(value);
        }
        Ok(())
    }

    fn reset(&self) {
        if Shared::lock(&self.writeback).take().is_some() {
            self.set_writeback(self.first_writeback);
        }
        self.worker.send(Command::Reset);
    }
}
