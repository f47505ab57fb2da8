//! What is said to a backend. None of its answers is believed before it has been looked at.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use skep_memory::Region;
use skep_memory::vm_memory::FileOffset;
use vmm_sys_util::eventfd::EventFd;

use super::borrow::borrow;
use super::channel::Channel;
use super::connection::{Connection, MOST_FDS};
use super::error::{TalkError, VhostUserError};
use super::kind::CONFIG_SIZE;
use super::message::{PROTOCOL_FEATURES, Request, of_words, protocol, words};
use crate::QueueConfig;
use crate::feature::VERSION_1;

/// How much longer than any other request the end of what a queue has in flight may take.
const DRAIN: u32 = 6;
/// `GET_CONFIG` and `SET_CONFIG` begin with offset, size and flags.
const CONFIG_HEADER: usize = 12;

/// A request that has failed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", request.name())]
pub(super) struct Failure {
    pub(super) request: Request,
    pub(super) source: TalkError,
}

/// Names the request.
fn failed(request: Request) -> impl Fn(TalkError) -> Failure {
    move |source| Failure { request, source }
}

fn nonsense(request: Request, what: &'static str) -> Failure {
    Failure { request, source: TalkError::Nonsense(what) }
}

/// A backend that is connected and has been asked what it can do.
pub(super) struct Backend {
    pub(super) connection: Connection,
    /// Its virtio features.
    pub(super) features: u64,
    /// The protocol features that both sides have.
    protocol: u64,
    /// How many queues it has.
    pub(super) queues: u64,
    /// By which it tells of changes.
    pub(super) channel: Option<Channel>,
}

/// What a device asks of its backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// The configuration space is the backend's.
    pub(super) config: bool,
    /// Queues, as it counts them.
    pub(super) queues: u16,
    /// How many one has that does not say how many.
    pub(super) silent: u16,
}

impl Backend {
    /// Connects, and negotiates all that does not depend on the guest.
    pub(super) fn connect(path: &Path, needs: Needs, patience: Duration) -> Result<Self, VhostUserError> {
        let no_connection = |source: io::Error| {
            let mend = match source.kind() {
                io::ErrorKind::NotFound => "\n  try: start the backend first, with this path",
                io::ErrorKind::ConnectionRefused => {
                    "\n  try: start the backend: the socket is there, and nobody listens"
                }
                io::ErrorKind::WouldBlock => "\n  try: restart the backend: it accepts no connection",
                io::ErrorKind::PermissionDenied => "\n  try: let this user write to the socket",
                _ => "",
            };
            VhostUserError::Connect { path: path.to_owned(), source, mend }
        };
        let connection = Connection::connect(path, patience).map_err(no_connection)?;
        let mut backend = Self { connection, features: 0, protocol: 0, queues: 1, channel: None };
        let lacks = |what| VhostUserError::Lacks { path: path.to_owned(), what };
        let refused = |failure: Failure| VhostUserError::Request {
            path: path.to_owned(),
            request: failure.request.name(),
            source: failure.source,
        };
        backend.features = backend.number(Request::GetFeatures).map_err(refused)?;
        for (bit, what) in [(VERSION_1, "VIRTIO_F_VERSION_1"), (PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES")] {
            if backend.features & bit == 0 {
                return Err(lacks(what));
            }
        }
        let offered = backend.number(Request::GetProtocolFeatures).map_err(refused)?;
        let mut wanted = protocol::MQ | protocol::REPLY_ACK | protocol::RESET_DEVICE;
        if needs.config {
            wanted |= protocol::CONFIG | protocol::BACKEND_REQ;
            if offered & protocol::CONFIG == 0 {
                return Err(lacks("VHOST_USER_PROTOCOL_F_CONFIG"));
            }
        }
        backend.protocol = offered & wanted;
        backend.tell_number(Request::SetProtocolFeatures, backend.protocol).map_err(refused)?;
        backend.connection.answered = backend.has(protocol::REPLY_ACK);
        if backend.has(protocol::MQ) {
            backend.queues = backend.number(Request::GetQueueNum).map_err(refused)?;
        } else {
            backend.queues = u64::from(needs.silent);
        }
        if backend.queues < u64::from(needs.queues) {
            return Err(VhostUserError::Queues { path: path.to_owned(), has: backend.queues, wanted: needs.queues });
        }
        backend.tell(Request::SetOwner, &[], &[]).map_err(refused)?;
        if backend.has(protocol::BACKEND_REQ) {
            let (ours, theirs) = Channel::new().map_err(VhostUserError::Thread)?;
            backend.tell(Request::SetBackendReqFd, &[], &[theirs.as_fd()]).map_err(refused)?;
            backend.channel = Some(ours);
        }
        Ok(backend)
    }

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }

    fn number(&mut self, request: Request) -> Result<u64, Failure> {
        self.connection.ask_number(request).map_err(failed(request))
    }

