//! A device that does what the test says, and a function's interrupts that note what happens to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use skep_irq::testing::Log;
use skep_state::{Persist, State, StateError};

use crate::{DeviceType, Interrupt, Notifier, QueueStart, QueueState, RunsOn, Stopped, VirtioDevice};

/// A device of two queues, whose stops end when the test lets them.
pub(crate) struct Puppet {
    pub(crate) log: Log,
    pub(crate) running: Mutex<BTreeMap<u16, QueueStart>>,
    stopping: Mutex<BTreeMap<u16, Stopped>>,
    called_off: Mutex<BTreeMap<u16, RunsOn>>,
    notifier: Mutex<Option<Arc<dyn Notifier>>>,
    config: Mutex<[u8; 8]>,
}

impl Puppet {
    pub(crate) fn new(log: Log) -> Arc<Self> {
        Arc::new(Self {
            log,
            running: Mutex::default(),
            stopping: Mutex::default(),
            called_off: Mutex::default(),
            notifier: Mutex::default(),
            config: Mutex::new(*b"configur"),
        })
    }

    /// Lets a stop end, where the queue has gone to `next`. Says whether one had begun.
    pub(crate) fn let_stop(&self, index: u16, next: u16) -> bool {
        let Some(stopped) = self.stopping.lock().unwrap().remove(&index) else { return false };
        self.running.lock().unwrap().remove(&index);
        self.called_off.lock().unwrap().remove(&index);
        stopped(QueueState { next, broken: false });
        true
    }

    /// Lets a queue run on whose stop has been called off. Says whether one had.
    pub(crate) fn let_run_on(&self, index: u16) -> bool {
        let Some(runs_on) = self.called_off.lock().unwrap().remove(&index) else { return false };
        self.stopping.lock().unwrap().remove(&index);
        runs_on();
        true
    }

    pub(crate) fn notifier(&self) -> Arc<dyn Notifier> {
        self.notifier.lock().unwrap().clone().unwrap()
    }
}

impl VirtioDevice for Puppet {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        0x41
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        for (byte, value) in data.iter_mut().zip(config.iter().skip(offset as usize)) {
            *byte = *value;
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        for (byte, value) in config.iter_mut().skip(offset as usize).zip(data) {
            *byte = *value;
        }
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        *self.notifier.lock().unwrap() = Some(notifier);
    }

    fn activate(&self, features: u64) {
        self.log.note(format!("activate {features:#x}"));
    }

    fn start_queue(&self, start: QueueStart) {
        self.log.note(format!("start {} of {} at {}", start.index, start.config.size, start.state.next));
        let was = self.running.lock().unwrap().insert(start.index, start);
        assert!(was.is_none(), "it runs already");
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        self.log.note(format!("stop {index}"));
        assert!(self.running.lock().unwrap().contains_key(&index), "it does not run");
        let was = self.stopping.lock().unwrap().insert(index, stopped);
        assert!(was.is_none(), "it is being stopped already");
    }

    fn call_off_stop(&self, index: u16, runs_on: RunsOn) {
        self.log.note(format!("call off {index}"));
        let was = self.called_off.lock().unwrap().insert(index, runs_on);
        assert!(was.is_none(), "it is called off already");
    }
}

#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct PuppetState {}

impl State for PuppetState {
    const ID: &'static str = "puppet";
    const VERSION: u16 = 1;

    fn check(&self) -> Result<(), StateError> {
        Ok(())
    }
}

impl Persist for Puppet {
    type State = PuppetState;

    fn save(&self) -> PuppetState {
        PuppetState {}
    }

    fn restore(&self, _state: &PuppetState) -> Result<(), StateError> {
        Ok(())
    }

    fn reset(&self) {
        self.log.note("reset");
        *self.config.lock().unwrap() = *b"configur";
    }
}

/// Interrupts, noted as `msi N`, `pin+` and `pin-`.
pub(crate) struct Wires {
    pub(crate) log: Log,
    pub(crate) messages: AtomicBool,
    pin: AtomicBool,
}

impl Wires {
    pub(crate) fn new(log: Log, messages: bool) -> Arc<Self> {
        Arc::new(Self { log, messages: AtomicBool::new(messages), pin: AtomicBool::new(false) })
    }
}

impl Interrupt for Wires {
    fn signal(&self, vector: u16) {
        self.log.note(format!("msi {vector}"));
    }

    fn set_pin(&self, asserted: bool) {
        if self.pin.swap(asserted, Ordering::AcqRel) != asserted {
            self.log.note(if asserted { "pin+" } else { "pin-" });
        }
    }

    fn messages_enabled(&self) -> bool {
        self.messages.load(Ordering::Acquire)
    }
}
