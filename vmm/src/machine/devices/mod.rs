//! The devices that a configuration puts on PCI: made, stopped, saved and let go.

mod disk;
mod net;
mod other;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use skep_block::BlockError;
use skep_clock::Clock;
use skep_config::{Config, FIRST_PORT, Place};
use skep_net::NetError;
use skep_nvme::{Controller, NvmeError};
use skep_pci::{Endpoint, PciError, PciPlace, RootComplex, Socket};
use skep_state::Component;
use skep_virtio::net::NetDeviceError;
use skep_virtio::{PciDevice, Transport, VirtioDevice};

use super::Named;
use crate::Error;

#[cfg(test)]
#[path = "devices_test.rs"]
mod test;

/// How long a data path's thread polls at most before it sleeps.
const POLL: Duration = Duration::from_micros(32);

/// Why a device can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Its image can't be used.
    #[error("{source}{mend}")]
    Disk {
        /// Why.
        source: BlockError,
        /// What would mend it, or nothing.
        mend: &'static str,
    },
    /// An NVMe controller or a namespace.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A network card.
    #[error(transparent)]
    NetCard(#[from] NetDeviceError),
    /// Its place.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The host refuses.
    #[error("can't {what}: {source}")]
    Host {
        /// What was being done.
        what: String,
        /// The host's error.
        source: std::io::Error,
    },
}

/// Names the device that can't be made.
fn named(id: &str) -> impl Fn(DeviceError) -> Error {
    let id = id.to_owned();
    move |source| Error::Device { id: id.clone(), source: Box::new(source) }
}

/// What a machine holds of a device.
#[derive(Clone)]
enum Kind {
    Nvme(Arc<Controller>),
    Virtio(Arc<Transport>),
}

#[derive(Clone)]
struct Placed {
    place: PciPlace,
    id: String,
    kind: Kind,
}

impl Placed {
    fn begin_stop(&self, done: impl FnOnce() + Send + 'static) {
        match &self.kind {
            Kind::Nvme(controller) => controller.pause(done),
            Kind::Virtio(transport) => transport.begin_stop(done),
        }
    }

    fn resume(&self) {
        match &self.kind {
            Kind::Nvme(controller) => controller.resume(),
            Kind::Virtio(transport) => transport.resume(),
        }
    }

    fn components(&self) -> Vec<Named> {
        match &self.kind {
            Kind::Nvme(controller) => vec![(self.id.clone(), controller.clone() as Arc<dyn Component>)],
            Kind::Virtio(transport) => {
                let device: Arc<dyn VirtioDevice> = transport.device().clone();
                vec![(self.id.clone(), device), (format!("{}/transport", self.id), transport.clone())]
            }
        }
    }
}

/// Calls what is in it when its last owner has gone.
struct AtLast(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for AtLast {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
        }
    }
}

/// The devices of a machine, in the order of its configuration.
#[derive(Default)]
pub(super) struct Devices(Mutex<Vec<Placed>>);

impl Devices {
    fn lock(&self) -> MutexGuard<'_, Vec<Placed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the root ports and the devices of a configuration that is finished, and puts them into their places.
    pub(super) fn add(&self, config: &Config, root: &RootComplex, clock: &Clock) -> Result<(), Error> {
        for number in 0..config.pci_ports {
            root.add_port(number, FIRST_PORT + number)?;
        }
        disk::add(self, config, root, clock)?;
        net::add(self, config, root)?;
        other::add(self, config, root)
    }

    fn push(&self, id: &str, endpoint: Arc<Endpoint>, kind: Kind, root: &RootComplex) -> Result<(), DeviceError> {
        let place = endpoint.place();
        root.insert(endpoint)?;
        tracing::info!("`{id}` is at {place}");
        self.lock().push(Placed { place, id: id.to_owned(), kind });
        Ok(())
    }

    fn push_virtio(
        &self,
        id: &str,
        socket: &Socket,
        device: Arc<dyn VirtioDevice>,
        root: &RootComplex,
    ) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Host { what: "make a doorbell".to_owned(), source };
        let device = PciDevice::new(socket, device).map_err(failed)?;
        self.push(id, device.endpoint, Kind::Virtio(device.transport), root)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Begins to stop all queues, and calls `done`, on any thread, when nothing is in flight any more. vCPUs have stopped before.
    pub(super) fn begin_stop(&self, done: impl FnOnce() + Send + Sync + 'static) {
        let last = Arc::new(AtLast(Some(Box::new(done))));
        let devices = self.lock().clone();
        for device in devices {
            let share = last.clone();
            device.begin_stop(move || drop(share));
        }
    }

    /// Lets all queues go on.
    pub(super) fn resume(&self) {
        self.lock().iter().for_each(Placed::resume);
    }

    /// What is saved of them.
    pub(super) fn components(&self) -> Vec<Named> {
        self.lock().iter().flat_map(Placed::components).collect()
    }

    /// The guest has let go of the device that `endpoint` was. What it has in flight may end as it likes: nobody waits for it.
    pub(super) fn ejected(&self, endpoint: &Endpoint) {
        let gone = {
            let mut devices = self.lock();
            let at = devices.iter().position(|device| device.place == endpoint.place());
            at.map(|at| devices.remove(at))
        };
        let Some(gone) = gone else { return };
        tracing::info!("the guest has let `{}` at {} go", gone.id, gone.place);
        let (done, stopped) = std::sync::mpsc::channel();
        gone.begin_stop(move || {
            // Nobody listens where no thread could be had.
            let _ = done.send(());
        });
        let id = gone.id.clone();
        let wait = move || {
            let _ = stopped.recv();
            drop(gone);
        };
        if let Err(error) = std::thread::Builder::new().name("eject".to_owned()).spawn(wait) {
            tracing::warn!("`{id}` is let go of at once, with what it has in flight: {error}");
        }
    }
}

/// The socket of a place that a finished configuration gives.
fn socket(root: &RootComplex, place: Option<Place>) -> Result<Socket, DeviceError> {
    let place = match place.expect("a finished config gives each device its place") {
        Place::Root(device) => PciPlace::Root(device),
        Place::Port(number) => PciPlace::Port(number),
    };
    Ok(root.socket(place)?)
}
