//! The devices that a configuration puts on PCI: made, stopped, saved and let go.

mod disk;
mod net;
mod other;
mod port;
mod unplug;
mod vhost_user;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use skep_block::{BlockError, ImageDisk, Locking};
use skep_clock::Clock;
use skep_config::{Bytes, Config, Counted, FIRST_PORT, Net, Place, Rate, Requests};
use skep_memory::{MemoryError, MemoryMap};
use skep_ne2k::{Ne2k, Ne2kError};
use skep_net::{Link, NetError};
use skep_nvme::{Controller, NvmeError};
use skep_pci::{Endpoint, OptionRom, PciError, PciPlace, RomError, RootComplex, SlotState, Socket};
use skep_state::Component;
use skep_virtio::net::NetDeviceError;
use skep_virtio::vhost_user::VhostUserError;
use skep_virtio::{Balloon, Console, PciDevice, Transport, VirtioDevice};
use skep_worker::{Limit, Limiter, Limits};

use super::Named;
use super::saved::Numbers;
use crate::Error;
use unplug::Going;

pub use unplug::{HotplugError, Removal};
pub(super) use unplug::{Removing, Waiter};

#[cfg(test)]
#[path = "devices_test.rs"]
mod test;

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
    /// An NE2000.
    #[error(transparent)]
    Ne2k(#[from] Ne2kError),
    /// A file that is no option ROM.
    #[error("`{}`: {source}", file.display())]
    Rom {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: RomError,
    },
    /// Its place.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A vhost-user backend.
    #[error(transparent)]
    VhostUser(#[from] VhostUserError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A disk can't join its controller.
    #[error("controller `{controller}` {why}")]
    Controller {
        /// The controller.
        controller: String,
        /// Why not.
        why: &'static str,
    },
    /// A socket of its.
    #[error(transparent)]
    Socket(#[from] crate::listen::ListenError),
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
    Ne2k(Arc<Ne2k>),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Nvme(_) => "nvme",
            Kind::Virtio(transport) => transport.device().device_type().name,
            Kind::Ne2k(_) => "ne2k_pci",
        }
    }

    fn begin_stop(&self, done: impl FnOnce() + Send + 'static) {
        match self {
            Kind::Nvme(controller) => controller.pause(done),
            Kind::Virtio(transport) => transport.begin_stop(done),
            Kind::Ne2k(card) => card.pause(done),
        }
    }

    fn resume(&self) {
        match self {
            Kind::Nvme(controller) => controller.resume(),
            Kind::Virtio(transport) => transport.resume(),
            Kind::Ne2k(card) => card.resume(),
        }
    }
}

/// A disk of a device.
struct Image {
    id: String,
    file: Arc<dyn ImageDisk>,
    /// Its number among the controller's namespaces.
    namespace: Option<u32>,
}

struct Placed {
    place: PciPlace,
    id: String,
    kind: Kind,
    images: Vec<Image>,
    /// The namespace that came last while the guest ran.
    last_namespace: u32,
    /// Who waits for the guest to let it go.
    waiting: Vec<Waiter>,
}

