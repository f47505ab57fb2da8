//! The socket device (section 5.10): streams between programs of the guest and programs of the host, which use Unix sockets.
//!
//! * A program of the host connects to the device's socket, writes the line `CONNECT PORT`, and reads `OK PORT` with the host's port when the
//!   guest has accepted; from there on the socket is the stream. If nobody listens there in the guest, the socket is closed.
//! * A guest that connects to the host's (context id 2) port `PORT` reaches whoever listens at the Unix socket `PATH_PORT`, where `PATH` is the
//!   device's socket.
//!
//! Both are as Firecracker has them. Each side may shut down its half. A connection's data wait in the host, or in the guest, while the
//! other side has no room; a pause keeps connections, and a restored guest is told that they have ended.
//!
//! Offered: `STREAM`. Not offered: `SEQPACKET`.

mod connection;
mod engine;
mod packet;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod vsock_test;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skep_state::{Persist, State, StateError, ensure};

use crate::config::ConfigSpace;
use crate::engine::QueueWorker;
use crate::{DeviceType, QueueStart, Stopped, VirtioDevice};
use engine::{Forget, VsockEngine};
pub use state::VsockState;

/// `VIRTIO_VSOCK_F_STREAM`.
const STREAM: u64 = 1 << 0;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// The first context id that a guest can have: those below are the host's and reserved; so is the last one of 32 bits.
pub const FIRST_CID: u64 = 3;
const LAST_CID: u64 = 0xffff_fffe;

/// A socket device.
pub struct Vsock {
    cid: u64,
    path: PathBuf,
    ended: Arc<AtomicBool>,
    worker: QueueWorker<Forget>,
}

impl Vsock {
    /// A socket device called `name` on the host, of the guest with context id `cid`, with its Unix socket at `path`, which must not exist
    /// yet and is removed with the device.
    ///
    /// # Errors
    /// Where the host refuses the socket or a thread, or no guest can have the context id.
    pub fn new(name: &str, cid: u64, path: &Path) -> io::Result<Arc<Self>> {
        if !(FIRST_CID..=LAST_CID).contains(&cid) {
            let text = format!("no guest can have context id {cid}: choose one from {FIRST_CID} to {LAST_CID}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        let engine = VsockEngine::new(cid, path.to_owned(), listener, ended.clone());
        let worker = QueueWorker::spawn(name, Duration::ZERO, engine)?;
        Ok(Arc::new(Self { cid, path: path.to_owned(), ended, worker }))
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::VSOCK
    }

    fn features(&self) -> u64 {
        STREAM
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = ConfigSpace::<8>::new();
        config.put(0, self.cid);
        config.read(offset, data);
    }

    fn start_queue(&self, start: QueueStart) {
        self.worker.start(start);
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.worker.begin_stop(index, stopped);
    }
}

impl Persist for Vsock {
    type State = VsockState;

    fn save(&self) -> VsockState {
        VsockState { cid: self.cid, ended: self.ended.load(Ordering::Acquire) }
    }

    fn restore(&self, state: &VsockState) -> Result<(), StateError> {
        ensure(state.cid == self.cid, VsockState::ID, "cid", state.cid, "this device has another context id")?;
        self.ended.store(true, Ordering::Release);
        self.worker.tell(Forget);
        Ok(())
    }

    fn reset(&self) {
        self.ended.store(false, Ordering::Release);
        self.worker.tell(Forget);
    }
}
