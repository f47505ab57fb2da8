//! A card whose frames another program moves, by vhost-user: the front end.
//!
//! The backend works the pairs of queues in guest memory, as far as the driver has asked for them. Its features of frames are passed on. The card
//! itself is here: its address, its control queue, and its link, which is down while there is no backend.

use std::sync::{Arc, Weak};
use std::time::Duration;

use skep_net::{LinkInfo, Offloads};
use skep_state::{Persist, State, StateError, ensure};

use super::card::{Card, feature};
use super::control::ControlEngine;
use super::{CONTROL_SIZE, NetState};
use crate::engine::QueueWorker;
use crate::vhost_user::{VhostUserConfig, VhostUserError};
use crate::{DeviceType, Notifier, QueueStart, Stopped, VhostUser, VirtioDevice};

/// A network card before a backend.
pub struct VhostUserNet {
    backend: Arc<VhostUser>,
    card: Arc<Card>,
    control: QueueWorker<()>,
}

impl VhostUserNet {
    /// Connects to the backend, as [`VhostUser::new`], whose `queues` are pairs; the card's address is `mac`.
    ///
    /// # Errors
    /// [`VhostUserError`].
    pub fn new(config: &VhostUserConfig, mac: [u8; 6]) -> Result<Arc<Self>, VhostUserError> {
        let backend = VhostUser::new(config)?;
        let info = LinkInfo { queues: config.queues, offloads: Offloads::empty(), mtu: None };
        let pairs = backend.clone();
        // What may be left to do in a frame stays as it was negotiated.
        let apply = move |_: Offloads, count: u16| {
            pairs.enable_queues(2 * count);
            Ok(())
        };
        let card = Arc::new(Card::new(info, Box::new(apply), mac));
        let link: Weak<Card> = Arc::downgrade(&card);
        backend.watch(move |there| {
            if let Some(card) = link.upgrade() {
                card.set_link(there);
            }
        });
        let name = format!("{}:control", config.name);
        let control = QueueWorker::wait(&name, Duration::ZERO, ControlEngine(card.clone()));
        let control = control.map_err(VhostUserError::Thread)?;
        Ok(Arc::new(Self { backend, card, control }))
    }

    /// The front end, which follows guest memory.
    #[must_use]
    pub fn backend(&self) -> &Arc<VhostUser> {
        &self.backend
    }

    /// Whether a queue is the card's own: behind the pairs that the driver knows of, or all that there are.
    fn is_own(&self, index: u16) -> bool {
        index == self.card.control_queue() || index >= 2 * self.card.max_pairs()
    }
}

impl VirtioDevice for VhostUserNet {
    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        let own = feature::MAC | feature::STATUS | feature::CTRL_VQ | feature::CTRL_MAC_ADDR;
        let several = if self.card.max_pairs() > 1 { feature::MQ } else { 0 };
        self.backend.features() & !feature::MQ | own | several
    }

    fn transport_features(&self) -> u64 {
        self.backend.transport_features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = self.backend.queue_sizes();
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.card.config().read(offset, data);
    }

    fn attach(&self, notifier: Arc<dyn Notifier>) {
        self.card.attach(notifier.clone());
        self.backend.attach(notifier);
    }

    fn activate(&self, features: u64) {
        self.card.activate(features);
        self.backend.activate(features);
    }

    fn start_queue(&self, start: QueueStart) {
        if self.is_own(start.index) { self.control.start(start) } else { self.backend.start_queue(start) }
    }

    fn begin_stop(&self, index: u16, stopped: Stopped) {
        if self.is_own(index) {
            self.control.begin_stop(index, stopped);
        } else {
            self.backend.begin_stop(index, stopped);
        }
    }
}

impl Persist for VhostUserNet {
    type State = NetState;

    fn save(&self) -> NetState {
        self.card.save()
    }

    fn restore(&self, state: &NetState) -> Result<(), StateError> {
        let set = state.offloads.unwrap_or(0);
        ensure(state.offloads.is_none(), NetState::ID, "offloads", set, "a backend's are those negotiated")?;
        self.card.restore(state)
    }

    fn reset(&self) {
        self.card.reset();
        self.backend.reset();
    }
}