impl Placed {
    fn components(&self) -> Vec<Named> {
        match &self.kind {
            Kind::Nvme(controller) => vec![(self.id.clone(), controller.clone() as Arc<dyn Component>)],
            Kind::Ne2k(card) => vec![(self.id.clone(), card.clone() as Arc<dyn Component>)],
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

#[derive(Default)]
struct Inner {
    placed: Vec<Placed>,
    going: Vec<Going>,
    /// Those that the host has something to say to, while they are there.
    balloon: Weak<Balloon>,
    console: Weak<Console>,
    /// Networks, and the cards' addresses in them.
    links: Vec<(Weak<dyn Link>, [u8; 6])>,
}

/// The devices of a machine, in the order of its configuration, and what was plugged after it.
#[derive(Default)]
pub(super) struct Devices {
    this: Weak<Devices>,
    inner: Mutex<Inner>,
}

/// Where devices are made, and how they are put there.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) devices: &'a Devices,
    pub(super) root: &'a RootComplex,
    pub(super) clock: &'a Clock,
    pub(super) memory: &'a MemoryMap,
    /// The guest runs, and is told.
    pub(super) running: bool,
    /// What a snapshot says of namespaces.
    pub(super) numbers: &'a Numbers,
    /// When images are locked.
    pub(super) locking: Locking,
}

impl Site<'_> {
    /// Makes the root ports and the devices of a configuration that is finished, and puts them into their places.
    pub(super) fn add(self, config: &Config) -> Result<(), Error> {
        for number in 0..config.pci_ports {
            self.root.add_port(number, FIRST_PORT + number)?;
        }
        disk::add(self, config)?;
        net::add(self, config)?;
        other::add(self, config)
    }

    /// Plugs in the last disk of a configuration that is finished. Answers the number of a namespace that has joined its controller.
    pub(super) fn plug_disk(self, config: &Config) -> Result<Option<u32>, Error> {
        disk::plug(self, config)
    }

    /// Plugs in a network card of a configuration that is finished.
    pub(super) fn plug_net(self, net: &Net) -> Result<(), Error> {
        net::plug(self, net)
    }

    /// What a place offers that a finished configuration gives.
    fn socket(self, place: Option<Place>) -> Result<Socket, DeviceError> {
        Ok(self.root.socket(pci_place(place.expect("a finished config gives each device its place")))?)
    }

    fn push(self, id: &str, endpoint: Arc<Endpoint>, kind: Kind, images: Vec<Image>) -> Result<(), DeviceError> {
        let place = endpoint.place();
        // It is known before the guest can let it go.
        let last_namespace = self.numbers.last.get(id).copied().unwrap_or(0);
        let placed = Placed { place, id: id.to_owned(), kind, images, last_namespace, waiting: Vec::new() };
        self.devices.lock().placed.push(placed);
        let put = if self.running { self.root.plug(endpoint) } else { self.root.insert(endpoint) };
        if let Err(error) = put {
            self.devices.lock().placed.retain(|placed| placed.id != id);
            return Err(error.into());
        }
        tracing::info!("`{id}` is at {place}");
        Ok(())
    }

    fn push_virtio(
        self,
        id: &str,
        socket: &Socket,
        device: Arc<dyn VirtioDevice>,
        rom: Option<OptionRom>,
        images: Vec<Image>,
    ) -> Result<(), DeviceError> {
        let failed = |source| DeviceError::Host { what: "make a doorbell".to_owned(), source };
        let device = PciDevice::with_rom(socket, device, rom).map_err(failed)?;
        self.push(id, device.endpoint, Kind::Virtio(device.transport), images)
    }
}

/// What holds a device to its rates, where there are any.
fn limiter(requests: Option<Rate<Requests>>, bytes: Option<Rate<Bytes>>) -> Option<Arc<Limiter>> {
    fn limit<T: Counted>(rate: Rate<T>) -> Limit {
        Limit { per_second: rate.per_second, burst: rate.burst }
    }
    let limits = Limits { requests: requests.map(limit), bytes: bytes.map(limit) };
    (!limits.is_empty()).then(|| Limiter::new(limits))
}

/// A place as PCI has it.
fn pci_place(place: Place) -> PciPlace {
    match place {
        Place::Root(device) => PciPlace::Root(device),
        Place::Port(number) => PciPlace::Port(number),
    }
}

/// What a device is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// The guest can use it.
    On,
    /// It is in its slot, and the guest has not switched the slot on.
    Off,
    /// The guest has been asked to let it go.
    Leaving,
    /// The guest has let it go; what it had begun has not ended yet.
    Stopping,
    /// A state of a later version.
    #[serde(other)]
    Other,
}

/// A device of a running machine, for a person or a program of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name.
    pub id: String,
    /// What it is to the guest: `nvme`, `nvme-namespace`, `virtio-blk`, `virtio-net` and so on.
    pub kind: String,
    /// Where it is on PCI: `root:DEVICE` or `port:NUMBER`.
    pub place: String,
    /// What it is doing.
    pub state: DeviceState,
    /// Whether it can leave while the guest runs.
    pub removable: bool,
    /// Bytes, of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The controller of a namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
    /// Its number among the controller's namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u32>,
}

impl Devices {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self { this: this.clone(), inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kinds(&self) -> Vec<Kind> {
        self.lock().placed.iter().map(|device| device.kind.clone()).collect()
    }

