//! The network device (section 5.1), before a [`skep_net::Link`]; or, as [`VhostUserNet`], before a vhost-user backend.
//!
//! Each queue pair has a thread and a way to the network of its own. Frames go between guest memory and the network without a copy where
//! the network allows, checksums and segmentation are left to whoever can do them last, and a received frame may be spread over buffers.
//! While the guest has no buffer, frames stay in the network, and come when it has one again. So they do while a limit on what is received
//! has been used up; where one on what is sent has, they stay with the guest. A frame counts once, with its Ethernet header, as it is handed over: a
//! segment that somebody later cuts into many too.
//!
//! Offered, as far as the network can: `CSUM`, `GUEST_CSUM`, `CTRL_GUEST_OFFLOADS`, `MTU`, `MAC`, TSO and its ECN both ways, USO both ways
//! (virtio 1.3), `MRG_RXBUF`, `STATUS`, `CTRL_VQ`, `GUEST_ANNOUNCE`, `MQ`, `CTRL_MAC_ADDR`. Not offered: filters (`CTRL_RX`, `CTRL_VLAN`:
//! the guest receives all that the network delivers), UFO, RSS and hash reports, notification coalescing.

mod backend;
#[cfg(test)]
mod backend_test;
mod card;
mod control;
mod engine;
mod gate;
mod state;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)] // Tests.
pub(crate) mod net_test;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use skep_net::{Link, NetError};
use skep_state::{Persist, StateError};
use skep_worker::Limiter;

use crate::engine::QueueWorker;
use crate::{DeviceType, Notifier, QueueStart, Stopped, VirtioDevice};
pub use backend::VhostUserNet;
use card::{Card, feature, offload_features};
use engine::{Command, NetEngine};
use gate::Gate;
pub use state::NetState;

/// Entries of each queue of a pair, and of the control queue.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 16;

/// What a network device is made of.
pub struct NetConfig {
    /// What its threads are called on the host.
    pub name: String,
    /// The network; it says how many queue pairs there are.
    pub link: Arc<dyn Link>,
    /// The card's address.
    pub mac: [u8; 6],
    /// How long a pair's thread polls before it sleeps.
    pub poll: Duration,
    /// What limits the frames that the guest receives, on all pairs together.
    pub receive: Option<Arc<Limiter>>,
    /// What limits those that it sends.
    pub send: Option<Arc<Limiter>>,
}

/// Why a network device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum NetDeviceError {
    /// The network refuses.
    #[error(transparent)]
    Link(#[from] NetError),
    /// The host refuses a thread.
    #[error("can't start the thread of a network card: {0}")]
    Thread(#[from] io::Error),
}

/// A network device.
pub struct Net {
    card: Arc<Card>,
    workers: Vec<QueueWorker<Command>>,
}

impl Net {
    /// A network device.
    ///
    /// # Errors
    /// [`NetDeviceError`].
    pub fn new(config: &NetConfig) -> Result<Arc<Self>, NetDeviceError> {
        let link = config.link.clone();
        let apply = move |offloads, pairs| link.set_offloads(offloads).and_then(|()| link.set_active_queues(pairs));
        let card = Arc::new(Card::new(config.link.info(), Box::new(apply), config.mac));
        let worker = |pair| {
            let gates = (Gate::new(config.receive.as_ref())?, Gate::new(config.send.as_ref())?);
            let engine = NetEngine::new(pair, config.link.open_queue(pair)?, card.clone(), gates);
            let name = format!("{}:{pair}", config.name);
            QueueWorker::wait(&name, config.poll, engine).map_err(NetDeviceError::Thread)
        };
        let workers = (0..card.max_pairs()).map(worker).collect::<Result<Vec<_>, _>>()?;
        Ok(Arc::new(Self { card, workers }))
    }

    /// Plugs the cable in or out, as the guest sees it.
    pub fn set_link(&self, up: bool) {
        self.card.set_link(up);
    }

    /// Asks the driver to tell the network where the guest is: after it has moved.
    pub fn announce(&self) {
        self.card.announce();
    }

    /// The thread of a queue.
    fn worker(&self, index: u16) -> Option<&QueueWorker<Command>> {
        let control = index == self.card.control_queue();
        self.workers.get(if control { 0 } else { usize::from(index / 2) })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        let info = self.card.info();
        let own = feature::MAC
            | feature::MRG_RXBUF
            | feature::STATUS
            | feature::CTRL_VQ
            | feature::GUEST_ANNOUNCE
            | feature::CTRL_MAC_ADDR;
        let several = if self.card.max_pairs() > 1 { feature::MQ } else { 0 };
        let mtu = if info.mtu.is_some() { feature::MTU } else { 0 };
        own | several | mtu | offload_features(info.offloads)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.card.max_pairs())];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.card.config().read(offset, data);
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        self.card.attach(notifier);
    }

    fn activate(&self, features: u64) {
        self.card.activate(features);
        self.workers.iter().for_each(|worker| worker.tell(Command::Activate(features)));
    }

    fn start_queue(&self, start: QueueStart) {
        if let Some(worker) = self.worker(start.index) {
            worker.start(start);
        }
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        if let Some(worker) = self.worker(index) {
            worker.begin_stop(index, stopped);
        }
    }
}

impl Persist for Net {
    type State = NetState;

    fn save(&self) -> NetState {
        self.card.save()
    }

    fn restore(&self, state: &NetState) -> Result<(), StateError> {
        self.card.restore(state)
    }

    fn reset(&self) {
        self.card.reset();
    }
}
