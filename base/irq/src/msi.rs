//! Message-signalled interrupts.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minicbor::{Decode, Encode};
use vmm_sys_util::eventfd::EventFd;

use crate::IrqError;

#[cfg(test)]
#[path = "msi_test.rs"]
mod test;

/// A memory write that is an interrupt: as the guest programs it into a device (PCI 3.0 section 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct MsiMessage {
    /// Where it is written.
    #[n(0)]
    pub address: u64,
    /// What is written. Any value.
    #[n(1)]
    pub data: u32,
}

/// Who sends: the PCI requester id (segment in bits 31:16, bus, device and function below), which an ITS and an IOMMU translate by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequesterId(pub u32);

/// The requester id of a function whose place may change (a guest numbers its buses as it likes): shared by all that name the function. What
/// routes there are learn of a change when their vectors are configured next.
#[derive(Debug, Clone)]
pub struct Requester(Arc<AtomicU32>);

impl From<RequesterId> for Requester {
    fn from(id: RequesterId) -> Self {
        Self(Arc::new(AtomicU32::new(id.0)))
    }
}

impl Requester {
    /// The id now.
    #[must_use]
    pub fn id(&self) -> RequesterId {
        RequesterId(self.0.load(Ordering::Acquire))
    }

    /// Sets it for all who share it.
    pub fn set(&self, id: RequesterId) {
        self.0.store(id.0, Ordering::Release);
    }
}

/// What takes MSIs: local APICs, an ITS, a v2m frame.
pub trait MsiTarget: Send + Sync {
    /// Delivers `message` now.
    ///
    /// # Errors
    /// Where nothing takes a message at that address, or the backend refuses.
    fn signal(&self, message: MsiMessage, requester: Option<RequesterId>) -> Result<(), IrqError>;

    /// Eventfd delivery, where the backend offers it.
    fn routes(&self) -> Option<&dyn MsiRoutes> {
        None
    }
}

/// The local APICs as an IOAPIC sees them: it sends them its messages, and tells which of its pins are routed how, so that a backend which
/// handles APICs itself knows of which vectors to report the end of interrupt.
pub trait ApicBus: MsiTarget {
    /// The messages of all pins, in the order of their numbers; `None` for a masked pin that waits for no EOI.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn set_pin_routes(&self, pins: &[Option<MsiMessage>]) -> Result<(), IrqError>;
}

/// A route in a backend: names an eventfd, each signal of which is the message that the route holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route(pub u32);

/// One change of a batch: what a route's eventfd delivers from now on, or `None` while its vector is masked. What is signalled meanwhile
/// stays in the eventfd and is delivered with the next message set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteChange {
    /// Which route.
    pub route: Route,
    /// What it delivers.
    pub message: Option<MsiMessage>,
    /// Who sends.
    pub requester: Option<RequesterId>,
}

/// Eventfd delivery of MSIs. Routes are finite.
pub trait MsiRoutes: Send + Sync {
    /// A new route, which delivers nothing yet, and its eventfd.
    ///
    /// # Errors
    /// Where none is left.
    fn allocate(&self) -> Result<(Route, EventFd), IrqError>;

    /// Applies all changes in one act.
    ///
    /// # Errors
    /// Where the backend refuses.
    fn update(&self, changes: &[RouteChange]) -> Result<(), IrqError>;

    /// Gives a route back.
    fn free(&self, route: Route);
}

/// A vector as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VectorState {
    /// The message.
    #[n(0)]
    pub message: MsiMessage,
    /// The mask bit.
    #[n(1)]
    pub masked: bool,
    /// The pending bit.
    #[n(2)]
    pub pending: bool,
}

impl Default for VectorState {
    fn default() -> Self {
        Self { message: MsiMessage::default(), masked: true, pending: false }
    }
}

struct Inner {
    vector: VectorState,
    route: Option<(Route, EventFd)>,
}

/// One vector of a device function. It starts masked.
pub struct Msi {
    target: Arc<dyn MsiTarget>,
    requester: Option<Requester>,
    inner: Mutex<Inner>,
}

impl Msi {
    /// A vector of `requester` to `target`.
    pub fn new(target: Arc<dyn MsiTarget>, requester: Option<RequesterId>) -> Self {
        Self::of(target, requester.map(Requester::from))
    }

    /// A vector of a function whose place may change.
    pub fn of(target: Arc<dyn MsiTarget>, requester: Option<Requester>) -> Self {
        Self { target, requester, inner: Mutex::new(Inner { vector: VectorState::default(), route: None }) }
    }

