//! The block device (section 5.2), before a [`skep_block::Disk`].
//!
//! Each queue has a thread and a way to the disk of its own. Reads, writes, flushes, discards and zeroes go to the disk without a copy; many
//! may be in flight. Where the driver does not flush, or has asked for write-through, each write waits for the medium.
//!
//! Offered: `SEG_MAX`, `BLK_SIZE`, `TOPOLOGY`, `FLUSH`, `CONFIG_WCE`, `MQ`, `DISCARD`, `WRITE_ZEROES`, `RO`. Not offered: geometry, lifetime,
//! secure erase, zones.

mod engine;
mod request;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod blk_test;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use skep_block::{Disk, ResizeSubscription};
use skep_state::{Persist, StateError};

use crate::config::ConfigSpace;
use crate::engine::QueueWorker;
use crate::{DeviceType, Notifier, QueueStart, RunsOn, Stopped, VirtioDevice};
use engine::BlkEngine;
use request::{ID_LEN, MAX_RANGE, SECTOR};
pub use state::BlkState;

/// Feature bits (section 5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const CONFIG_WCE: u64 = 1 << 11;
    pub(super) const MULTI_QUEUE: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Where `writeback` is in the configuration (section 5.2.4).
const WRITEBACK: u64 = 32;
/// Bytes of the configuration, up to what belongs to features that are not offered.
const CONFIG_SIZE: usize = 60;

/// What a block device is made of.
pub struct BlkConfig {
    /// What its threads are called on the host.
    pub name: String,
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// How many queues, 1 at least: one for each vCPU is usual.
    pub queues: u16,
    /// The serial number that the guest sees: 20 bytes at most.
    pub serial: String,
    /// How long a queue's thread polls before it sleeps.
    pub poll: Duration,
}

/// A block device. Its transport must have stopped it before it is dropped, or else dropping it waits for what the disk has in flight.
pub struct Blk {
    disk: Arc<dyn Disk>,
    workers: Vec<QueueWorker<()>>,
    /// What the driver has asked for.
    writeback: AtomicBool,
    /// The driver knows how to flush, and so may leave something unwritten.
    flushes: AtomicBool,
    /// What follows from both: the threads look at it.
    through: Arc<AtomicBool>,
    notifier: Arc<OnceLock<Arc<dyn Notifier>>>,
    _resize: ResizeSubscription,
}

impl Blk {
    /// A block device.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub fn new(config: &BlkConfig) -> io::Result<Arc<Self>> {
        let mut id = [0; ID_LEN];
        for (byte, value) in id.iter_mut().zip(config.serial.bytes()) {
            *byte = value;
        }
        let through = Arc::new(AtomicBool::new(false));
        let worker = |index| {
            let engine = BlkEngine::new(index, config.disk.clone(), through.clone(), id);
            QueueWorker::wait(&format!("{}:{index}", config.name), config.poll, engine)
        };
        let workers = (0..config.queues.max(1)).map(worker).collect::<io::Result<Vec<_>>>()?;
        let notifier = Arc::new(OnceLock::<Arc<dyn Notifier>>::new());
        let tell = notifier.clone();
        let resize = config.disk.on_resize(Arc::new(move |_size| {
            if let Some(notifier) = tell.get() {
                notifier.config_changed();
            }
        }));
        let device = Self {
            writeback: AtomicBool::new(config.disk.info().write_cache),
            flushes: AtomicBool::new(false),
            disk: config.disk.clone(),
            workers,
            through,
            notifier,
            _resize: resize,
        };
        device.decide();
        Ok(Arc::new(device))
    }

    fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Release);
        self.decide();
    }

    fn decide(&self) {
        let back = self.writeback.load(Ordering::Acquire) && self.flushes.load(Ordering::Acquire);
        self.through.store(self.disk.info().write_cache && !back, Ordering::Release);
    }

    fn config(&self) -> ConfigSpace<CONFIG_SIZE> {
        let info = self.disk.info();
        let per_block = |bytes: u32| (bytes / SECTOR as u32).max(1);
        let mut config = ConfigSpace::new();
        config.put(0, info.size / SECTOR);
        // A chain has a descriptor for the header and one for the status besides.
        config.put(12, u32::from(QUEUE_SIZE) - 2);
        config.put(20, info.block_size);
        config.put(24, (info.preferred_size / info.block_size).max(1).ilog2() as u8);
        config.put(26, (info.preferred_size / info.block_size).max(1) as u16);
        config.put(WRITEBACK as usize, u8::from(self.writeback.load(Ordering::Acquire)));
        config.put(34, self.workers.len() as u16);
        config.put(36, MAX_RANGE);
        config.put(40, 1u32);
        config.put(44, per_block(info.preferred_size));
        config.put(48, MAX_RANGE);
        config.put(52, 1u32);
        config.put(56, 1u8);
        config
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        let info = self.disk.info();
        let mut features = feature::SEG_MAX | feature::BLOCK_SIZE | feature::TOPOLOGY | feature::FLUSH;
        if info.read_only {
            features |= feature::READ_ONLY;
        } else {
            features |= feature::WRITE_ZEROES;
            features |= if info.discard { feature::DISCARD } else { 0 };
            features |= if info.write_cache { feature::CONFIG_WCE } else { 0 };
        }
        features | if self.workers.len() > 1 { feature::MULTI_QUEUE } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.workers.len()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if self.features() & feature::CONFIG_WCE != 0
            && let (WRITEBACK, [writeback]) = (offset, data)
        {
            self.set_writeback(*writeback != 0);
        }
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A device has one transport for life.
        let _ = self.notifier.set(notifier);
    }

    fn activate(&self, features: u64) {
        self.flushes.store(features & feature::FLUSH != 0, Ordering::Release);
        self.decide();
    }

    fn start_queue(&self, start: QueueStart) {
        if let Some(worker) = self.workers.get(usize::from(start.index)) {
            worker.start(start);
        }
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        if let Some(worker) = self.workers.get(usize::from(index)) {
            worker.begin_stop(index, stopped);
        }
    }

    fn call_off_stop(&self, index: u16, runs_on: RunsOn) {
        if let Some(worker) = self.workers.get(usize::from(index)) {
            worker.call_off_stop(index, runs_on);
        }
    }
}

impl Persist for Blk {
    type State = BlkState;

    fn save(&self) -> BlkState {
        BlkState { writeback: self.writeback.load(Ordering::Acquire) }
    }

    fn restore(&self, state: &BlkState) -> Result<(), StateError> {
        self.set_writeback(state.writeback);
        Ok(())
    }

    fn reset(&self) {
        self.flushes.store(false, Ordering::Release);
        self.set_writeback(self.disk.info().write_cache);
    }
}