    /// The balloon, if there is one.
    pub(super) fn balloon(&self) -> Option<Arc<Balloon>> {
        self.lock().balloon.upgrade()
    }

    /// The console, if there is one.
    pub(super) fn console(&self) -> Option<Arc<Console>> {
        self.lock().console.upgrade()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().placed.is_empty()
    }

    /// Begins to stop all queues, and calls `done`, on any thread, when nothing is in flight any more. vCPUs have stopped before.
    pub(super) fn begin_stop(&self, done: impl FnOnce() + Send + Sync + 'static) {
        let last = Arc::new(AtLast(Some(Box::new(done))));
        for kind in self.kinds() {
            let share = last.clone();
            kind.begin_stop(move || drop(share));
        }
    }

    /// Calls `done`, on any thread, when nobody has the images any more and they are closed.
    pub(super) fn on_close(&self, done: impl FnOnce() + Send + Sync + 'static) {
        let last = Arc::new(AtLast(Some(Box::new(done))));
        for image in self.lock().placed.iter().flat_map(|device| &device.images) {
            unplug::share(&last, image);
        }
    }

    /// Lets all queues go on.
    pub(super) fn resume(&self) {
        self.kinds().iter().for_each(Kind::resume);
    }

    /// What is saved of them.
    pub(super) fn components(&self) -> Vec<Named> {
        self.lock().placed.iter().flat_map(Placed::components).collect()
    }

    /// Tells the networks where the cards are now.
    pub(super) fn announce(&self) {
        let links = self.lock().links.clone();
        for (link, mac) in links {
            if let Some(link) = link.upgrade() {
                link.announce(mac);
            }
        }
    }

    /// The images of all disks, by their names.
    pub(super) fn images(&self) -> Vec<(String, Arc<dyn ImageDisk>)> {
        let inner = self.lock();
        let images = inner.placed.iter().flat_map(|device| &device.images);
        images.map(|image| (image.id.clone(), image.file.clone())).collect()
    }

    /// A device that the guest has let go and that is still there.
    pub(super) fn going(&self) -> Option<String> {
        self.lock().going.first().map(|going| going.id().to_owned())
    }

    /// The numbers of namespaces by their disks, and by controllers of those that came last while the guest ran.
    pub(super) fn numbers(&self) -> (BTreeMap<String, u32>, BTreeMap<String, u32>) {
        let inner = self.lock();
        let images = inner.placed.iter().flat_map(|device| &device.images);
        let namespaces = images.filter_map(|image| Some((image.id.clone(), image.namespace?))).collect();
        let last = inner.placed.iter().filter(|device| device.last_namespace > 0);
        (namespaces, last.map(|device| (device.id.clone(), device.last_namespace)).collect())
    }

    /// All of them, those that go last.
    pub(super) fn list(&self, root: &RootComplex) -> Vec<DeviceInfo> {
        let inner = self.lock();
        let placed = inner.placed.iter().flat_map(|device| describe(device, root));
        placed.chain(inner.going.iter().map(Going::describe)).collect()
    }
}

fn describe(device: &Placed, root: &RootComplex) -> Vec<DeviceInfo> {
    let slot = root.slot_state(device.place);
    let state = match slot {
        None | Some(SlotState::On) => DeviceState::On,
        // On its way: the guest has switched the slot off just now.
        Some(SlotState::Empty) => DeviceState::Stopping,
        Some(SlotState::Off) => DeviceState::Off,
        Some(SlotState::Leaving) => DeviceState::Leaving,
    };
    let own = device.images.iter().find(|image| image.id == device.id);
    let info = DeviceInfo {
        id: device.id.clone(),
        kind: device.kind.name().to_owned(),
        place: device.place.to_string(),
        state,
        removable: slot.is_some(),
        size: own.map(|image| image.file.info().size),
        controller: None,
        namespace: None,
    };
    let namespaces = device.images.iter().filter(|image| image.id != device.id).map(|image| DeviceInfo {
        id: image.id.clone(),
        kind: "nvme-namespace".to_owned(),
        removable: true,
        size: Some(image.file.info().size),
        controller: Some(device.id.clone()),
        namespace: image.namespace,
        ..info.clone()
    });
    std::iter::once(info.clone()).chain(namespaces).collect()
}