    fn requester(&self) -> Option<RequesterId> {
        self.requester.as_ref().map(Requester::id)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals the vector: delivered at once, or pending while it is masked.
    ///
    /// # Errors
    /// Where the message the guest programmed reaches nothing, or the backend refuses.
    pub fn signal(&self) -> Result<(), IrqError> {
        let message = {
            let mut inner = self.lock();
            if inner.vector.masked {
                inner.vector.pending = true;
                return Ok(());
            }
            inner.vector.message
        };
        self.target.signal(message, self.requester())
    }

    /// The vector as the guest sees it. What an eventfd was signalled with while masked counts as pending.
    #[must_use]
    pub fn state(&self) -> VectorState {
        let mut inner = self.lock();
        inner.collect_pending();
        inner.vector
    }

    /// Takes the pending bit back: the device's reason has gone (PCI 3.0 section 6.8.3.4).
    pub fn clear_pending(&self) {
        let mut inner = self.lock();
        inner.collect_pending();
        inner.vector.pending = false;
    }

    /// Sets message and mask of one vector.
    ///
    /// # Errors
    /// As [`Msi::signal`], for what was pending.
    pub fn configure(&self, message: MsiMessage, masked: bool) -> Result<(), IrqError> {
        Self::configure_all(&[(self, message, masked)])
    }

    /// Sets messages and masks of several vectors of one target, with one change of the backend's routes. What was pending and is no
    /// longer masked is delivered.
    ///
    /// # Errors
    /// As [`Msi::signal`], for what was pending; all vectors have been set all the same.
    pub fn configure_all(vectors: &[(&Self, MsiMessage, bool)]) -> Result<(), IrqError> {
        let mut changes = Vec::new();
        for (msi, message, masked) in vectors {
            let mut inner = msi.lock();
            inner.vector.message = *message;
            inner.vector.masked = *masked;
            if let Some((route, _)) = &inner.route {
                let message = (!masked).then_some(*message);
                changes.push(RouteChange { route: *route, message, requester: msi.requester() });
            }
        }
        let mut result = Ok(());
        if let (Some((first, ..)), false) = (vectors.first(), changes.is_empty())
            && let Some(routes) = first.target.routes()
        {
            result = routes.update(&changes);
        }
        for (msi, message, masked) in vectors {
            let deliver = !masked && std::mem::take(&mut msi.lock().vector.pending);
            if deliver {
                result = result.and(msi.target.signal(*message, msi.requester()));
            }
        }
        result
    }

    /// Takes on a saved vector: no edge, what was pending stays pending until it is unmasked.
    ///
    /// # Errors
    /// Where the backend refuses the route.
    pub fn restore(&self, state: &VectorState) -> Result<(), IrqError> {
        self.configure(state.message, true)?;
        self.lock().vector.pending = state.pending;
        if state.masked { Ok(()) } else { self.configure(state.message, false) }
    }

    /// An eventfd, each signal of which is [`Msi::signal`], where the backend offers it: for vhost-user and VFIO.
    ///
    /// # Errors
    /// Where the backend has no route left.
    pub fn eventfd(&self) -> Result<Option<EventFd>, IrqError> {
        let Some(routes) = self.target.routes() else { return Ok(None) };
        let mut inner = self.lock();
        let cloning = |source| IrqError::Backend { what: "duplicate an interrupt's eventfd", source };
        if let Some((_, fd)) = &inner.route {
            return fd.try_clone().map(Some).map_err(cloning);
        }
        let (route, fd) = routes.allocate()?;
        let copy = fd.try_clone().map_err(cloning)?;
        let message = (!inner.vector.masked).then_some(inner.vector.message);
        inner.route = Some((route, fd));
        routes.update(&[RouteChange { route, message, requester: self.requester() }])?;
        Ok(Some(copy))
    }
}

impl Inner {
    /// While the vector is masked nobody reads the eventfd, so its count is the pending bit.
    fn collect_pending(&mut self) {
        if let (Some((_, fd)), true) = (&self.route, self.vector.masked)
            && fd.read().is_ok()
        {
            self.vector.pending = true;
        }
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        if let (Some((route, _)), Some(routes)) = (self.lock().route.take(), self.target.routes()) {
            routes.free(route);
        }
    }
}

impl fmt::Debug for Msi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msi")
            .field("requester", &self.requester())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
