//! The console (section 5.3): several ports, each a pair of byte streams to the host.
//!
//! A port is a terminal, which has a size, or a pipe that the guest finds by its name. What the host sends waits in the host until the guest
//! has opened the port; what the guest sends waits in its ring until the host takes it. Of a port that the host has closed the guest is told,
//! and what it sends there is lost.
//!
//! Offered: `SIZE`, `MULTIPORT`. Not offered: emergency writes. Without `MULTIPORT` there is the first port alone. Ports don't come and go.

mod engine;
mod port;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod console_test;

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use skep_state::{Persist, State, StateError, ensure};

use crate::config::ConfigSpace;
use crate::engine::QueueWorker;
use crate::{DeviceType, Notifier, QueueStart, Stopped, VirtioDevice};
use engine::{Changed, ConsoleEngine, Shared, lock};
use port::{MAX_PORTS, News, Port};
pub use port::{PortConfig, PortIo};
pub use state::{ConsoleState, PortState};

/// Feature bits (section 5.3.3).
const SIZE: u64 = 1 << 0;
const MULTIPORT: u64 = 1 << 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;

/// A console.
pub struct Console {
    shared: Arc<Mutex<Shared>>,
    worker: QueueWorker<Changed>,
    notifier: OnceLock<Arc<dyn Notifier>>,
}

impl Console {
    /// A console called `name` on the host, with those ports: the first 31 of them, the first of which should be a terminal.
    ///
    /// # Errors
    /// Where the host refuses a thread or a descriptor, or there is no port.
    pub fn new(name: &str, ports: Vec<PortConfig>) -> io::Result<Arc<Self>> {
        if ports.is_empty() || ports.len() > MAX_PORTS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a console has 1 to 31 ports"));
        }
        let known = ports.iter().map(Port::new).collect();
        let shared = Arc::new(Mutex::new(Shared { size: (80, 25), several: false, ports: known }));
        let engine = ConsoleEngine::new(shared.clone(), ports.into_iter().map(|port| port.io).collect());
        // Whoever types is slow enough.
        let worker = QueueWorker::spawn(name, Duration::ZERO, engine)?;
        Ok(Arc::new(Self { shared, worker, notifier: OnceLock::new() }))
    }

    /// Tells the guest the size of its terminals.
    pub fn resize(&self, columns: u16, rows: u16) {
        {
            let mut shared = lock(&self.shared);
            shared.size = (columns, rows);
            let several = shared.several;
            for port in shared.ports.iter_mut().filter(|port| several && port.is_console()) {
                port.tell(News::RESIZE);
            }
        }
        self.worker.tell(Changed);
        if let Some(notifier) = self.notifier.get() {
            notifier.config_changed();
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> u64 {
        SIZE | MULTIPORT
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2 + 2 * lock(&self.shared).ports.len()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let shared = lock(&self.shared);
        let mut config = ConfigSpace::<12>::new();
        config.put(0, shared.size.0);
        config.put(2, shared.size.1);
        config.put(4, shared.ports.len() as u32);
        config.read(offset, data);
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        // A device has one transport for life.
        let _ = self.notifier.set(notifier);
    }

    fn activate(&self, features: u64) {
        lock(&self.shared).several = features & MULTIPORT != 0;
    }

    fn start_queue(&self, start: QueueStart) {
        self.worker.start(start);
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.worker.begin_stop(index, stopped);
    }
}

impl Persist for Console {
    type State = ConsoleState;

    fn save(&self) -> ConsoleState {
        let shared = lock(&self.shared);
        let ports = shared.ports.iter().map(|port| port.state).collect();
        ConsoleState { columns: shared.size.0, rows: shared.size.1, ports }
    }

    fn restore(&self, state: &ConsoleState) -> Result<(), StateError> {
        let mut shared = lock(&self.shared);
        let (saved, here) = (state.ports.len(), shared.ports.len());
        ensure(saved == here, ConsoleState::ID, "ports", saved, "this console has another number of ports")?;
        shared.size = (state.columns, state.rows);
        for (port, saved) in shared.ports.iter_mut().zip(&state.ports) {
            let host_open = port.state.host_open;
            port.state = PortState { host_open: saved.host_open, ..*saved };
            // Whether the host has it open is for this host to say.
            port.set_host_open(host_open);
        }
        Ok(())
    }

    fn reset(&self) {
        let mut shared = lock(&self.shared);
        shared.several = false;
        for port in &mut shared.ports {
            port.state = PortState { host_open: port.state.host_open, ..PortState::default() };
        }
    }
}
