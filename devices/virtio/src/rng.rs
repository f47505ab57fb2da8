//! The entropy device (section 5.4): one queue, whose buffers are filled with random bytes of the host's kernel.
//!
//! What a driver asks for at once is cut to [`MAX_BYTES`], as the specification allows, so that no request keeps the thread for long.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use skep_state::{Persist, State, StateError};

use crate::engine::{Engine, QueueWorker, Queues};
use crate::{ActiveQueue, Chain, DeviceType, QueueError, QueueStart, Stopped, VirtioDevice};

#[cfg(test)]
#[path = "rng_test.rs"]
mod test;

/// The most that one request is answered with, in bytes: whatever a guest asks for, the host works no more for it.
pub const MAX_BYTES: usize = 4096;
/// Requests of one round.
const BATCH: usize = 16;
const QUEUE_SIZE: u16 = 64;

/// An entropy device.
pub struct Rng {
    worker: QueueWorker<()>,
}

impl Rng {
    /// An entropy device called `name` on the host.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub fn new(name: &str) -> io::Result<Arc<Self>> {
        // A guest asks now and then, so there is nothing to poll for.
        let worker = QueueWorker::wait(name, Duration::ZERO, RngEngine { bytes: [0; MAX_BYTES] })?;
        Ok(Arc::new(Self { worker }))
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start_queue(&self, start: QueueStart) {
        self.worker.start(start);
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.worker.begin_stop(index, stopped);
    }
}

struct RngEngine {
    bytes: [u8; MAX_BYTES],
}

impl RngEngine {
    /// Says how many bytes were written.
    fn fill(&mut self, queue: &mut ActiveQueue, chain: &Chain) -> Result<u32, QueueError> {
        let Some(memory) = queue.memory() else { return Ok(0) };
        let wanted = usize::try_from(chain.writable().len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let bytes = &mut self.bytes[..wanted];
        // Up to 256 bytes come whole; of more, what a signal leaves is an answer as well.
        let got = getrandom(&mut *bytes, GetRandomFlags::empty()).unwrap_or(0);
        let bytes = bytes.get(..got).unwrap_or_default();
        chain.writable().write(&memory, 0, bytes).map(|written| written as u32)
    }
}

impl Engine for RngEngine {
    type Command = ();

    fn command(&mut self, (): (), _queues: &mut Queues) {}

    fn work(&mut self, queues: &mut Queues) -> bool {
        let Some(queue) = queues.get(0) else { return false };
        for done in 0..BATCH {
            let Some(chain) = queue.pop() else { return done > 0 };
            let filled = self.fill(queue, &chain);
            queue.complete(chain, filled.as_ref().copied().unwrap_or(0));
            if let Err(error) = filled {
                queue.fail(&error);
            }
        }
        true
    }
}

/// An entropy device has no state of its own.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub struct RngState {}

impl State for RngState {
    const ID: &'static str = "virtio-rng";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}

impl Persist for Rng {
    type State = RngState;

    fn save(&self) -> RngState {
        RngState {}
    }

    fn restore(&self, _state: &RngState) -> Result<(), StateError> {
        Ok(())
    }

    fn reset(&self) {}
}
