//! The traditional memory balloon (section 5.5): the guest gives pages back to the host, and takes them again when it needs them.
//!
//! The host says how much it would like to have ([`Balloon::set_target`]); what the guest puts into the balloon, or reports to be free, goes
//! back to the host at once, in whole pages of the host. What it takes out again comes when it is touched.
//!
//! Offered: `STATS_VQ`, `DEFLATE_ON_OOM` by configuration, `PAGE_REPORTING`. Not offered: `MUST_TELL_HOST` (nobody needs to be told), free
//! page hints, page poison.

mod engine;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod balloon_test;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use skep_state::{Persist, StateError};

use crate::config::ConfigSpace;
use crate::engine::QueueWorker;
use crate::{DeviceType, Notifier, QueueStart, Stopped, VirtioDevice};
use engine::{BalloonEngine, Command, Role};
pub use state::BalloonState;

/// Feature bits (section 5.5.3).
mod feature {
    pub(super) const STATISTICS: u64 = 1 << 1;
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const REPORTING: u64 = 1 << 5;
}

/// A balloon's page, whatever those of guest and host are.
pub(crate) const PAGE: u64 = 4096;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// Where `actual` is in the configuration (section 5.5.4).
const ACTUAL: u64 = 4;

/// What a guest tells of its memory (section 5.5.6.4), as far as it does. It may tell anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Bytes swapped in.
    pub swap_in: Option<u64>,
    /// Bytes swapped out.
    pub swap_out: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Bytes that nobody uses.
    pub free: Option<u64>,
    /// Bytes that the guest has.
    pub total: Option<u64>,
    /// Bytes that could be had without swapping.
    pub available: Option<u64>,
    /// Bytes of caches that could be given up.
    pub caches: Option<u64>,
}

impl Statistics {
    fn set(&mut self, tag: u64, value: u64) {
        let place = match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            _ => return,
        };
        *place = Some(value);
    }
}

/// A balloon.
pub struct Balloon {
    deflate_on_oom: bool,
    target: AtomicU32,
    actual: AtomicU32,
    statistics: Arc<Mutex<Option<Statistics>>>,
    worker: QueueWorker<Command>,
    notifier: OnceLock<Arc<dyn Notifier>>,
}

impl Balloon {
    /// A balloon called `name` on the host, from which the guest may take pages when it runs out of memory, if `deflate_on_oom`.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub fn new(name: &str, deflate_on_oom: bool) -> io::Result<Arc<Self>> {
        let engine = BalloonEngine::default();
        let statistics = engine.statistics.clone();
        let worker = QueueWorker::spawn(name, Duration::ZERO, engine)?;
        Ok(Arc::new(Self {
            deflate_on_oom,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            statistics,
            worker,
            notifier: OnceLock::new(),
        }))
    }

    /// Asks the guest for so many bytes, in pages of 4 KiB.
    pub fn set_target(&self, bytes: u64) {
        self.target.store(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX), Ordering::Release);
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }

    /// How many bytes the guest was asked for.
    #[must_use]
    pub fn target(&self) -> u64 {
        u64::from(self.target.load(Ordering::Acquire)) * PAGE
    }

    /// How many bytes the guest says that it has given.
    #[must_use]
    pub fn actual(&self) -> u64 {
        u64::from(self.actual.load(Ordering::Acquire)) * PAGE
    }

    /// What the guest has last told of its memory.
    #[must_use]
    pub fn statistics(&self) -> Option<Statistics> {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the guest to tell anew.
    pub fn refresh_statistics(&self) {
        self.worker.tell(Command::Refresh);
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::BALLOON
    }

    fn features(&self) -> u64 {
        let deflate = if self.deflate_on_oom { feature::DEFLATE_ON_OOM } else { 0 };
        feature::STATISTICS | feature::REPORTING | deflate
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.save();
        let mut config = ConfigSpace::<16>::new();
        config.put(0, state.target);
        config.put(ACTUAL as usize, state.actual);
        config.read(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            self.actual.store(u32::from_le_bytes(actual), Ordering::Release);
        }
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A device has one transport for life.
        let _ = self.notifier.set(notifier);
    }

    fn activate(&self, features: u64) {
        let mut roles = vec![Role::Inflate, Role::Deflate];
        for (feature, role) in [(feature::STATISTICS, Role::Statistics), (feature::REPORTING, Role::Report)] {
            if features & feature != 0 {
                roles.push(role);
            }
        }
        self.worker.tell(Command::Activate(roles));
    }

    fn start_queue(&self, start: QueueStart) {
        self.worker.start(start);
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.worker.begin_stop(index, stopped);
    }
}

impl Persist for Balloon {
    type State = BalloonState;

    fn save(&self) -> BalloonState {
        BalloonState { target: self.target.load(Ordering::Acquire), actual: self.actual.load(Ordering::Acquire) }
    }

    fn restore(&self, state: &BalloonState) -> Result<(), StateError> {
        self.target.store(state.target, Ordering::Release);
        self.actual.store(state.actual, Ordering::Release);
        Ok(())
    }

    /// The target is the host's wish, and stays.
    fn reset(&self) {
        self.actual.store(0, Ordering::Release);
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