    fn tell(&mut self, request: Request, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        self.connection.tell(request, body, fds).map_err(failed(request))
    }

    fn tell_number(&mut self, request: Request, number: u64) -> Result<(), Failure> {
        self.connection.tell_number(request, number).map_err(failed(request))
    }

    /// The driver has taken these features.
    pub(super) fn set_features(&mut self, features: u64) -> Result<(), Failure> {
        self.tell_number(Request::SetFeatures, features | PROTOCOL_FEATURES)
    }

    /// Where guest memory is. A backend is told guest addresses alone: none of ours mean anything to it.
    pub(super) fn set_memory(&mut self, regions: &[Arc<Region>]) -> Result<(), Failure> {
        let shared: Vec<(&Region, &FileOffset)> =
            regions.iter().filter_map(|region| Some((&**region, region.file()?))).collect();
        if shared.len() > MOST_FDS {
            return Err(nonsense(Request::SetMemTable, "guest memory has more parts than a message can carry"));
        }
        let mut body = of_words(&[shared.len() as u32, 0]);
        for (region, file) in &shared {
            for number in [region.gpa(), region.size(), region.gpa(), file.start()] {
                body.extend(number.to_le_bytes());
            }
        }
        let fds: Vec<BorrowedFd<'_>> = shared.iter().map(|(_, file)| file.file().as_fd()).collect();
        self.tell(Request::SetMemTable, &body, &fds)
    }

    fn vring(&mut self, request: Request, index: u16, value: u32) -> Result<(), Failure> {
        self.tell(request, &of_words(&[index.into(), value]), &[])
    }

    /// Starts a queue at `next`, which is to be enabled afterwards.
    pub(super) fn start_queue(
        &mut self,
        index: u16,
        config: &QueueConfig,
        next: u16,
        call: &EventFd,
        kick: &EventFd,
    ) -> Result<(), Failure> {
        self.vring(Request::SetVringNum, index, config.size.into())?;
        self.vring(Request::SetVringBase, index, next.into())?;
        let mut addresses = of_words(&[index.into(), 0]);
        for address in [config.descriptors, config.used, config.available, 0] {
            addresses.extend(address.to_le_bytes());
        }
        self.tell(Request::SetVringAddr, &addresses, &[])?;
        for (request, event) in [(Request::SetVringCall, call), (Request::SetVringKick, kick)] {
            self.tell(request, &u64::from(index).to_le_bytes(), &[borrow(event)])?;
        }
        Ok(())
    }

    /// Lets a queue be worked, or rest.
    pub(super) fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), Failure> {
        self.vring(Request::SetVringEnable, index, enabled.into())
    }

    /// How long what is in flight may take to end.
    pub(super) fn drain_patience(&self) -> Duration {
        self.connection.patience() * DRAIN
    }

    /// Stops a queue, and answers where it stands in the available ring.
    pub(super) fn stop_queue(&mut self, index: u16) -> Result<u16, Failure> {
        self.enable_queue(index, false)?;
        let request = Request::GetVringBase;
        let body = of_words(&[index.into(), 0]);
        let patience = self.drain_patience();
        let answer = self.connection.ask(request, &body, patience).map_err(failed(request))?;
        let words: Vec<u32> = words(&answer).collect();
        match words[..] {
            [queue, next] if queue == u32::from(index) && answer.len() == 8 => {
                u16::try_from(next).map_err(|_| nonsense(request, "no ring has such an index"))
            }
            _ => Err(nonsense(request, "it is about another queue")),
        }
    }

    /// Reads the configuration space.
    pub(super) fn config(&mut self) -> Result<Vec<u8>, Failure> {
        let request = Request::GetConfig;
        let mut body = of_words(&[0, CONFIG_SIZE as u32, 0]);
        body.resize(CONFIG_HEADER + CONFIG_SIZE, 0);
        let patience = self.connection.patience();
        let answer = self.connection.ask(request, &body, patience).map_err(failed(request))?;
        if answer.is_empty() {
            return Err(Failure { request, source: TalkError::Refused });
        }
        let config = answer.get(CONFIG_HEADER..).filter(|config| config.len() == CONFIG_SIZE);
        config.map(<[u8]>::to_vec).ok_or_else(|| nonsense(request, "it is of another size"))
    }

    /// Writes to the configuration space.
    pub(super) fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Failure> {
        let header = of_words(&[offset, data.len() as u32, 0]);
        self.tell(Request::SetConfig, &[&header, data].concat(), &[])
    }

    /// Resets the device, where the backend does more for that than stopping its queues.
    pub(super) fn reset(&mut self) -> Result<(), Failure> {
        if self.has(protocol::RESET_DEVICE) { self.tell(Request::ResetDevice, &[], &[]) } else { Ok(()) }
    }
}
